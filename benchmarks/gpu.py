"""First hour on a GPU: tests, peaks, whole steps, kernels, nanochat, memory, evaluation, decoding, a run; one JSON.

    python benchmarks/gpu.py --out gpu.json [--parts tests peak step …] [--shards FOLDER] [--nanochat CHECKOUT]
    python benchmarks/gpu.py --tiny    # every part to its end on a CPU; its figures mean nothing

A part that fails records its error and the next one goes on; the exit code is then 1.  The file is rewritten after each
part.  MFU (with sizing.flops_per_token) is given of the measured rate of a large matrix product and of the data sheet.
`tests` takes at most `--tests-s`; the rest is meant for 8 minutes of an H100, half of it compiling: where a machine is
lent for less at a time, choose parts.

Without `--shards` the text is random words by Zipf's law, so that no loss means anything.  On a machine where nothing
can be installed set PYTHONPATH to the repository, and to unpacked wheels of rustbpe (the tests' fixtures train
tokenizers) and of tyro, docstring-parser and typeguard (the ranks of `launch` are `python -m tinylib train`); without
tyro `run` trains in this process.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pandas as pd
import torch
from gpu_bench import Bench, Row, commit, printed, trained
from gpu_kernels import by_class
from gpu_nanochat import nanochat
from torch.profiler import ProfilerActivity, profile, record_function

import tinylib.model
from tinylib import files, hardware, sizing
from tinylib.config import TrainConfig
from tinylib.evaluate import score
from tinylib.generate import generate_ids
from tinylib.model import KVCache
from tinylib.rundir import Record, Step, Summary
from tinylib.shards import Shards
from tinylib.train import train

ROOT = Path(__file__).resolve().parent.parent


def tests(bench: Bench) -> Row:
    """The tests that need a GPU, in a process of their own; only their files, since others need what isn't there."""
    chosen = [str(file) for file in sorted((ROOT / "tests").glob("test_*.py")) if "mark.gpu" in file.read_text("utf-8")]
    log = bench.folder / "tests.log"
    with log.open("w") as out, contextlib.suppress(subprocess.TimeoutExpired):
        subprocess.run([sys.executable, "-m", "pytest", "-v", "-rfE", "-m", "gpu", *chosen], cwd=ROOT, stdout=out,
                       stderr=subprocess.STDOUT, timeout=bench.tests_s)
    lines = log.read_text().splitlines() or ["nothing was printed"]
    facts = {"summary": lines[-1].strip("= "),
             "failures": [line for line in lines if re.match(r"(FAILED|ERROR) ", line)]}
    if facts["failures"] or not re.search(r"passed|skipped", lines[-1]):
        facts |= {"error": "tests failed, or did not end in time", "log": lines[-300:]}
    return facts


def peak(bench: Bench) -> Row:
    """Peak rates of the device: a large matrix product, a large copy, and the products of one micro-batch alone."""
    from training_step import roofline  # it imports transformers

    rows = []
    for context in bench.contexts:
        config, tokens = bench.at(context), bench.batch * context
        rate = tokens / bench.seconds(roofline(config, tokens, bench.kind, getattr(torch, bench.dtype)))
        flops = sizing.flops_per_token(config) - 3 * sizing.flops_by_part(config).attention
        rows.append({"context": context, "products_tokens_per_s": rate,
                     "of_measured": rate * flops / bench.products_per_s})
    return {"dtype": bench.dtype, "products_tflops": bench.products_per_s / 1e12,
            "sheet_tflops": bench.device.peak_flops and bench.device.peak_flops / 1e12,
            "copy_gb_per_s": bench.bytes_per_s / 1e9, "rows": rows}


def step(bench: Bench) -> Row:
    """Whole training steps, untied and tied."""
    return {"rows": [bench.fitting(lambda batch, context=context, tied=tied: trained(
        bench, bench.at(context, tied), batch)) for context in bench.contexts for tied in (False, True)]}


def kernels(bench: Bench) -> Row:
    """Time of two steps of the training loop by class of kernel."""
    on_gpu, compute, context = bench.kind == "cuda", tinylib.model.cross_entropy, bench.contexts[-1]
    profiler = profile(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])])

    def window(record: Record) -> None:
        if isinstance(record, Step) and record.step in (3, 5):
            if on_gpu:    # on a GPU a record comes when the step after its own is under way: that one ends here
                torch.cuda.synchronize()
            (profiler.start if record.step == 3 else profiler.stop)()

    def annotated(*args: Any, **kwargs: Any) -> torch.Tensor:
        with record_function("loss"):
            return compute(*args, **kwargs)

    with patch.object(tinylib.model, "cross_entropy", annotated):
        row = trained(bench, bench.at(context), bench.batch, window, steps=7)
    return {"context": context, "batch": bench.batch, "compiled": row["compiled"],
            **by_class(profiler.events(), 2, on_gpu)}


def memory(bench: Bench) -> Row:
    """Peak of two steps, of one micro-batch each, against the closed form."""
    short, long, whole, half = bench.contexts[0], bench.contexts[-1], bench.batch, bench.batch // 2
    rows = []
    for batch, context, recompute, compiled in (
            (half, short, False, bench.compile), (whole, short, False, bench.compile),
            (whole, long, False, bench.compile), (whole, long, True, bench.compile),
            (half, short, False, "off"), (whole, long, True, "off")):
        formula = sizing.memory(bench.at(context), batch, bench.dtype, recompute)
        row = trained(bench, bench.at(context), batch, steps=2, total_batch_size=batch * context, recompute=recompute,
                      compile=compiled)
        rows.append({**row, "recompute": recompute, "formula_gb": formula.total / 1e9, "formula": formula.at_peak,
                     "ratio": row["peak_gb"] and row["peak_gb"] * 1e9 / formula.total})
    return {"rows": rows}


def evaluate(bench: Bench) -> Row:
    """`score`, compiled where the trainer's would be, against the forward pass of a training step."""
    config, rows, batch = bench.at(bench.contexts[-1]), [], bench.batch
    validation, tokens = Shards(bench.shards, "val"), batch * config.seq_len
    x_BT, y_BT = (part.to(bench.kind) for part in next(validation.in_order(config.seq_len, batch_size=batch)))
    for dtype in ("float32", "bfloat16"):
        bench.fresh()
        model = bench.random_model(config, dtype)
        if bench.compile != "off":
            model.compile_for_training((batch, config.seq_len))
        forward = tokens / bench.seconds(lambda model=model: model(x_BT, y_BT, reduction="sum"))
        found = score(model, validation, max_tokens=10 * tokens, batch_size=batch)
        rate = found.tokens / bench.seconds(lambda model=model: score(
            model, validation, max_tokens=10 * tokens, batch_size=batch), repeats=2, warmup=0)
        rows.append({"dtype": dtype, "context": config.seq_len, "batch": batch, "tokens": found.tokens,
                     "tokens_per_s": rate, "training_forward_tokens_per_s": forward, "ratio": rate / forward})
    return {"rows": rows}


def decode(bench: Bench) -> Row:
    """Greedy decoding with a KV cache, against the time in which weights and cache can be read."""
    config, dtype, new = bench.at(bench.contexts[0]), getattr(torch, bench.dtype), 8 if bench.tiny else 200
    model, prompt = bench.random_model(config, bench.dtype).to(dtype).eval(), list(range(16))

    @torch.no_grad()
    def batched(size: int) -> None:
        cache, ids_BT = KVCache(model, size, config.seq_len), torch.tensor([prompt] * size, device=bench.kind)
        for _ in range(new):
            ids_BT = model(ids_BT, cache=cache)[:, -1].argmax(1, keepdim=True)

    def row(name: str, size: int, work: Callable[[], object]) -> Row:
        token_s, count = bench.seconds(work, repeats=3, warmup=1) / new, sizing.parameters(config)
        cached = 2 * config.depth * config.dim * size * (len(prompt) + new / 2)
        floor_s = dtype.itemsize * (count.blocks + count.lm_head + cached) / bench.bytes_per_s
        return {"how": name, "batch": size, "tokens_per_s": size / token_s, "ms_a_token": 1000 * token_s,
                "ms_by_bandwidth": 1000 * floor_s, "ratio": token_s / floor_s}

    return {"dtype": bench.dtype, "rows": [
        row("generate_ids", 1, lambda: list(generate_ids(model, prompt, max_tokens=new, temperature=0))),
        *(row("model and cache", size, lambda size=size: batched(size)) for size in (1, 64))]}


def run(bench: Bench) -> Row:
    """A short run with evaluations, stopped by a signal and resumed: by `launch`, without tyro by `train`."""
    steps, context, launched = 60, bench.contexts[0], find_spec("tyro") is not None
    config = TrainConfig(bench.at(context), data=bench.shards, run_dir=str(bench.folder / "run"), steps=steps,
                         total_batch_size=bench.total, device_batch_size=bench.batch // 2, compile=bench.compile,
                         eval_every=steps // 3, save_every=steps // 3, eval_tokens=4 * bench.batch * context)
    states, summary = (by_launch if launched else by_train)(config, steps // 4)
    facts = {"by": "launch" if launched else "train, because tyro is missing", "steps": steps, "states": states,
             "tokens_per_s": summary.tokens_per_s, "val_bpb": summary.val_bpb, "train_loss": summary.train_loss}
    return facts if states == ["stopped", "finished"] else facts | {"error": f"the states were {states}"}


def by_launch(config: TrainConfig, stop_at: int) -> tuple[list[str], Summary]:
    """States after a stop at about this step and after resuming, with the last summary."""
    from tinylib.launch import launch

    found = launch(config, 1)
    try:
        while found.state in ("starting", "running") and getattr(found.last(Step), "step", 0) < stop_at:
            time.sleep(0.02)
        if found.state == "running":
            found.stop(60)
        first = found.state
        summary = (found.resume() if first == "stopped" else found).wait(300)
        return [first, found.state], summary
    finally:
        if found.alive():
            found.stop()


def by_train(config: TrainConfig, stop_at: int) -> tuple[list[str], Summary]:
    """The same in this process, which signals itself."""
    def stop(record: Record) -> None:
        if isinstance(record, Step) and record.step == stop_at:
            os.kill(os.getpid(), signal.SIGTERM)

    first, last = train(config, callback=stop), train(config, resume=True)
    return [first.state, last.state], last


PARTS = {part.__name__: part for part in (tests, peak, step, kernels, nanochat, memory, evaluate, decode, run)}


def machine(bench: Bench) -> Row:
    """Provenance: date, command, commit, device and versions."""
    return {"date": time.strftime("%Y-%m-%d %H:%M:%S"), "command": " ".join(sys.argv), "commit": commit(ROOT),
            "device": bench.device.name, "cores": hardware.cores(), "torch": torch.__version__,
            "driver": printed("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"),
            "cuda": torch.version.cuda, "python": sys.version.split()[0], "text": bench.text,
            "tokens_a_step": bench.total}


def show(name: str, facts: Row) -> None:
    """Print a part: its rows as tables, the rest a line each."""
    print(f"\n== {name}: {facts['seconds']:.1f} s")
    for key, value in facts.items():
        if isinstance(value, list) and value and isinstance(value[0], dict):
            flat = [{name: cell for name, cell in row.items() if not isinstance(cell, dict)} for row in value]
            print(pd.DataFrame(flat).to_string(index=False, float_format="{:,.4g}".format))
        elif key not in ("seconds", "log"):
            print(f"{key}: " + (", ".join(value) if key == "states" else "\n".join(value)
                                if isinstance(value, list) else str(value)))
    sys.stdout.flush()


def attempt(name: str, bench: Bench) -> Row:
    """The facts of a part, or its error, with its seconds; printed."""
    began = time.perf_counter()
    try:
        facts = PARTS[name](bench)
    except Exception as error:
        facts = {"error": f"{type(error).__name__}: {error}", "traceback": traceback.format_exc().splitlines()[-12:]}
    facts = {"seconds": time.perf_counter() - began, **facts}
    show(name, facts)
    return facts


def main() -> int:
    """Take the parts in order; 1 if one failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="JSON file to write")
    parser.add_argument("--parts", nargs="+", default=list(PARTS), choices=PARTS)
    parser.add_argument("--contexts", nargs="+", type=int, help="1024 2048")
    parser.add_argument("--steps", type=int, help="of each row, of which two are warm-up: 12")
    parser.add_argument("--compile", choices=["auto", "off"], help="auto, with --tiny off")
    parser.add_argument("--tests-s", type=float, default=360, help="time limit of the tests")
    parser.add_argument("--nanochat", type=Path, help="checkout of nanochat, of October 2025 or of today")
    parser.add_argument("--shards", default="", help="folder of shards of real text, with goldilocks' vocabulary")
    parser.add_argument("--tiny", action="store_true")
    options = parser.parse_args()
    tiny = options.tiny
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(tiny, options.contexts or ([32, 64] if tiny else [1024, 2048]), options.steps or 12 - 8 * tiny,
                      options.compile or ("off" if tiny else "auto"), options.tests_s, options.nanochat,
                      options.shards, Path(folder))
        results: Row = {"machine": machine(bench)}
        print(json.dumps(results["machine"], indent=1))
        for name in filter(options.parts.__contains__, PARTS):
            results[name] = attempt(name, bench)
            if options.out:
                files.write_json(options.out, results)
    failed = [name for name, facts in results.items() if "error" in facts]
    print(f"\nfailed: {', '.join(failed)}" if failed else "\nall parts done")
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())

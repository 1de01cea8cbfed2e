"""Whole training steps, and forward and backward alone, against `transformers`' class and bare matrix products.

    python benchmarks/training_step.py [--model micro] [--dtype auto] [--batch 16] [--rounds 5] [--text pydocs]

The whole step is `tinylib.train.train` itself: data, accumulation, the gradient's norm, Muon and AdamW, records.
Between two of its steps each of the others takes some micro-batches, in the same process and with the same allocator
(freed memory is kept, as `train` asks of glibc), so that a machine that slows down slows them all.  Medians are
printed; a ratio is the median of the ratios of each round.  The roofline is the matrix products of the same shapes and
nothing else, forward and backward.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook
from transformers import NanoChatForCausalLM

from tinylib import corpus, hardware, train
from tinylib.config import PRESETS, GPTConfig, TrainConfig
from tinylib.export import hf_config
from tinylib.model import GPT
from tinylib.recorder import Recorder
from tinylib.rundir import Record, Step
from tinylib.shards import build
from tinylib.tokenizer import Tokenizer

Contenders = dict[str, Callable[[], object]]
WHOLE, ALONE = "tinylib, whole step", "tinylib, compiled"


def roofline(config: GPTConfig, rows: int, kind: str, dtype: torch.dtype) -> Callable[[], None]:
    """Every matrix product of one pass, three times each: forward, gradient of the input, gradient of the weight."""
    shapes = [spec.shape for spec in config.tensors() if spec.name != "wte.weight" or config.tied]
    make = {"device": kind, "dtype": dtype}
    inputs = {width: torch.randn(rows, width, **make) for shape in shapes for width in shape}
    weights = [torch.randn(shape, **make) for shape in shapes]

    def products() -> None:
        for weight in weights:
            x, dy = inputs[weight.shape[1]], inputs[weight.shape[0]]
            x @ weight.T, dy @ weight, dy.T @ x

    return products


def passes(config: GPTConfig, x_BT: torch.Tensor, dtype: torch.dtype) -> Contenders:
    """Forward and backward of one micro-batch, each way, gradients added to what is there."""
    y_BT, kind = x_BT.roll(-1, 1), x_BT.device.type

    def adding(model: torch.nn.Module, loss: Callable[[], torch.Tensor], autocast: bool = False) -> Callable[[], None]:
        for weight in model.parameters():
            torch.nn.init.normal_(weight, std=0.02)    # ours has zeros, theirs not
            weight.grad = torch.zeros_like(weight)

        def step() -> None:
            with torch.autocast(kind, dtype, enabled=autocast and dtype != torch.float32):
                total = loss()
            total.backward()
        return step

    def theirs(compiled: bool) -> Callable[[], None]:
        model = NanoChatForCausalLM(hf_config(config)).to(kind)
        forward = torch.compile(model) if compiled else model
        return adding(model, lambda: F.cross_entropy(
            forward(input_ids=x_BT, use_cache=False).logits.flatten(0, 1).float(), y_BT.flatten()), autocast=True)

    def ours(compiled: bool, plain: bool = False) -> Callable[[], None]:
        model = GPT(config, dtype=dtype).to(kind)
        model.compile_for_training(tuple(x_BT.shape) if compiled else None)
        return adding(model, lambda: F.cross_entropy(model(x_BT).flatten(0, 1), y_BT.flatten()) if plain else
                      model(x_BT, y_BT))

    return {"transformers, eager": theirs(False), "transformers, compiled": theirs(True),
            "tinylib, plain loss, eager": ours(False, plain=True), "tinylib, eager": ours(False), ALONE: ours(True)}


class Ledger:
    """Seconds by part, one figure a step."""

    def __init__(self) -> None:
        self.steps: list[dict[str, float]] = [defaultdict(float)]
        self._began: dict[int, float] = {}

    def timed(self, part: str, function: Callable[..., object]) -> Callable[..., object]:
        """`function`, its seconds added to `part`."""
        def with_clock(*args: object, **kwargs: object) -> object:
            began = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                self.steps[-1][part] += time.perf_counter() - began
        return with_clock

    def optimizers(self) -> list[torch.utils.hooks.RemovableHandle]:
        """Time every optimizer of this process under the name of its class."""
        def before(optimizer: torch.optim.Optimizer, *_: object) -> None:
            self._began[id(optimizer)] = time.perf_counter()

        def after(optimizer: torch.optim.Optimizer, *_: object) -> None:
            self.steps[-1][type(optimizer).__name__] += time.perf_counter() - self._began[id(optimizer)]

        return [register_optimizer_step_pre_hook(before), register_optimizer_step_post_hook(after)]


def interleaved(config: TrainConfig, others: Contenders) -> Ledger:
    """Train as `config` says; after each step every one of `others` has its turn.  The first step is warm-up."""
    ledger = Ledger()

    class Between(Recorder):
        """Recorder that gives the others their turn after each record, outside of the time of a step."""

        def append(self, record: Record) -> None:
            ledger.timed("records", super().append)(record)
            if isinstance(record, Step):
                ledger.steps[-1] |= {"step": record.dt_s, "data": record.data_s}
                for name, work in others.items():
                    ledger.timed(name, work)()
                ledger.steps.append(defaultdict(float))
                self.start_clock()

    hooks, update = ledger.optimizers(), train.Trainer._update
    accumulate = ledger.timed("accumulation", train.Trainer._accumulate)

    def update_and_wait(trainer: train.Trainer, data_s: float) -> None:
        update(trainer, data_s)
        trainer._flush()    # on CUDA a step is recorded during the next one, and the others would wait for that one

    with (patch.object(train, "Recorder", Between), patch.object(train.Trainer, "_update", update_and_wait),
          patch.object(train.Trainer, "_accumulate", lambda *args: accumulate(*args))):
        train.train(config)
    for hook in hooks:
        hook.remove()
    ledger.steps = [step for step in ledger.steps if "step" in step][1:]
    for step in ledger.steps:
        step["step"] += step["records"]
    return ledger


def shards(text: str, vocab_size: int, folder: Path) -> None:
    """Real text with a vocabulary of this size; which text it is does not matter for the time."""
    source = corpus.load(text)
    tokenizer = Tokenizer.train(source.texts("train"), vocab_size, max_chars=20_000_000)
    build({"train": source.texts("train"), "val": source.texts("val")}, tokenizer, folder)


def main() -> None:
    """One model in one precision; the last line is everything as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="micro", choices=PRESETS)
    parser.add_argument("--dtype", default="auto", choices=["auto", "float32", "bfloat16"])
    parser.add_argument("--seq-len", type=int, default=256)
    parser.add_argument("--batch", type=int, default=16, help="sequences in a micro-batch")
    parser.add_argument("--total", type=int, default=16_384, help="tokens in a whole step")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--text", default="pydocs", help="a corpus that tinylib knows, or a folder")
    options = parser.parse_args()
    config, device = replace(PRESETS[options.model], seq_len=options.seq_len), hardware.device()
    name = hardware.dtype(device)[0] if options.dtype == "auto" else options.dtype
    dtype, tokens = getattr(torch, name), options.batch * options.seq_len
    x_BT = torch.randint(config.vocab_size, (options.batch, options.seq_len), device=device.kind)
    kinds = {name, "float32"} | ({"bfloat16"} if hardware.dtype(device)[0] == "bfloat16" else set())
    bare = {f"roofline, {kind}": roofline(config, tokens, device.kind, getattr(torch, kind)) for kind in sorted(kinds)}
    times = min(4, options.total // tokens)
    others = {label: repeated(work, times, device.kind)
              for label, work in (bare | passes(config, x_BT, dtype)).items()}
    for work in others.values():
        work()    # compiles
    with tempfile.TemporaryDirectory() as folder:
        shards(options.text, config.vocab_size, Path(folder) / "shards")
        ledger = interleaved(TrainConfig(
            config, data=f"{folder}/shards", run_dir=f"{folder}/run", steps=options.rounds + 1, dtype=name,
            total_batch_size=options.total, device_batch_size=options.batch, eval_every=None, save_every=None,
            eval_tokens=options.seq_len), others)
    print(f"{options.model}, T {options.seq_len}, micro-batch {options.batch}, {name}, {torch.get_num_threads()} "
          f"threads, torch {torch.__version__}; freed memory kept by all alike")
    print(json.dumps(report(ledger, list(others), f"roofline, {name}", times * tokens, options.total)))


def repeated(work: Callable[[], object], times: int, kind: str) -> Callable[[], None]:
    """`work`, so many times; on a GPU its end is waited for."""
    def whole() -> None:
        for _ in range(times):
            work()
        if kind == "cuda":
            torch.cuda.synchronize()
    return whole


def report(ledger: Ledger, others: list[str], roof: str, tokens: int, total: int) -> dict[str, dict[str, float]]:
    """Print tokens/s, shares of the roofline and of the step; returns them."""
    a_token = {name: [step[name] / tokens for step in ledger.steps] for name in others}
    a_token[WHOLE] = [step["step"] / total for step in ledger.steps]

    def ratio(name: str, reference: str) -> float:
        return statistics.median(there / own for own, there in zip(a_token[name], a_token[reference], strict=True))

    rates = {name: 1 / statistics.median(times) for name, times in a_token.items()}
    shares = {name: ratio(name, roof) for name in rates}
    for name, rate in rates.items():
        print(f"{name:<28}{rate:>10,.0f} tokens/s{shares[name]:>8.2f} of the {roof}")
    of_alone = ratio(WHOLE, ALONE)
    print(f"a whole step of {total:,} tokens is {of_alone:.3f} as fast as forward and backward alone; of a step:")
    parts = {"forward and backward": lambda step: step["accumulation"] - step["data"],
             **{part: lambda step, part=part: step[part] for part in ("data", "Muon", "AdamW", "records")}}
    found = {part: statistics.median(take(step) / step["step"] for step in ledger.steps)
             for part, take in parts.items()}
    found["sum, norm, clip, zero"] = 1 - sum(found.values())
    for part, share in found.items():
        print(f"  {part:<26}{100 * share:>7.2f}%")
    return {"tokens_per_s": rates, "of_roofline": shares, "whole_of_alone": of_alone, "of_step": found}


if __name__ == "__main__":
    main()

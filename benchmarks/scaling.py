"""Scaling of training over processes: measured for one and two on this machine, on paper for GPUs.

    python benchmarks/scaling.py [cores waiting traffic paper] [--model micro] [--steps 8] [--rounds 2] [--text pydocs]

cores: `tinylib.train.train` under torchrun and gloo, each process one thread on a core of its own. Strong efficiency is
the time of one process over twice that of two, for the same batch; weak, over once that of two, for twice the batch.
Two runs that know nothing of each other show what the machine itself allows. waiting: one process of two threads under
environment variables that say how a thread waits for the others, on idle cores and beside a busy process. traffic:
bytes on the loopback device, as the kernel counts them, and the seconds of each collective once every rank has reached
it, against the closed form `sizing.communication_s`. paper: that form for 8 GPUs and for 4 nodes of 8.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from training_step import shards

from tinylib import sizing
from tinylib.config import PRESETS, TrainConfig, from_json, to_json
from tinylib.hardware import ACCELERATORS

GLOO = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--local-addr", "127.0.0.1"]
TOTAL = 8_192
"""Tokens of a step."""


@dataclass(frozen=True)
class Case:
    """So many processes on these cores, so many sequences at once in each, for a step of `total` tokens."""

    processes: int
    cores: tuple[int, ...]
    total: int = TOTAL
    counted: bool = False
    """Whether collectives are counted, which holds up the ranks a little."""
    variables: tuple[tuple[str, str], ...] = ()
    """Environment variables of its processes."""


def start(case: Case, config: TrainConfig, folder: Path) -> subprocess.Popen[bytes]:
    """A run under torchrun, bound to the case's cores."""
    folder.mkdir(parents=True)
    config = replace(config, run_dir=str(folder / "run"), total_batch_size=case.total)
    (folder / "train.json").write_text(to_json(config))
    command = [*GLOO, "--nproc-per-node", str(case.processes), __file__, "--one", str(folder)]
    command += ["--counted"] if case.counted else []
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, case.cores)    # children inherit it, and tinylib takes as many threads as there are cores
    try:
        return subprocess.Popen(command, stdout=subprocess.DEVNULL, env=os.environ | {
            "OMP_NUM_THREADS": str(max(1, len(case.cores) // case.processes)), **dict(case.variables)})
    finally:
        os.sched_setaffinity(0, before)


def finish(process: subprocess.Popen[bytes], folder: Path) -> dict[str, list]:
    """Records of rank 0: the seconds of its steps, and of its collectives with their bytes."""
    if process.wait():
        raise RuntimeError(f"a run in {folder.name} failed")
    return json.loads((folder / "facts.json").read_text())


def one(folder: Path, count: bool) -> None:
    """One rank of a run: train, and if asked to, count the bytes and seconds of each collective."""
    import torch.distributed as dist

    from tinylib import train

    ledger: list[list[float]] = []

    def counted(function: Callable[..., object]) -> Callable[..., object]:
        def collective(*tensors: object) -> object:
            sent = loopback_bytes()    # before any rank can go on
            dist.barrier()    # waiting for a slower rank is no communication
            began = time.perf_counter()
            result = function(*tensors)
            seconds = time.perf_counter() - began
            dist.barrier()
            ledger.append([function is gather, seconds, loopback_bytes() - sent])
            return result
        return collective

    gather = dist.all_gather_single
    if count:
        dist.all_reduce, dist.all_gather_single = counted(dist.all_reduce), counted(gather)
    config = from_json(TrainConfig, (folder / "train.json").read_text())
    train.train(config)
    if int(os.environ["RANK"]) == 0:
        records = [json.loads(line) for line in Path(config.run_dir, "metrics.jsonl").read_text().splitlines()]
        steps = [record["dt_s"] for record in records if record["kind"] == "step"]
        (folder / "facts.json").write_text(json.dumps({"steps": steps, "collectives": ledger}))


def loopback_bytes() -> int:
    """Bytes that the loopback device has sent since the machine began (Linux)."""
    line = next(line for line in Path("/proc/net/dev").read_text().splitlines() if line.strip().startswith("lo:"))
    return int(line.split()[9])


def cores(config: TrainConfig, rounds: int, place: Path) -> dict[str, float]:
    """Efficiencies of two processes, from medians over steps and rounds taken in turn."""
    cases = {"1 process × 1 thread": Case(1, (0,)), "1 process × 2 threads": Case(1, (0, 1)),
             "2 processes × 1 thread": Case(2, (0, 1)), "the same, twice the batch": Case(2, (0, 1), 2 * TOTAL)}
    seconds: dict[str, list[float]] = {name: [] for name in (*cases, "two runs at once, 1 × 1 each")}
    for round_ in range(rounds):
        for number, (name, case) in enumerate(cases.items()):
            folder = place / f"{round_}-{number}"
            seconds[name] += finish(start(case, config, folder), folder)["steps"][3:]
        apart = [(start(Case(1, (core,)), config, place / f"{round_}-{core}-apart"), place / f"{round_}-{core}-apart")
                 for core in (0, 1)]
        for process, folder in apart:
            seconds["two runs at once, 1 × 1 each"] += finish(process, folder)["steps"][3:]
    middle = {name: statistics.median(times) for name, times in seconds.items()}
    alone, threads, strong, weak, apart_s = middle.values()
    for name, median in middle.items():
        print(f"{name:<30}{1000 * median:>8.0f} ms a step")
    found = {"strong": alone / (2 * strong), "weak": alone / weak, "strong, threads instead": alone / (2 * threads),
             "two runs at once": alone / apart_s, "2 × 1 over 1 × 2, tokens/s": threads / strong}
    print(", ".join(f"{name} {value:.2f}" for name, value in found.items()))
    return middle | found


def waiting(config: TrainConfig, rounds: int, place: Path) -> dict[str, dict[str, float]]:
    """Tokens per second by waiting policy, idle and beside one busy process; medians over steps and rounds in turn."""
    policies = [(), (("OMP_WAIT_POLICY", "PASSIVE"),),
                *((("GOMP_SPINCOUNT", str(count)),) for count in (1_000, 10_000, 30_000, 100_000))]
    cases = {" ".join("=".join(pair) for pair in policy) or "default": Case(1, (0, 1), variables=policy)
             for policy in policies} | {"2 processes × 1 thread": Case(2, (0, 1))}
    found: dict[str, dict[str, list[float]]] = {name: {"idle": [], "busy": []} for name in cases}
    for round_ in range(rounds):
        for number, (name, case) in enumerate(cases.items()):
            for state, seconds in found[name].items():
                folder = place / f"waiting-{round_}-{number}-{state}"
                busy = subprocess.Popen([sys.executable, "-c", "while True: pass"]) if state == "busy" else None
                try:
                    seconds += finish(start(case, config, folder), folder)["steps"][3:]
                finally:
                    if busy:
                        busy.kill()
                        busy.wait()
    rates = {name: {state: case.total / statistics.median(seconds) for state, seconds in found[name].items()}
             for name, case in cases.items()}
    for name, rate in rates.items():
        print(f"{name:<30}{rate['idle']:>10,.0f} tokens/s idle{rate['busy']:>10,.0f} beside a busy process")
    return rates


def traffic(config: TrainConfig, processes: int, place: Path) -> dict[str, float]:
    """Bytes and seconds of the collectives of a step, and what the closed form says of both."""
    folder = place / f"traffic-{processes}"
    facts = finish(start(Case(processes, (0, 1), config.total_batch_size, counted=True), config, folder), folder)
    model = config.model
    steps, gathers = [], []
    for is_gather, seconds, sent in facts["collectives"]:
        if is_gather:
            gathers.append((seconds, sent))
        elif sent > 0.5 * 4 * sizing.parameters(model).total:    # the other one is times and a flag
            steps.append((seconds, sent, gathers := []))
    steps = steps[3:]
    reduce_s, reduced = (statistics.median(step[part] for step in steps) for part in (0, 1))
    gather_s, gathered = (statistics.median(sum(one[part] for one in step[2]) for step in steps) for part in (0, 1))
    share = (processes - 1) / processes
    form = {"reduced": 2 * sizing.weight_bytes(model) * share,
            "gathered": sizing.gathered_bytes(model, processes, "float32") * share}
    link = reduced / processes / reduce_s
    predicted_s = sizing.communication_s(model, replace(ACCELERATORS["H100"], link=link), processes, dtype="float32")
    print(f"{processes} processes, MB sent by each in a step: gradients {reduced / processes / 1e6:.3f} (closed form "
          f"{form['reduced'] / 1e6:.3f}), updates {gathered / processes / 1e6:.3f} ({form['gathered'] / 1e6:.3f})")
    print(f"  all_reduce {1000 * reduce_s:.2f} ms, so the link carries {link / 1e9:.2f} GB/s; with it the closed form "
          f"says {1000 * predicted_s:.2f} ms a step, measured {1000 * (reduce_s + gather_s):.2f} ms, of a step of "
          f"{1000 * statistics.median(facts['steps'][3:]):.0f} ms")
    return {"reduced": reduced / processes, "gathered": gathered / processes, "closed_form": form, "link": link,
            "predicted_s": predicted_s, "reduce_s": reduce_s, "gather_s": gather_s}


def paper() -> dict[str, dict[str, float]]:
    """Communication of a step of 524,288 tokens on H100s, against computing at the MFU that plans assume."""
    h100 = ACCELERATORS["H100"]
    links = {"8 GPUs, NVLink": (8, h100.link), "4 × 8, 8 × 400 Gb/s a node": (32, min(h100.link, 8 * sizing.NETWORK)),
             "4 × 8, 400 Gb/s a node": (32, 50e9), "4 × 8, 100 Gb/s a node": (32, 12.5e9)}
    found = {}
    for name, shape in (("goldilocks", PRESETS["goldilocks"]), ("nanochat-d20", PRESETS["nanochat-d20"])):
        for label, (devices, link) in links.items():
            compute_s = 524_288 * sizing.flops_per_token(shape) / (devices * h100.peak_flops * sizing.ASSUMED_MFU)
            talk_s = sizing.communication_s(shape, replace(h100, link=link), devices)
            share = talk_s / (compute_s + talk_s)
            found[f"{name}, {label}"] = {"compute_s": compute_s, "communication_s": talk_s, "share": share}
            print(f"{name + ', ' + label:<42}computing {1000 * compute_s:>7.2f} ms, communicating "
                  f"{1000 * talk_s:>7.2f} ms: {100 * share:>3.0f}% of a step without overlap")
    return found


def main() -> None:
    """The parts asked for; the last line is one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", help="default: cores waiting traffic paper")
    parser.add_argument("--model", default="micro", choices=PRESETS)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--processes", type=int, nargs="+", default=[2], help="of the traffic")
    parser.add_argument("--text", default="pydocs")
    parser.add_argument("--one", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--counted", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        one(options.one, options.counted)
        return
    parts, found = options.parts or ["cores", "waiting", "traffic", "paper"], {}
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        model = replace(PRESETS[options.model], seq_len=256)
        config = TrainConfig(model, data=f"{name}/shards", run_dir=f"{name}/run", steps=options.steps, dtype="float32",
                             total_batch_size=TOTAL, device_batch_size=8, eval_every=None, save_every=None,
                             eval_tokens=256)
        if set(parts) - {"paper"}:
            shards(options.text, model.vocab_size, place / "shards")
        if "cores" in parts:
            found["cores"] = cores(config, options.rounds, place)
        if "waiting" in parts:
            found["waiting"] = waiting(config, options.rounds, place)
        if "traffic" in parts:
            found["traffic"] = {count: traffic(replace(config, total_batch_size=count * 2_048), count, place)
                                for count in options.processes}
        if "paper" in parts:
            found["paper"] = paper()
    print(json.dumps(found))


if __name__ == "__main__":
    main()

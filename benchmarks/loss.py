"""Ways to the softcapped cross-entropy and its gradients: time, memory, and how far from the naive way.

    python benchmarks/loss.py [--model micro] [--dtype float32] [--rows 4096] [--rounds 3]

Forward and backward of the loss alone, from the last hidden states [rows, D] and the table [V, D] to the gradients of
both.  All contenders take turns in one process.  Time is taken while freed memory is kept, memory while every block
that is freed goes back to the system: there a contender's peak is the growth of the process, gradients included.
Differences are the largest of a tensor over the largest of the naive way's in float32 with the same cap.
`torch.nn.functional.linear_cross_entropy` knows no softcap, so there is a second table without.
"""

from __future__ import annotations

import argparse
import gc
import json
import re
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from tinylib import hardware
from tinylib.allocator import frugal, hoarding
from tinylib.config import PRESETS
from tinylib.loss import cross_entropy, softcap, softcap_cross_entropy_fwd_bwd
from tinylib.sizing import chunk_rows

Data = tuple[Tensor, Tensor, Tensor]
Loss = Callable[[Tensor, Tensor, Tensor, float | None], Tensor]
CHUNKS = (64, 256, 512, 1024, 4096)
NAIVE = "naive, eager"


def naive(x_RD: Tensor, table_VD: Tensor, y_R: Tensor, cap: float | None) -> Tensor:
    """All logits at once."""
    return F.cross_entropy(softcap(F.linear(x_RD, table_VD.to(x_RD.dtype)).float(), cap), y_R)


def torchs(**settings: object) -> Loss:
    """PyTorch's fused loss, in pieces as `settings` say; without settings all at once."""
    options = torch.nn.LinearCrossEntropyOptions(**settings) if settings else None
    return lambda x_RD, table_VD, y_R, cap: F.linear_cross_entropy(x_RD, table_VD.to(x_RD.dtype), y_R, options=options)


def ours(rows: int, kernel: object = softcap_cross_entropy_fwd_bwd) -> Loss:
    """tinylib's loss, so many rows at a time."""
    return lambda *arguments: cross_entropy(*arguments, chunk_rows=rows, kernel=kernel)


def contenders(cap: float | None, own_rows: int) -> dict[str, Loss]:
    """Every way there is with this cap."""
    torch._dynamo.config.recompile_limit = 1000    # one kernel compiled for each number of rows and precision
    compiled = torch.compile(softcap_cross_entropy_fwd_bwd, dynamic=False)
    found = {NAIVE: naive, "naive, compiled": torch.compile(naive, dynamic=False)}
    if cap is None:
        found |= {"linear_cross_entropy, all at once": torchs(),
                  "linear_cross_entropy, auto": torchs(chunking_method="auto")}
        found |= {f"linear_cross_entropy, {policy}, {own_rows} rows": torchs(
            acc_policy=policy, batch_chunk_size=own_rows, chunking_method=None) for policy in ("accurate", "compact")}
        return found | {f"tinylib, compiled, {own_rows} rows": ours(own_rows, compiled)}
    return found | {f"tinylib, eager, {rows} rows": ours(rows) for rows in (own_rows, 4096)} | {
        f"tinylib, compiled, {rows} rows": ours(rows, compiled) for rows in CHUNKS}


def taken(loss: Loss, data: Data, dtype: torch.dtype, cap: float | None) -> list[Tensor]:
    """The loss and its gradients with respect to hidden states and table."""
    x_RD, table_VD = (tensor.detach().requires_grad_() for tensor in data[:2])
    total = loss(x_RD.to(dtype), table_VD, data[2], cap)
    total.backward()
    return [total.detach(), x_RD.grad, table_VD.grad]


def growth(work: Callable[[], object]) -> int:
    """Bytes by which the process grows at the most during `work` (Linux), where every freed block is given back."""
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")    # the peak begins anew
    before = _status("VmRSS")
    work()
    return _status("VmHWM") - before


def _status(name: str) -> int:
    return 1024 * int(re.findall(rf"{name}:\s*(\d+) kB", Path("/proc/self/status").read_text())[0])


def facts(found: dict[str, Loss], data: Data, dtype: torch.dtype, cap: float | None) -> dict[str, dict[str, float]]:
    """Peak bytes and differences of each contender."""
    exact, known = taken(naive, data, torch.float32, cap), {}
    for name, loss in found.items():
        # Once before its memory is taken: what libraries keep for themselves is there then.
        off = [float((own.float() - right).abs().max() / right.abs().max())
               for own, right in zip(taken(loss, data, dtype, cap), exact, strict=True)]
        known[name] = {"bytes": growth(lambda loss=loss: taken(loss, data, dtype, cap)), "loss_off": off[0],
                       "gradient_off": max(off[1:])}
    return known


def timed(found: dict[str, Loss], data: Data, dtype: torch.dtype, cap: float | None,
          rounds: int) -> dict[str, list[float]]:
    """Seconds of each contender in each round, after one for warming up."""
    seconds: dict[str, list[float]] = {name: [] for name in found}
    for round_ in range(rounds + 1):
        for name, loss in found.items():
            began = time.perf_counter()
            taken(loss, data, dtype, cap)
            if round_:
                seconds[name].append(time.perf_counter() - began)
    return seconds


def report(cap: float | None, known: dict[str, dict[str, float]], seconds: dict[str, list[float]]) -> None:
    """Print a table, its times also into `known`."""
    print(f"{'softcap ' + str(cap):<38}{'ms':>8}{'× naive':>9}{'peak, MB':>10}{'÷ naive':>9}{'loss off':>10}"
          f"{'gradients off':>15}")
    for name, fact in known.items():
        fact["ms"] = 1000 * statistics.median(seconds[name])
        fact["times_naive"] = statistics.median(
            first / own for first, own in zip(seconds[NAIVE], seconds[name], strict=True))
        print(f"{name:<38}{fact['ms']:>8.0f}{fact['times_naive']:>9.2f}{fact['bytes'] / 1e6:>10.0f}"
              f"{known[NAIVE]['bytes'] / fact['bytes']:>9.1f}{fact['loss_off']:>10.1e}{fact['gradient_off']:>15.1e}")


def main() -> None:
    """With the softcap of the model and without; the last line is everything as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="micro", choices=PRESETS)
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--rows", type=int, default=4096)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    config, dtype = PRESETS[options.model], getattr(torch, options.dtype)
    generator = torch.Generator().manual_seed(0)
    x_RD = torch.randn(options.rows, config.dim, generator=generator)
    table_VD = torch.randn(config.vocab_size, config.dim, generator=generator) * (3 / config.dim**0.5)
    y_R = torch.randint(config.vocab_size, (options.rows,), generator=generator)
    print(f"{options.model}, {options.rows} rows, D {config.dim}, V {config.vocab_size}, {options.dtype}, "
          f"{torch.get_num_threads()} threads, {hardware.device('cpu').name}, torch {torch.__version__}")
    data, own_rows = (x_RD, table_VD, y_R), chunk_rows(config.vocab_size)
    ways = {cap: contenders(cap, own_rows) for cap in (config.softcap, None)}
    with frugal():    # first, because memory that was kept as free hides what is taken
        known = {cap: facts(found, data, dtype, cap) for cap, found in ways.items()}
    with hoarding():
        for cap, found in ways.items():
            report(cap, known[cap], timed(found, data, dtype, cap, options.rounds))
    print(json.dumps({f"softcap {cap}": fact for cap, fact in known.items()}))


if __name__ == "__main__":
    main()

"""Alternatives for attention and the optimizers' steps: every way on the model's own shapes, in turn.

    python benchmarks/candidates.py [--model goldilocks] [--seq-len 256] [--batch 16] [--rounds 5]

Attention is forward and backward of one layer; AdamW steps the tables, Muon all matrices of the blocks.  A time is the
median of the rounds; the figure behind it is the largest difference of a result over the largest result of the first.
All in one process that keeps freed memory, as training does.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from tinylib import hardware, optim
from tinylib.allocator import hoarding
from tinylib.config import PRESETS, GPTConfig
from tinylib.optim import Muon

Ways = dict[str, Callable[[], list[Tensor]]]
"""Each takes one turn and gives what it came to."""


def attention(config: GPTConfig, batch_size: int, dtype: torch.dtype, kind: str) -> Ways:
    """`scaled_dot_product_attention` on each back end that takes these shapes, and written out."""
    shape = (batch_size, config.n_head, config.seq_len, config.head_dim)
    data = [torch.randn(shape, device=kind, dtype=dtype, requires_grad=True) for _ in range(3)]
    dy_BNTH = torch.randn(shape, device=kind, dtype=dtype)
    hidden_TT = torch.ones(config.seq_len, config.seq_len, dtype=torch.bool, device=kind).triu(1)

    def written(q_BNTH: Tensor, k_BNTH: Tensor, v_BNTH: Tensor) -> Tensor:
        score_BNTT = (q_BNTH @ k_BNTH.mT * config.head_dim**-0.5).masked_fill(hidden_TT, -torch.inf)
        return score_BNTT.softmax(-1) @ v_BNTH

    def sdpa(backend: SDPBackend | None) -> Callable[..., Tensor]:
        def attention(*qkv: Tensor) -> Tensor:
            with sdpa_kernel(list(SDPBackend.__members__.values())[1:] if backend is None else backend):
                return F.scaled_dot_product_attention(*qkv, is_causal=True)
        return attention

    def both(attend: Callable[..., Tensor]) -> Callable[[], list[Tensor]]:
        def turn() -> list[Tensor]:
            y_BNTH = attend(*data)
            return [y_BNTH.detach(), *torch.autograd.grad(y_BNTH, data, dy_BNTH)]
        return turn

    ways = {"written out": written, "written out, compiled": torch.compile(written, dynamic=False),
            "torch chooses": sdpa(None)}
    ways |= {name.lower().replace("_", " "): sdpa(backend) for name, backend in SDPBackend.__members__.items()
             if name in ("MATH", "FLASH_ATTENTION", "EFFICIENT_ATTENTION", "CUDNN_ATTENTION")}
    return {name: both(way) for name, way in ways.items()}


def adamw(config: GPTConfig, kind: str) -> Ways:
    """PyTorch's AdamW on the tables: one tensor after the other, over all of them, in one kernel, compiled."""
    def way(compiled: bool = False, **how: bool) -> Callable[[], list[Tensor]]:
        tables = _weights(config, "embedding", "unembedding", "tied", kind=kind)
        found = torch.optim.AdamW(tables, lr=1e-3, betas=(0.8, 0.95), eps=1e-10, weight_decay=0.0, **how)
        step = torch.compile(found.step) if compiled else found.step

        def turn() -> list[Tensor]:
            step()
            return [table.detach() for table in tables]
        return turn

    return {"single tensor": way(foreach=False), "foreach": way(foreach=True), "fused": way(fused=True),
            "foreach, compiled": way(compiled=True, foreach=True)}


def muon(config: GPTConfig, kind: str) -> Ways:
    """Ours in each precision, matrix by matrix and compiled; PyTorch's own."""
    def way(make: Callable[[list[Tensor]], list[torch.optim.Optimizer]]) -> Callable[[], list[Tensor]]:
        matrices = _weights(config, "matrix", kind=kind)
        found = make(matrices)

        def turn() -> list[Tensor]:
            for optimizer in found:
                optimizer.step()
            return [matrix.detach() for matrix in matrices]
        return turn

    def own(dtype: torch.dtype, apart: bool = False) -> Callable[[], list[Tensor]]:
        return way(lambda all_: [Muon(some, lr=0.02, dtype=dtype) for some in ([[one] for one in all_] if apart
                                                                              else [all_])])

    compiled, eager = torch.compile(optim.newton_schulz, dynamic=False), optim.newton_schulz
    found = {"tinylib, float32": own(torch.float32), "tinylib, float32, matrix by matrix": own(torch.float32, True),
             "tinylib, bfloat16": own(torch.bfloat16),
             "torch.optim.Muon, always bfloat16": way(lambda all_: [torch.optim.Muon(
                 all_, lr=0.02, weight_decay=0.0, adjust_lr_fn="original")])}

    def with_compiled(turn: Callable[[], list[Tensor]]) -> Callable[[], list[Tensor]]:
        def whole() -> list[Tensor]:
            optim.newton_schulz = compiled
            try:
                return turn()
            finally:
                optim.newton_schulz = eager
        return whole

    return found | {f"tinylib, {name}, compiled": with_compiled(own(getattr(torch, name)))
                    for name in ("float32", "bfloat16")}


def _weights(config: GPTConfig, *roles: str, kind: str) -> list[Tensor]:
    """The weights of these roles and their gradients, the same at every call."""
    generator = torch.Generator().manual_seed(0)
    weights = [torch.randn(spec.shape, generator=generator).to(kind).requires_grad_()
               for spec in config.tensors() if spec.role in roles]
    for weight in weights:
        weight.grad = torch.randn(weight.shape, generator=generator).to(kind)
    return weights


def compare(title: str, ways: Ways, kind: str, rounds: int) -> dict[str, list[float]]:
    """Print a line for each way: milliseconds, times the first, difference; a way that can't is left out."""
    results, seconds = {}, {}
    for name, way in ways.items():
        try:
            results[name], seconds[name] = [part.clone() for part in way()], []
        except RuntimeError as error:
            print(f"{title}, {name}: not here ({str(error).splitlines()[0][:60]})")
    for round_ in range(rounds + 1):
        for name, times in seconds.items():
            began = time.perf_counter()
            ways[name]()
            if kind == "cuda":
                torch.cuda.synchronize()
            if round_:
                times.append(time.perf_counter() - began)
    first = next(iter(seconds))
    found = {}
    for name, times in seconds.items():
        off = max(float((own - right).abs().max() / right.abs().max())
                  for own, right in zip(results[name], results[first], strict=True))
        found[name] = [1000 * statistics.median(times),
                       statistics.median(there / own for own, there in zip(times, seconds[first], strict=True)), off]
        print(f"{title + ', ' + name:<56}{found[name][0]:>9.2f} ms{found[name][1]:>7.2f} ×{off:>10.1e}")
    return found


def main() -> None:
    """All three; the last line is everything as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="micro", choices=PRESETS)
    parser.add_argument("--seq-len", type=int, default=256)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    kind = hardware.device().kind
    config = replace(PRESETS[options.model], seq_len=options.seq_len)
    print(f"{options.model}, T {options.seq_len}, B {options.batch}, {torch.get_num_threads()} threads, {kind}, "
          f"torch {torch.__version__}")
    with hoarding():
        parts = {f"attention, {name}": attention(config, options.batch, getattr(torch, name), kind)
                 for name in ("float32", "bfloat16")}
        parts |= {"AdamW": adamw(config, kind), "Muon": muon(config, kind)}
        print(json.dumps({title: compare(title, ways, kind, options.rounds) for title, ways in parts.items()}))


if __name__ == "__main__":
    main()

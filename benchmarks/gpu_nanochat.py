"""Training steps of a checkout of nanochat, of October 2025 or of today, at our shape and batch."""

from __future__ import annotations

import importlib
import sys
from hashlib import sha256
from importlib.util import find_spec
from inspect import signature
from typing import Any

import torch
from gpu_bench import Bench, Row, commit

from tinylib.shards import Batch, Shards


def nanochat(bench: Bench) -> Row:
    """Steps of a checkout of nanochat at our shape, as its base_train.py takes them; micro-batches are ready."""
    if bench.nanochat is None:
        return {"skipped": "no --nanochat CHECKOUT"}
    source = bench.nanochat.resolve() / "nanochat" / "gpt.py"
    if not source.is_file():
        raise FileNotFoundError(f"--nanochat={bench.nanochat} has no nanochat/gpt.py: give the folder of a checkout")
    sys.path.insert(0, str(source.parent.parent))
    theirs, attention = importlib.import_module("nanochat.gpt"), "SDPA"
    if find_spec("nanochat.flash_attention") and importlib.import_module("nanochat.flash_attention").USE_FA3:
        attention = "FlashAttention 3"
    return {"commit": commit(bench.nanochat), "sha256 of gpt.py": sha256(source.read_bytes()).hexdigest()[:12],
            "attention": attention, "rows": [bench.fitting(lambda batch, context=context: nanochat_row(
                bench, theirs, batch, context)) for context in bench.contexts]}


def nanochat_row(bench: Bench, theirs: Any, batch: int, context: int) -> Row:
    """One row; October 2025 has autocast, clipping and two optimizers, today's version none of the three."""
    bench.fresh()
    ours, october = bench.model, not hasattr(theirs, "COMPUTE_DTYPE")
    settings = {"sequence_len": context, "vocab_size": ours.vocab_size, "n_layer": ours.depth, "n_head": ours.n_head,
                "n_kv_head": ours.n_head, "n_embd": ours.dim, "window_pattern": "L"}
    known = signature(theirs.GPTConfig).parameters
    with torch.device("meta"):
        model = theirs.GPT(theirs.GPTConfig(**{name: value for name, value in settings.items() if name in known}))
    model.to_empty(device=bench.kind)
    model.init_weights()
    optimizers = model.setup_optimizers() if hasattr(model, "setup_optimizers") else [model.setup_optimizer()]
    forward = model if bench.compile == "off" else torch.compile(model, dynamic=False)
    x_BT, y_BT = (part.to(bench.kind) for part in Shards(bench.shards).batch(Batch(0, batch, context, seed=0)))
    micro_batches = bench.total // (batch * context)

    def whole() -> None:
        for _ in range(micro_batches):
            with torch.autocast(bench.kind, torch.bfloat16, enabled=bench.kind == "cuda" and october):
                loss = forward(x_BT, y_BT)
            (loss / micro_batches).backward()
        if october:
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
        model.zero_grad(set_to_none=True)

    dt_s, parts = bench.seconds(whole, bench.steps - 2), [*model.named_children(), *model.transformer.named_children()]
    return {"context": context, "batch": batch, "compiled": forward is not model, "dt_s": dt_s,
            **bench.rates(bench.total / dt_s, model.estimate_flops()), "flops_per_token": model.estimate_flops(),
            "peak_gb": bench.peak_gb(), "parameters": sum(weight.numel() for weight in model.parameters()),
            "parameters_by_part": {name: sum(weight.numel() for weight in part.parameters())
                                   for name, part in parts if name != "transformer"}}

"""Tokens per second through forward and backward, against `transformers`' class and the machine's own product rate.

    python benchmarks/forward_backward.py [--model micro] [--seq-len 256] [--batch 16] [--rounds 7]

All contenders run in turn, round after round, so that a machine that slows down slows them all; medians and ratios
to the roofline (the bare matrix products of the same shapes, forward and backward) are printed.
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
from transformers import NanoChatForCausalLM

from tinylib.config import PRESETS, GPTConfig
from tinylib.export import hf_config
from tinylib.model import GPT


def roofline(config: GPTConfig, rows: int) -> Callable[[], None]:
    """Every matrix product of one pass, three times each: forward, gradient of the input, gradient of the weight."""
    shapes = [spec.shape for spec in config.tensors() if spec.name != "wte.weight" or config.tied]
    inputs = {width: torch.randn(rows, width) for shape in shapes for width in shape}
    weights = [torch.randn(shape) for shape in shapes]

    def products() -> None:
        for weight in weights:
            x, dy = inputs[weight.shape[1]], inputs[weight.shape[0]]
            x @ weight.T, dy @ weight, dy.T @ x

    return products


def ours(config: GPTConfig, x_BT: torch.Tensor, *, compiled: bool = False, plain: bool = False) -> Callable[[], None]:
    model = GPT(config)
    if compiled:
        model.compile_for_training()

    def step() -> None:
        model.zero_grad(set_to_none=False)
        if plain:
            F.cross_entropy(model(x_BT[:, :-1]).flatten(0, 1), x_BT[:, 1:].flatten()).backward()
        else:
            model(x_BT[:, :-1], x_BT[:, 1:]).backward()

    return step


def theirs(config: GPTConfig, x_BT: torch.Tensor, *, compiled: bool = False) -> Callable[[], None]:
    model = NanoChatForCausalLM(hf_config(config))
    forward = torch.compile(model) if compiled else model

    def step() -> None:
        model.zero_grad(set_to_none=False)
        logits_BTV = forward(input_ids=x_BT[:, :-1], use_cache=False).logits
        F.cross_entropy(logits_BTV.flatten(0, 1), x_BT[:, 1:].flatten()).backward()

    return step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="micro", choices=PRESETS)
    parser.add_argument("--seq-len", type=int, default=256)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    config = replace(PRESETS[options.model], seq_len=options.seq_len)
    x_BT = torch.randint(config.vocab_size, (options.batch, options.seq_len + 1))
    contenders = {"roofline": roofline(config, options.batch * options.seq_len),
                  "transformers, eager": theirs(config, x_BT),
                  "transformers, compiled": theirs(config, x_BT, compiled=True),
                  "tinylib, plain loss, eager": ours(config, x_BT, plain=True), "tinylib, eager": ours(config, x_BT),
                  "tinylib, compiled": ours(config, x_BT, compiled=True)}
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for round_ in range(options.rounds + 2):
        for name, step in contenders.items():
            began = time.perf_counter()
            step()
            if round_ >= 2:
                seconds[name].append(time.perf_counter() - began)
    rate = {name: options.batch * options.seq_len / statistics.median(times) for name, times in seconds.items()}
    print(f"{options.model}, T {options.seq_len}, B {options.batch}, {torch.get_num_threads()} threads, "
          f"torch {torch.__version__}")
    for name, tokens_per_s in rate.items():
        print(f"{name:<28}{tokens_per_s:>10,.0f} tokens/s{tokens_per_s / rate['roofline']:>8.2f} of the roofline")
    print(json.dumps(rate))


if __name__ == "__main__":
    main()

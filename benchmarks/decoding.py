"""Greedy decoding against `transformers` and bare matrix products, in batches of 1 and 16.

    python benchmarks/decoding.py [--models micro goldilocks] [--tokens 128] [--rounds 5] [--dtype float32]

Contenders take turns; a ratio is the median of the ratios of each round.  Ours and that of `transformers` (`generate`
with its cache) write the same number of tokens after a prompt of 8.  The bare products are those of the same shapes,
with weights as `nn.Linear` has them, and nothing else.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import replace

import torch
from transformers import NanoChatForCausalLM

from tinylib.config import PRESETS
from tinylib.export import hf_config, hf_state_dict
from tinylib.generate import Engine
from tinylib.model import GPT
from tinylib.sampling import Sampling

PROMPT = list(range(1, 9))


def contenders(name: str, rows: int, tokens: int, dtype: torch.dtype) -> dict[str, Callable[[], object]]:
    """Functions that write `tokens` tokens for each of `rows` sequences."""
    config = replace(PRESETS[name], seq_len=256)
    model, generator = GPT(config).eval(), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in model.parameters():
            weight.copy_(torch.randn(weight.shape, generator=generator) * 0.05)
    theirs = NanoChatForCausalLM(hf_config(config)).eval()
    theirs.load_state_dict(hf_state_dict(model), strict=False)
    model, model.dtype, theirs = model.to(dtype), dtype, theirs.to(dtype)
    weights = [part.weight for part in model.modules() if isinstance(part, torch.nn.Linear)]
    inputs = {size: torch.ones(rows, size, dtype=dtype) for size in {weight.shape[1] for weight in weights}}
    ids = torch.tensor([PROMPT] * rows)

    def ours() -> list[list[int]]:
        batch = Engine(model, rows)
        requests = [batch.add(PROMPT, Sampling(temperature=0, max_tokens=tokens)) for _ in range(rows)]
        for _ in range(tokens):
            batch.step()
        return [request.ids[len(PROMPT):] for request in requests]

    def transformers() -> list[list[int]]:
        return theirs.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=tokens,
                               eos_token_id=None)[:, len(PROMPT):].tolist()

    def bare() -> None:
        with torch.no_grad():
            for _ in range(tokens):
                for weight in weights:
                    torch.nn.functional.linear(inputs[weight.shape[1]], weight)

    assert dtype != torch.float32 or ours() == transformers(), "the two write different text"
    return {"tinylib": ours, "transformers": transformers, "bare products": bare}


def main() -> None:
    """Print tokens per second and ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["micro", "goldilocks"])
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--dtype", default="float32")
    options = parser.parse_args()
    print(f"{torch.get_num_threads()} threads, {options.dtype}")
    for name in options.models:
        for rows in (1, 16):
            seconds: dict[str, list[float]] = {}
            runs = contenders(name, rows, options.tokens, getattr(torch, options.dtype))
            for _ in range(options.rounds):
                for label, run in runs.items():
                    began = time.perf_counter()
                    run()
                    seconds.setdefault(label, []).append(time.perf_counter() - began)
            for label, times in seconds.items():
                ratio = statistics.median(theirs / own for theirs, own in zip(times, seconds["tinylib"], strict=True))
                print(f"{name:11} batch {rows:>2} {label:14} {rows * options.tokens / statistics.median(times):>8,.0f} "
                      f"tokens/s{f', tinylib {ratio:.2f} times as fast' if label != 'tinylib' else ''}", flush=True)


if __name__ == "__main__":
    main()

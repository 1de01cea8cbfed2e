"""Sampling with a KV cache, streamed as text."""

from __future__ import annotations

import codecs
from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from tinylib.model import GPT, KVCache

if TYPE_CHECKING:
    from tinylib.tokenizer import Tokenizer


def generate(model: GPT, tokenizer: Tokenizer, prompt: str = "", *, max_tokens: int = 128, temperature: float = 0.8,
             top_k: int | None = 50, seed: int = 0) -> Iterator[str]:
    """Continue `prompt`, yielding text as it comes; ends after `max_tokens` or where the model ends the document.

    The document begins with one BOS token.  `temperature` 0 takes the likeliest token each time.
    """
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    ids = [tokenizer.bos, *tokenizer.encode(prompt)]
    for token in generate_ids(model, ids, max_tokens=max_tokens, temperature=temperature, top_k=top_k, seed=seed):
        if token == tokenizer.bos:
            break
        yield decoder.decode(tokenizer.decode_bytes([token]))
    yield decoder.decode(b"", final=True)


@torch.no_grad()
def generate_ids(model: GPT, ids: list[int], *, max_tokens: int, temperature: float = 0.8, top_k: int | None = 50,
                 seed: int = 0) -> Iterator[int]:
    """Sample up to `max_tokens` ids after `ids`.

    Where the context is full, the newer half of it is read again into an empty cache.
    Raises ValueError for a temperature below zero, a top_k below one or no ids to start from.
    """
    if temperature < 0 or (top_k is not None and top_k < 1) or not ids:
        raise ValueError(f"temperature={temperature} must be 0 or more, top_k={top_k} must be 1 or more or None, "
                         f"and ids={ids} must hold at least one id")
    device = model.wte.weight.device
    generator = torch.Generator(device).manual_seed(seed)
    context = model.config.seq_len
    seen, cache, pending = list(ids), None, list(ids)[-context:]
    for _ in range(max_tokens):
        if cache is None or cache.length + len(pending) > context:
            if cache is not None:
                pending = seen[-max(1, context // 2):]
            cache = KVCache(model.config, 1, context, model.wte.weight)
        logits_V = model(torch.tensor([pending], device=device), cache=cache)[0, -1]
        token = pick(logits_V, temperature, top_k, generator)
        seen.append(token)
        pending = [token]
        yield token


def pick(logits_V: Tensor, temperature: float, top_k: int | None, generator: torch.Generator) -> int:
    """One id drawn from softmax(logits / temperature) over the `top_k` likeliest."""
    if temperature == 0:
        return int(logits_V.argmax())
    if top_k is not None and top_k < len(logits_V):
        lowest = logits_V.topk(top_k).values[-1]
        logits_V = logits_V.masked_fill(logits_V < lowest, -torch.inf)
    probability_V = (logits_V / temperature).softmax(0)
    return int(torch.multinomial(probability_V, 1, generator=generator))

"""Autoregressive sampling with a KV cache, streamed as text."""

from __future__ import annotations

import codecs
from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from tinylib.checks import UserError, check_float, check_int, raise_if
from tinylib.model import GPT, KVCache

if TYPE_CHECKING:
    from tinylib.tokenizer import Tokenizer


def generate(model: GPT, tokenizer: Tokenizer, prompt: str = "", *, max_tokens: int = 128, temperature: float = 0.8,
             top_k: int | None = 50, seed: int = 0) -> Iterator[str]:
    """Sample a continuation of `prompt`, streamed as text; ends after `max_tokens` or where the document ends.

    A BOS token precedes the prompt.  `temperature` 0 is greedy decoding.  Ids of the model that the tokenizer lacks are
    never sampled.  Raises UserError if the model lacks ids of the tokenizer, and as `generate_ids` does.
    """
    check_tokenizer(model, tokenizer)
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    ids = [tokenizer.bos, *tokenizer.encode(prompt)]
    for token in generate_ids(model, ids, max_tokens=max_tokens, temperature=temperature, top_k=top_k, seed=seed,
                              vocab_size=tokenizer.vocab_size):
        if token == tokenizer.bos:
            break
        yield decoder.decode(tokenizer.decode_bytes([token]))
    yield decoder.decode(b"", final=True)


def check_tokenizer(model: GPT, tokenizer: Tokenizer) -> None:
    """Raise UserError if `tokenizer` has ids that `model` lacks, so it is another model's."""
    if tokenizer.vocab_size > model.config.vocab_size:
        raise UserError(f"the tokenizer has {tokenizer.vocab_size} ids and the model {model.config.vocab_size}: use "
                        "the tokenizer of the model's own run")


@torch.no_grad()
def generate_ids(model: GPT, ids: list[int], *, max_tokens: int, temperature: float = 0.8, top_k: int | None = 50,
                 seed: int = 0, vocab_size: int | None = None) -> Iterator[int]:
    """Sample `max_tokens` ids below `vocab_size` (None: the model's) after `ids`, with a KV cache.

    When the context is full, a new cache is filled with the newer half of it.  Raises ConfigError for a temperature
    below zero, a top_k below one, a negative max_tokens, or no ids to start from.
    """
    raise_if("generate", [
        check_float("temperature", temperature, 0), None if top_k is None else check_int("top_k", top_k),
        check_int("max_tokens", max_tokens, least=0),
        None if ids else "ids is empty: start from at least one id, such as the tokenizer's bos"])
    device = model.device
    generator = torch.Generator(device).manual_seed(seed)
    context = model.config.seq_len
    seen, cache, pending = list(ids), None, list(ids)[-context:]
    for _ in range(max_tokens):
        if cache is None or cache.length + len(pending) > context:
            if cache is not None:
                pending = seen[-max(1, context // 2):]
            cache = KVCache(model, 1, context)
        logits_V = model(torch.tensor([pending], device=device), cache=cache)[0, -1, :vocab_size]
        token = pick(logits_V, temperature, top_k, generator)
        seen.append(token)
        pending = [token]
        yield token


def pick(logits_V: Tensor, temperature: float, top_k: int | None, generator: torch.Generator) -> int:
    """Top-k sampling: one id from softmax(logits / temperature) over exactly the `top_k` largest logits (None: all)."""
    if temperature == 0:
        return int(logits_V.argmax())
    if top_k is not None and top_k < len(logits_V):
        largest = logits_V.topk(top_k)
        logits_V = torch.full_like(logits_V, -torch.inf).scatter(0, largest.indices, largest.values)
    probability_V = (logits_V / temperature).softmax(0)
    return int(torch.multinomial(probability_V, 1, generator=generator))

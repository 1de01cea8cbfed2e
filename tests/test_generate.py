"""Generation with a cache against generation without."""

from __future__ import annotations

import pytest
import torch

from tinylib.generate import generate, generate_ids
from tinylib.model import GPT
from tinylib.tokenizer import Tokenizer


def test_generation_with_a_cache_is_generation_without(tiny_shards, tiny) -> None:
    model, tokenizer = GPT(tiny.model), Tokenizer.load(tiny_shards / "tokenizer")
    for weight in model.parameters():
        weight.data.normal_(0, 0.3, generator=torch.Generator().manual_seed(1))
    cached = list(generate_ids(model, [5, 6, 7], max_tokens=29, temperature=0))
    ids = [5, 6, 7]
    for _ in range(29):
        ids.append(int(model(torch.tensor([ids]))[0, -1].argmax()))
    assert cached == ids[3:]
    assert len(list(generate_ids(model, [5], max_tokens=100, seed=1))) == 100, "it goes on past the context"
    text = "".join(generate(model, tokenizer, "Return", max_tokens=20, seed=4))
    assert text == "".join(generate(model, tokenizer, "Return", max_tokens=20, seed=4)) != ""
    with pytest.raises(ValueError, match="temperature=-1"):
        next(generate_ids(model, [1], max_tokens=1, temperature=-1))

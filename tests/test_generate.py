"""Sampling: with a KV cache as without, and from exactly the top k."""

from __future__ import annotations

import pytest
import torch
from helpers import randomised

from tinylib.generate import generate, generate_ids, pick
from tinylib.tokenizer import Tokenizer


def test_generation_with_a_cache_is_generation_without(tiny_shards, tiny) -> None:
    model, tokenizer = randomised(tiny.model), Tokenizer.load(tiny_shards / "tokenizer")
    cached = list(generate_ids(model, [5, 6, 7], max_tokens=29, temperature=0))
    ids = [5, 6, 7]
    for _ in range(29):
        ids.append(int(model(torch.tensor([ids]))[0, -1].argmax()))
    assert cached == ids[3:]
    assert len(list(generate_ids(model, [5], max_tokens=100, seed=1))) == 100, "sampling continues past the context"
    text = "".join(generate(model, tokenizer, "Return", max_tokens=20, seed=4))
    assert text == "".join(generate(model, tokenizer, "Return", max_tokens=20, seed=4)) != ""
    with pytest.raises(ValueError, match="temperature=-1"):
        next(generate_ids(model, [1], max_tokens=1, temperature=-1))


@pytest.mark.parametrize("top_k", [1, 2, 5])
def test_top_k_samples_from_exactly_k_ids_though_their_logits_tie(top_k: int) -> None:
    logits_V, generator = torch.tensor([0.0, 3.0, 3.0, 3.0, 3.0, 1.0]), torch.Generator().manual_seed(0)
    drawn = {pick(logits_V, 1.0, top_k, generator) for _ in range(400)}
    assert len(drawn) == top_k and drawn <= {1, 2, 3, 4, 5}


def test_top_k_keeps_the_probabilities_of_the_softmax_over_the_largest() -> None:
    logits_V, generator = torch.tensor([2.0, -1.0, 1.0, 0.5]), torch.Generator().manual_seed(0)
    counts_V = torch.bincount(torch.tensor([pick(logits_V, 0.5, 2, generator) for _ in range(4000)]), minlength=4)
    expected = torch.tensor([4.0, 2.0]).softmax(0)
    assert counts_V[[1, 3]].tolist() == [0, 0]
    assert (counts_V[[0, 2]] / 4000).tolist() == pytest.approx(expected.tolist(), abs=0.02)

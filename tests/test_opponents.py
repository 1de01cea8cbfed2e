"""Baselines on texts where their bits are known, and paired intervals."""

from __future__ import annotations

import lzma
import math

import numpy as np
import pytest
import torch

from tinylib import evaluate, opponents
from tinylib.checks import UserError
from tinylib.ngram import KneserNey
from tinylib.shards import Shards

TEXTS = ["Return the name of number 7 as a list", "größe", "else raise ValueError. " * 3, *["the sum of a list"] * 20]


def test_n_grams_read_each_text_from_its_bos(tiny_shards) -> None:
    shards = Shards(tiny_shards)
    tokenizer, model = shards.tokenizer, KneserNey(shards.ids(), shards.vocab_size)
    alone = [float(model.bits(np.array([tokenizer.bos, *tokenizer.encode(text)])).sum()) for text in TEXTS]
    found = opponents.ngram_bits(model, tokenizer, TEXTS)
    assert found[0] == pytest.approx(alone[0])
    assert found[:3] == pytest.approx(alone[:3], rel=0.05)    # the end of the text before stands in the context too


def test_an_xz_stream_adds_up_to_the_compressed_file() -> None:
    whole = "".join(f"{text}\n\n" for text in TEXTS).encode()
    empty = len(lzma.compress(b"", preset=9))
    assert opponents.xz_stream_bits(TEXTS).sum() == 8 * (len(lzma.compress(whole, preset=9)) - empty)
    assert opponents.xz_stream_bits(TEXTS, [TEXTS[0]]).sum() < opponents.xz_stream_bits(TEXTS).sum()
    assert opponents.xz_bits(TEXTS)[1] == 8 * len(lzma.compress("größe".encode(), preset=9))


@pytest.mark.parametrize("sizes", [[5], [1, 1], [1000, *[1] * 30], [1] * 7, [3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5]])
def test_groups_are_neighbors_and_none_is_empty(sizes) -> None:
    groups = opponents.grouped(sizes)
    assert groups[0] == 0 and (np.diff(groups) >= 0).all() and (np.diff(groups) <= 1).all()
    assert groups[-1] < opponents.GROUPS


def test_baselines_of_a_run(tiny_shards) -> None:
    tokenizer, training, texts = (Shards(tiny_shards).tokenizer, Shards(tiny_shards).texts(),
                                  Shards(tiny_shards, "val").texts())
    sizes = [len(text.encode()) for text in texts]
    found = opponents.baselines(tokenizer, texts, training)
    tokens = sum(len(tokenizer.encode(text)) for text in texts)
    assert found["uniform"].sum() == pytest.approx(tokens * math.log2(tokenizer.vocab_size))
    ngram = "5-gram, Kneser–Ney"
    assert found[ngram].sum() < found["unigram"].sum() < found["uniform"].sum()
    table = opponents.against(found[ngram], found, sizes)
    assert table.index.tolist() == list(found)
    assert table.bits_per_byte.tolist() == pytest.approx([bits.sum() / sum(sizes) for bits in found.values()])
    assert table.loc[ngram, ["difference", "low", "high"]].tolist() == [0, 0, 0]
    assert table.high["unigram"] < 0
    assert (table.low <= table.difference).all() and (table.difference <= table.high).all()


def test_the_interval_of_a_stream_is_that_of_its_groups() -> None:
    sizes, theirs = np.arange(1, 41), np.linspace(10, 20, opponents.GROUPS)
    mine = 2.0 * sizes
    groups = [np.flatnonzero(opponents.grouped(sizes) == number) for number in range(opponents.GROUPS)]
    apart = [(mine[group].sum() - theirs[number]) / sizes[group].sum() for number, group in enumerate(groups)]
    row = opponents.against(mine, {"stream": theirs}, sizes).loc["stream"]
    assert (row.low, row.high) == pytest.approx(evaluate.t_interval(apart))
    with pytest.raises(UserError, match="compare on two or more"):
        opponents.against([1.0], {"stream": np.array([1.0])}, [1])


def test_the_weights_are_charged(tiny) -> None:
    model = torch.nn.Linear(3, 5, bias=False)
    assert opponents.with_weights(model, bits=100, size=20) == (100 + 15 * 16) / 20


@pytest.mark.parametrize("text, training", [("abcxabcd", "zabcdz"), ("aaaa", "aaa"), ("x", "y"), ("", "y")])
def test_the_longest_copy_is_that_of_all_runs(text, training) -> None:
    runs = [text[start:end] for start in range(len(text)) for end in range(start + 1, len(text) + 1)]
    longest = max((len(run) for run in runs if run in training), default=0)
    found = opponents.longest_copy(text, training)
    assert len(found) == longest and found in training

"""Bits per byte against a computation by hand."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from helpers import randomised

from tinylib import evaluate
from tinylib.checks import UserError
from tinylib.corpus import Document
from tinylib.evaluate import bits_per_byte, score
from tinylib.shards import Shards, build
from tinylib.tokenizer import Tokenizer


def test_bits_per_byte_is_what_the_logits_say(tiny_shards, tiny) -> None:
    shards = Shards(tiny_shards, "val")
    model = randomised(tiny.model)
    bits, count = 0.0, 0
    with torch.no_grad():
        for x_BT, y_BT in shards.in_order(32, batch_size=1):
            chances = model(x_BT)[0].log_softmax(-1)
            for place, target in enumerate(y_BT[0].tolist()):
                text = b"" if target in (-1, shards.tokenizer.bos) else shards.tokenizer.decode_bytes([target])
                count += len(text)
                bits -= float(chances[place, target]) / math.log(2) if text else 0
    assert bits_per_byte(model, shards) == pytest.approx(bits / count, rel=1e-5)
    assert bits_per_byte(model, shards, batch_size=3) == pytest.approx(bits / count, rel=1e-5)


def test_tokens_without_text_are_an_error_and_windows_may_be_longer_than_the_text(tiny, tmp_path) -> None:
    tokenizer = Tokenizer.load(f"{tiny.data}/tokenizer")
    shards = build({"train": ["a"]}, tokenizer, tmp_path / "shards")
    model = randomised(replace(tiny.model, seq_len=64)).eval()
    scored = score(model, shards)
    assert (scored.tokens, scored.bytes) == (1, 1) and math.isfinite(scored.bits_per_byte)
    with pytest.raises(UserError, match="the evaluated tokens hold no text: evaluate more of them"):
        replace(scored, bytes=0).bits_per_byte  # noqa: B018


def test_a_masked_batch_adds_nothing(tiny_shards, tiny, monkeypatch) -> None:
    model, shards = randomised(tiny.model).eval(), Shards(tiny_shards, "val")
    batches = list(shards.in_order(32))
    masked = (batches[0][0], torch.full_like(batches[0][1], -1))
    expected = score(model, shards)
    monkeypatch.setattr(shards, "in_order", lambda *_args, **_kwargs: [masked, *batches, masked])
    assert score(model, shards) == expected
    monkeypatch.setattr(shards, "in_order", lambda *_args, **_kwargs: [masked])
    nothing = score(model, shards)
    with pytest.raises(UserError, match="has no targets: evaluate more of it"):
        nothing.loss  # noqa: B018
    with pytest.raises(UserError, match="hold no text: evaluate more of them"):
        nothing.bits_per_byte  # noqa: B018


def test_token_bits_need_text_and_the_models_tokenizer(tiny_shards, tiny) -> None:
    tokenizer = Tokenizer.load(tiny_shards / "tokenizer")
    assert evaluate.token_bits(randomised(tiny.model), tokenizer, [""]).empty
    with pytest.raises(UserError, match="use the tokenizer of the model's own run"):
        evaluate.token_bits(randomised(replace(tiny.model, vocab_size=260)), tokenizer, ["a"])


def test_token_bits_are_those_of_each_window_read_alone(tiny_shards, tiny) -> None:
    tokenizer, model = Tokenizer.load(tiny_shards / "tokenizer"), randomised(tiny.model)
    texts, seq_len = ["Return the mean. " * 12, "", "größe"], tiny.model.seq_len
    table = evaluate.token_bits(model, tokenizer, texts, batch_size=3)
    expected = []
    for document, text in enumerate(texts):
        ids = [tokenizer.bos, *tokenizer.encode(text)]
        for start in range(0, len(ids) - 1, seq_len):
            window = torch.tensor(ids[start:start + seq_len + 1])
            with torch.no_grad():
                chances = model(window[None, :-1])[0].log_softmax(-1)
            expected += [(document, start + at, at + 1, len(tokenizer.decode_bytes([token])),
                          -float(chances[at, token]) / math.log(2)) for at, token in enumerate(window[1:].tolist())]
    assert len(expected) > seq_len
    assert table.to_numpy() == pytest.approx(torch.tensor(expected, dtype=torch.float64).numpy(), rel=1e-4)
    assert table.groupby("document")["bytes"].sum().to_dict() == {0: len(texts[0].encode()), 2: len("größe".encode())}


def test_the_bootstrap_agrees_with_the_formula_for_a_mean() -> None:
    values = torch.randn(400, generator=torch.Generator().manual_seed(0)).double().numpy() + 3
    low, high = evaluate.bootstrap(values, [1.0] * 400)
    reach = 1.96 * float(values.std()) / 400**0.5
    assert (low, high) == pytest.approx((values.mean() - reach, values.mean() + reach), abs=0.1 * reach)
    # A document of twice the size has twice the weight.
    assert evaluate.bootstrap([4.0, 4.0], [4.0, 1.0])[1] == 4.0 and evaluate.bootstrap([1.0], [2.0]) == (0.5, 0.5)


def test_students_interval_holds_the_mean_as_often_as_it_says() -> None:
    draws = torch.randn(2000, 3, generator=torch.Generator().manual_seed(0)).tolist()
    held = sum(low < 0 < high for low, high in map(evaluate.t_interval, draws)) / len(draws)
    assert 0.93 < held < 0.97
    with pytest.raises(ValueError, match="two or more"):
        evaluate.t_interval([1.0])


def test_groups_are_those_of_the_documents_alone(tiny_shards, tiny) -> None:
    tokenizer, model = Tokenizer.load(tiny_shards / "tokenizer"), randomised(tiny.model)
    documents = [Document("a.b", "Return the mean."), Document("a", ""), Document("x.jsonl:3", "f(1) = 2 + 3"),
                 Document("c", "Return the sum of the values in a list.", "a"), Document("a.c", "größe")]
    table = evaluate.by_document(model, tokenizer, documents)
    tokens = evaluate.token_bits(model, tokenizer, [document.text for document in documents])
    assert table["name"].tolist() == ["a.b", "x.jsonl:3", "c", "a.c"]    # nothing of an empty document is counted
    groups = evaluate.by_group(table, "source")
    assert groups.index.tolist() == ["a", "x"] and groups["documents"].tolist() == [3, 1]
    whose = tokens.document.isin([0, 3, 4])
    assert groups.bits_per_byte["a"] == pytest.approx(tokens[whose].bits.sum() / tokens[whose].bytes.sum())
    assert groups.low["a"] < groups.bits_per_byte["a"] < groups.high["a"]
    assert (groups.low["x"], groups.high["x"]) == (0, math.inf)
    assert evaluate.by_group(table, "kind")["documents"].to_dict() == {"prose": 3, "code": 1}

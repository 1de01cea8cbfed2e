"""Bits per byte against a computation by hand."""

from __future__ import annotations

import math

import pytest
import torch

from tinylib import evaluate
from tinylib.evaluate import bits_per_byte
from tinylib.model import GPT
from tinylib.shards import Shards
from tinylib.tokenizer import Tokenizer


def test_bits_per_byte_is_what_the_logits_say(tiny_shards, tiny) -> None:
    shards = Shards(tiny_shards, "val")
    model = GPT(tiny.model)
    for weight in model.parameters():
        weight.data.normal_(0, 0.3)
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


def test_document_bits_count_every_byte_once(tiny_shards, tiny) -> None:
    tokenizer, model = Tokenizer.load(tiny_shards / "tokenizer"), GPT(tiny.model)
    texts = ["Return the sum.", "größe " * 60, "x"]
    table = evaluate.document_bits(model, tokenizer, texts, batch_size=2)
    assert table["bytes"].tolist() == [len(text.encode()) for text in texts]
    assert table["tokens"].tolist() == [len(tokenizer.encode(text)) for text in texts]
    assert table["bits"].tolist() == pytest.approx((table["tokens"] * math.log2(320)).tolist(), rel=0.01)
    assert evaluate.xz_stream_bits(texts, ["größe " * 60]) < evaluate.xz_stream_bits(texts)

"""Checkers of notebook 05: evaluation."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from tinylib.course.exercises import checker, given
from tinylib.tokenizer import Tokenizer


@checker("05.1")
def bits_per_byte(answer: Callable[[float, int, int], float]) -> None:
    """Bits per byte from the mean loss in nats per token."""
    for loss, tokens, size in ((math.log(256), 1000, 2000), (5.2, 240, 855), (3.1, 10, 47)):
        found, right = given(answer(loss, tokens, size)), loss * tokens / size / math.log(2)
        assert not math.isclose(found, loss * tokens / size), "that is nats per byte: a bit is ln 2 nats"
        assert not math.isclose(found, loss / math.log(2)), "that is bits per token: how many tokens make a byte?"
        assert math.isclose(found, right, rel_tol=1e-6), \
            f"{tokens} tokens of {loss:.3f} nats in {size} bytes are {right:.4f} bits per byte, not {found:.4f}"


@checker("05.2")
def chances(answer: Callable[[list[float], float], list[float]]) -> None:
    """Softmax with temperature; 0 means greedy."""
    for logits, temperature in (([1.0, 2.0, 3.0], 1.0), ([1.0, 2.0, 3.0], 0.5), ([0.3, -0.2, 0.0, 5.0], 4.0),
                                ([900.0, 1000.0], 1.0), ([1.0, 7.0, 3.0], 0)):
        found = [float(chance) for chance in given(answer(list(logits), temperature))]
        scaled = np.subtract(logits, max(logits))
        weights = np.exp(scaled / temperature) if temperature else (scaled == 0).astype(float)
        right = weights / weights.sum()
        assert len(found) == len(right) and abs(sum(found) - 1) < 1e-4, \
            f"for {logits} at temperature {temperature:g}, {found} is not one probability a logit that add up to 1"
        assert np.allclose(found, right, atol=1e-4), (
            f"for {logits} at temperature {temperature:g} the probabilities are {right.round(4).tolist()}, not "
            f"{np.round(found, 4).tolist()}: divide the logits, not the probabilities; 0 is for the largest logit only")


@checker("05.3")
def uniform_bits_per_byte(answer: Callable[[Tokenizer, str], float]) -> None:
    """Bits per byte of a model that gives every token the same probability."""
    text = "Return the sum of the values. Größe und Maß: größer, am größten. Return the mean of the values."
    for vocab_size in (270, 290):
        tokenizer = Tokenizer.train([text], vocab_size)
        for sample in (text, "Return", "Maß"):
            found, tokens = given(answer(tokenizer, sample)), len(tokenizer.encode(sample))
            bits, size = tokens * math.log2(tokenizer.vocab_size), len(sample.encode())
            assert not math.isclose(found, bits / len(sample)) or sample.isascii(), \
                f"that is bits per character: in UTF-8 {sample!r} has more bytes than characters"
            assert math.isclose(found, bits / size, rel_tol=1e-6), (
                f"{tokens} tokens out of {tokenizer.vocab_size} in {size} bytes are {bits / size:.4f} bits per byte, "
                f"not {found:.4f}")

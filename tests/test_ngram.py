"""The Kneser–Ney model: equal to the definition written with dictionaries, and a distribution after any context."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from tinylib.ngram import KneserNey

V = 6


@pytest.fixture(scope="module")
def text() -> np.ndarray:
    return np.random.default_rng(0).choice(V, 300, p=[0.3, 0.25, 0.2, 0.15, 0.06, 0.04])


def by_definition(training: list[int], ids: list[int], order: int) -> list[float]:
    """Bits of every id but the first, with counts in dictionaries."""
    counts: dict[int, Counter[tuple[int, ...]]] = {}
    for n in range(1, order + 1):
        grams = [tuple(training[at:at + n]) for at in range(len(training) - n + 1)]
        longer = {tuple(training[at:at + n + 1]) for at in range(len(training) - n)}
        counts[n] = Counter(grams) if n == order else Counter(gram[1:] for gram in longer)

    def probability(token: int, before: tuple[int, ...], n: int) -> float:
        if n == 0:
            return 1 / V
        context = before[len(before) - n + 1:]
        after = {gram: count for gram, count in counts[n].items() if gram[:-1] == context}
        lower = probability(token, before, n - 1)
        once, twice = (max(1, list(counts[n].values()).count(number)) for number in (1, 2))
        discount = once / (once + 2 * twice)
        above = max(after.get((*context, token), 0) - discount, 0)
        return (above + discount * len(after) * lower) / sum(after.values()) if after else lower

    return [-np.log2(probability(ids[at], tuple(ids[:at]), min(order, at + 1))) for at in range(1, len(ids))]


@pytest.mark.parametrize("order", [1, 2, 3, 5])
def test_bits_are_those_of_the_definition(text, order) -> None:
    ids = np.random.default_rng(1).choice(V, 60)
    found = KneserNey(text, V, order).bits(ids)
    assert found == pytest.approx(by_definition(text.tolist(), ids.tolist(), order), rel=1e-12)


@pytest.mark.parametrize("context", [[0], [1, 2, 3], [5, 5, 5, 5, 5], [4, 0, 4, 0, 1, 0]])
def test_probabilities_sum_to_one(text, context) -> None:
    model = KneserNey(text, V)
    assert sum(2 ** -model.bits(np.array([*context, token]))[-1] for token in range(V)) == pytest.approx(1)


def test_what_never_occurred_has_bits_too(text) -> None:
    model = KneserNey(text[text != 5], V)
    assert np.isfinite(model.bits(np.array([5, 5, 0, 5]))).all()

"""Checkers of notebook 05: evaluation."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from tinylib.course.exercises import checker, given
from tinylib.evaluate import bootstrap
from tinylib.ngram import KneserNey


@checker("05.1")
def paired_interval(answer: Callable[[np.ndarray, np.ndarray, np.ndarray], tuple[float, float]]) -> None:
    """Bootstrap interval of the difference of two models, paired by document."""
    generator = np.random.default_rng(0)
    sizes = generator.integers(100, 3000, 60)
    ours = sizes * generator.uniform(1, 3, 60)    # documents differ far more than the two models do
    theirs = ours + sizes * generator.normal(0.02, 0.05, 60)
    low, high = map(float, given(answer(ours.copy(), theirs.copy(), sizes.copy())))
    right, alone = bootstrap(ours - theirs, sizes), bootstrap(ours, sizes)
    width = right[1] - right[0]
    assert low < high, f"the interval ends where it begins, or before: {low:.4f} to {high:.4f}"
    assert high - low < 0.5 * (alone[1] - alone[0]), (
        f"your interval is {high - low:.3f} wide. Drawn together, what makes a document hard for both models cancels: "
        "draw the documents once, and take both models' bits of the same ones")
    assert abs(low - right[0]) < 0.35 * width and abs(high - right[1]) < 0.35 * width, (
        f"for ours less theirs, the middle 95% of many draws is about {right[0]:.4f} to {right[1]:.4f}, not "
        f"{low:.4f} to {high:.4f}: each draw is Σ (ours - theirs) / Σ sizes of as many documents as there are")


@checker("05.2")
def bigram_bits(answer: Callable[[list[int], list[int], int], Sequence[float]]) -> None:
    """Kneser–Ney of order 2, equal to the library's."""
    generator = np.random.default_rng(1)
    for vocab_size, weights in ((4, [0.4, 0.3, 0.2, 0.1]), (7, [0.3, 0.2, 0.2, 0.1, 0.1, 0.05, 0.05])):
        training = generator.choice(vocab_size, 400, p=weights)
        training = np.where(training == vocab_size - 1, 0, training)    # one token never occurs
        text = generator.integers(0, vocab_size, 50)
        found = np.asarray(given(answer(training.tolist(), text.tolist(), vocab_size)), dtype=float)
        right = KneserNey(training, vocab_size, order=2).bits(text)
        assert found.shape == right.shape, f"{len(text)} tokens have {len(right)} predictions, not {found.size}"
        assert np.isfinite(found).all(), "a token that never occurred has a probability too: D·K/N/V is left for it"
        assert not np.allclose(found, right * np.log(2)), "these are nats: use log2"
        worst = int(np.abs(found - right).argmax())
        assert np.allclose(found, right, atol=1e-6), (
            f"token {text[worst + 1]} after {text[worst]} should cost {right[worst]:.4f} bits, not {found[worst]:.4f}. "
            "In the lower order n counts different tokens before it, not occurrences; each order has its own D")


@checker("05.3")
def nucleus(answer: Callable[[list[float], float], Sequence[float]]) -> None:
    """Top-p sampling: the smallest set of likeliest tokens that holds p of the probability."""
    for p, chances, right in ((0.7, [0.1, 0.5, 0.3, 0.1], [0, 0.625, 0.375, 0]),
                              (0.4, [0.1, 0.5, 0.3, 0.1], [0, 1, 0, 0]),
                              (1.0, [0.25, 0.5, 0.25], [0.25, 0.5, 0.25]),
                              (0.85, [0.05, 0.2, 0.05, 0.6, 0.1], [0, 0.2 / 0.9, 0, 0.6 / 0.9, 0.1 / 0.9])):
        found = np.asarray(given(answer(list(chances), p)), dtype=float)
        assert found.shape == (len(chances),), f"return {len(chances)} probabilities, 0 for those that are left out"
        assert abs(found.sum() - 1) < 1e-6, f"the probabilities that stay must add up to 1, not to {found.sum():.4f}"
        assert np.allclose(found, right, atol=1e-6), (
            f"for p={p} and {chances} it is {np.round(right, 4).tolist()}, not {found.round(4).tolist()}: take the "
            "likeliest first; the token with which the sum reaches p belongs to the set")


@checker("05.4")
def decode(answer: Callable[[Callable[[Tensor], tuple[Tensor, Tensor, Tensor]], Iterable[Tensor]],
                            Iterator[Tensor]]) -> None:
    """Causal attention one token at a time, with a cache of keys and values."""
    generator, rows = torch.Generator().manual_seed(0), []
    x_TD, weight = torch.randn(7, 8, generator=generator), torch.randn(3, 8, 8, generator=generator)

    def project(x_D: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        rows.append(tuple(x_D.shape))
        q, k, v = weight @ x_D
        return q, k, v

    found = list(given(answer(project, iter(x_TD))))
    assert len(found) == len(x_TD), f"{len(x_TD)} tokens came in and {len(found)} outputs came out: yield one for each"
    assert rows == [(8,)] * len(x_TD), (
        f"project was called {len(rows)} times for {len(x_TD)} tokens: call it once for each, and keep the keys and "
        "values of those before")
    q, k, v = (x_TD @ matrix.T for matrix in weight)
    right = F.scaled_dot_product_attention(q[None], k[None], v[None], is_causal=True)[0]
    wrong = [at for at, row in enumerate(found) if not torch.allclose(row, right[at], atol=1e-4)]
    assert not wrong, (f"the output of token {wrong[0]} is not that of causal attention: softmax(q·kᵀ / √D) over the "
                       f"{wrong[0] + 1} keys so far, its own among them, times the values")


@checker("05.5")
def counting_curve(answer: Callable[[np.ndarray, np.ndarray, int, Sequence[int]], Sequence[float]]) -> None:
    """Bits per token of the 5-gram model by the amount of training text."""
    generator = np.random.default_rng(2)
    training, text = generator.integers(0, 9, (2, 4000)) // generator.integers(1, 5, (2, 4000))
    sizes = [100, 1000, 4000]
    found = np.asarray(given(answer(training, text[:500], 9, sizes)), dtype=float)
    right = [float(KneserNey(training[:size], 9).bits(text[:500]).mean()) for size in sizes]
    assert found.shape == (len(sizes),), f"return one number for each of the {len(sizes)} sizes"
    assert np.allclose(found, right, atol=1e-6), (
        f"after {sizes} tokens it needs {np.round(right, 3).tolist()} bits a token, not {found.round(3).tolist()}: "
        "count the first tokens of the training text, then take the mean of bits(held-out text)")

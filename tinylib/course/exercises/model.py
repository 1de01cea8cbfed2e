"""Checkers of notebook 03: model."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from tinylib.course.exercises import checker, given
from tinylib.course.exercises.tying import my_experiment
from tinylib.loss import softcap


@checker("03.1")
def loss_gradient(answer: Callable[[Tensor, Tensor, float], Tensor]) -> None:
    """The gradient of the mean cross-entropy of softcapped logits with respect to the raw logits, without autograd."""
    generator = torch.Generator().manual_seed(0)
    for rows, vocab_size, cap in ((5, 7, 15.0), (3, 40, 2.0)):
        raw = 4 * torch.randn(rows, vocab_size, generator=generator)
        y = torch.randint(vocab_size, (rows,), generator=generator)
        leaf = raw.clone().requires_grad_()
        F.cross_entropy(softcap(leaf, cap), y).backward()
        with torch.no_grad():
            found = given(answer(raw.clone(), y.clone(), cap))
        assert isinstance(found, Tensor), f"return a tensor, not {type(found).__name__}"
        assert found.shape == raw.shape, f"logits of shape {tuple(raw.shape)} became {tuple(found.shape)}"
        slope = 1 - torch.tanh(raw / cap) ** 2
        for mistake, hint in ((leaf.grad / slope, "the slope of the softcap is missing"),
                              (rows * leaf.grad, "a mean over R rows divides by R"),
                              (-leaf.grad, "the sign is wrong: a gradient points uphill")):
            assert not torch.allclose(found, mistake, atol=1e-6), hint
        worst = float((found - leaf.grad).abs().max())
        assert worst < 1e-5, f"{rows} rows, {vocab_size} tokens, cap {cap:g}: off from autograd's by up to {worst:.1e}"


@checker("03.2")
def least_loss(answer: Callable[[int, float], float]) -> None:
    """The least cross-entropy that a softcap allows."""
    for vocab_size, cap in ((3072, 5.0), (24_576, 15.0), (3072, 2.0), (16, 0.5)):
        logits = torch.full((vocab_size,), -1e9, dtype=torch.float64)
        logits[0] = 1e9
        right, found = -float(softcap(logits, cap).log_softmax(0)[0]), given(answer(vocab_size, cap))
        one_sided = math.log1p((vocab_size - 1) * math.exp(-cap))
        assert not math.isclose(found, one_sided, rel_tol=1e-4) or math.isclose(right, one_sided, rel_tol=1e-4), \
            "the logits of the wrong tokens need not stop at 0: the softcap lets them go down to -softcap"
        assert math.isclose(found, right, rel_tol=1e-4, abs_tol=1e-6), \
            f"with {vocab_size} tokens and a softcap of {cap:g} the least loss is {right:.6g} nats, not {found:.6g}"


@checker("03.3")
def nearest_orthogonal(answer: Callable[[Tensor], Tensor]) -> None:
    """The orthogonal matrix nearest to a gradient, U·Vᵀ of its SVD."""
    generator = torch.Generator().manual_seed(0)
    for shape in ((12, 5), (5, 12), (8, 8)):
        gradient = torch.randn(shape, generator=generator)
        found = given(answer(gradient.clone()))
        assert tuple(found.shape) == shape, f"a gradient of shape {shape} became {tuple(found.shape)}"
        singular = torch.linalg.svdvals(found)
        assert (singular - 1).abs().max() <= 1e-3, \
            f"its singular values run from {singular.min():.3g} to {singular.max():.3g}: each must be 1"
        # Over all matrices with singular values 1, U·Vᵀ has the largest product with the gradient: their sum.
        reached, possible = float((found * gradient).sum()), float(torch.linalg.svdvals(gradient).sum())
        assert reached >= 0.999 * possible, ("its singular values are 1, but its direction is not the gradient's: only "
                                             f"{reached / possible:.0%} of the possible descent")


@checker("03.4")
def sees_the_future(answer: Callable[[Callable[[Tensor], Tensor], Tensor, int], bool]) -> None:
    """A test that finds every model whose logits depend on later tokens, and no other."""
    generator, T, V, D = torch.Generator().manual_seed(0), 12, 11, 8
    wte, head = (torch.randn(V, D, generator=generator) for _ in range(2))
    cause = torch.ones(T, T).tril()
    hole = cause.clone()
    hole[5, 6] = 1.0

    def mixed(weights: Tensor) -> Callable[[Tensor], Tensor]:
        return lambda x_BT: (weights / weights.sum(-1, keepdim=True)) @ wte[x_BT] @ head.T

    def view(x_BT: Tensor) -> Tensor:
        heads = wte[x_BT].view(len(x_BT), 2, -1, D // 2)
        return (cause / cause.sum(-1, keepdim=True) @ heads).transpose(1, 2).flatten(2) @ head.T

    x_BT = torch.randint(V, (2, T), generator=generator)
    for name, forward, wrong in (
            ("a causal model", mixed(cause), False), ("one that sees only itself", lambda x: wte[x] @ head.T, False),
            ("one that sees everything", mixed(torch.ones(T, T)), True), ("one that cuts heads by .view", view, True),
            ("one whose mask lets each token see the next", mixed(torch.ones(T, T).tril(1)), True),
            ("one whose mask has a hole in the middle", mixed(hole), True)):
        found = given(answer(forward, x_BT.clone(), V))
        assert found == wrong, f"{name} {'was not' if wrong else 'was'} found to see later tokens"


checker("03.5")(my_experiment)

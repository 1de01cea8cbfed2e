"""Checkers of notebook 03: model."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import Tensor

from tinylib.course.exercises import checker, given
from tinylib.loss import softcap
from tinylib.model import attention


@checker("03.1")
def attention_by_hand(answer: Callable[[Tensor, Tensor, Tensor], Tensor]) -> None:
    """Causal attention by matrix products, compared with that of the model; q, k and v of shape B × N × T × H."""
    def forbidden(*_: Any, **__: Any) -> None:
        raise AssertionError("that is PyTorch's own attention: use matrix products, a mask and softmax")

    generator, fused = torch.Generator().manual_seed(0), F.scaled_dot_product_attention
    for shape in ((2, 3, 7, 16), (1, 2, 33, 64), (1, 1, 1, 8)):
        q, k, v = (torch.randn(shape, generator=generator) for _ in range(3))
        with patch.object(F, "scaled_dot_product_attention", forbidden):
            found = given(answer(q.clone(), k.clone(), v.clone()))
        assert isinstance(found, Tensor), f"return a tensor, not {type(found).__name__}"
        assert found.shape == v.shape, f"the result has shape {tuple(found.shape)}, v has {tuple(v.shape)}"
        assert found.isfinite().all(), "the result has infinities or nans: a query must see at least its own key"
        if shape[2] > 1:
            assert not torch.allclose(found, fused(q, k, v), atol=1e-5), \
                "every query sees every key: mask the keys after the query, before softmax"
            assert not torch.allclose(found, fused(q, k, v, is_causal=True, scale=1.0), atol=1e-5), \
                "the scores are not divided by the square root of the head dim"
        worst = float((found - attention(q, k, v, 0)).abs().max())
        assert worst <= 1e-5, f"for q, k and v of shape {shape} the result is off by up to {worst:.1e}, more than 1e-5"


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

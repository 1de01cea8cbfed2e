"""Optimizers: Muon against torch's, singular vectors kept, every tensor in one group."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from tinylib.model import GPT
from tinylib.optim import Muon, Optimizer, groups, learning_rate, newton_schulz


def test_muon_equals_torchs_in_bfloat16() -> None:
    generator = torch.Generator().manual_seed(0)
    start, gradient = torch.randn(2, 12, 24, generator=generator), torch.randn(2, 12, 24, generator=generator)
    ours, theirs = ([torch.nn.Parameter(matrix.clone()) for matrix in start] for _ in range(2))
    pair = (Muon(ours, lr=0.1, dtype=torch.bfloat16),
            torch.optim.Muon(theirs, lr=0.1, weight_decay=0.0, adjust_lr_fn="original"))
    for weight, value in zip(ours + theirs, [*gradient, *gradient], strict=True):
        weight.grad = value.clone()
    for _ in range(3):
        for optimizer in pair:
            optimizer.step()
    for mine, other in zip(ours, theirs, strict=True):
        assert (mine - other).norm() < 0.02 * (mine - start[0]).norm()


@pytest.mark.parametrize("shape", [(3, 8, 32), (1, 32, 8), (5, 16, 16)])
def test_orthogonalise_keeps_the_singular_vectors(shape) -> None:
    matrices = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    left, _, right = torch.linalg.svd(matrices, full_matrices=False)
    inner = left.mT @ newton_schulz(matrices) @ right.mT
    off = inner - torch.diag_embed(inner.diagonal(dim1=1, dim2=2))
    assert off.abs().max() < 1e-3 and inner.diagonal(dim1=1, dim2=2).min() > 0.3


def test_every_tensor_has_one_slot_in_one_group(tiny) -> None:
    for tied in (False, True):
        tied_config = replace(tiny, model=replace(tiny.model, tied=tied))
        names = [name for group in groups(tied_config) for name in group.names]
        assert sorted(names) == sorted(spec.name for spec in tied_config.model.tensors())
        roles = {name: group.role for group in groups(tied_config) for name in group.names}
        assert roles["wte.weight"] == ("tied" if tied else "embedding")
        model = GPT(tied_config.model)
        model(torch.zeros(1, 4, dtype=torch.long), torch.ones(1, 4, dtype=torch.long)).backward()
        optimizer = Optimizer(model, tied_config)
        optimizer.step(0)
        assert ("lm_head.weight/exp_avg" in optimizer.state()) is not tied
    assert learning_rate(0, tiny) == 1.0 and 0 < learning_rate(5, tiny) < 1

"""Optimizers: Muon and AdamW against torch's, Newton–Schulz, parameter groups."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from helpers import randomised

from tinylib.checks import UserError
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
def test_newton_schulz_keeps_the_singular_vectors(shape) -> None:
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


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_adamw_for_all_equals_torchs_with_decay_of_the_matrices_alone(tiny, decay) -> None:
    config = replace(tiny, matrix_optimizer="adamw", weight_decay=decay, warmdown_fraction=0.0)
    ours, theirs = randomised(config.model), randomised(config.model)
    optimizer, named = Optimizer(ours, config), dict(theirs.named_parameters())
    peers = [torch.optim.AdamW([named[name] for name in group.names], group.lr, config.adam_betas, config.adam_eps,
                               decay if group.role == "matrix" else 0.0) for group in groups(config)]
    generator = torch.Generator().manual_seed(0)
    for step in range(3):
        for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
            mine.grad = torch.randn(mine.shape, generator=generator)
            other.grad = mine.grad.clone()
        optimizer.step(step)
        for peer in peers:
            peer.step()
    for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("tied", [False, True])
def test_values_of_the_embedding_alone_are_kept_in_bfloat16(tiny, tied) -> None:
    config = replace(tiny, model=replace(tiny.model, tied=tied), embedding_dtype="bfloat16")
    model = randomised(config.model)
    optimizer = Optimizer(model, config)
    model(torch.zeros(1, 4, dtype=torch.long), torch.ones(1, 4, dtype=torch.long)).backward()
    optimizer.step(0)
    rounded = {name for name, weight in model.named_parameters() if torch.equal(weight, weight.bfloat16().float())}
    assert rounded == {"wte.weight"} and model.wte.weight.dtype == torch.float32


@pytest.mark.parametrize("matrix_optimizer", ["muon", "adamw"])
def test_weight_decay_shrinks_the_matrices_with_either_optimizer(tiny, matrix_optimizer) -> None:
    def weights(decay: float) -> dict[str, torch.Tensor]:
        config = replace(tiny, matrix_optimizer=matrix_optimizer, weight_decay=decay, warmdown_fraction=0.0)
        model = randomised(config.model)
        model(torch.zeros(1, 4, dtype=torch.long), torch.ones(1, 4, dtype=torch.long)).backward()
        Optimizer(model, config).step(0)
        return {name: weight.detach() for name, weight in model.named_parameters()}

    plain, decayed, start = weights(0.0), weights(0.5), dict(randomised(tiny.model).named_parameters())
    for group in groups(replace(tiny, matrix_optimizer=matrix_optimizer)):
        rate = group.lr * 0.5 if group.role == "matrix" else 0.0
        for name in group.names:
            torch.testing.assert_close(decayed[name], plain[name] - rate * start[name], rtol=1e-4, atol=1e-6)


def test_a_state_that_does_not_fit_is_named_and_changes_nothing(tiny) -> None:
    optimizer = Optimizer(GPT(tiny.model), tiny)
    state = {name: torch.ones_like(value) for name, value in optimizer.state().items()}
    state["wte.weight/exp_avg"] = torch.ones(1)    # copy_ would broadcast it
    del state["blocks.0.mlp.up.weight/momentum"]
    with pytest.raises(UserError, match=r"blocks\.0\.mlp\.up\.weight/momentum, wte\.weight/exp_avg"):
        optimizer.load_state(state)
    assert not any(value.any() for value in optimizer.state().values())

"""The model against the closed form, the plain loss, and itself with a cache."""

from __future__ import annotations

import math
import random
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from helpers import randomised

from tinylib import sizing
from tinylib.config import PRESETS, GPTConfig
from tinylib.loss import cross_entropy, softcap
from tinylib.model import GPT, KVCache

SMALL = GPTConfig(depth=3, dim=96, vocab_size=211, head_dim=32, seq_len=64)


def tokens(config: GPTConfig, batch: int = 2, seed: int = 1) -> torch.Tensor:
    return torch.randint(config.vocab_size, (batch, config.seq_len), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("name", PRESETS)
def test_built_model_equals_the_closed_form(name: str, tied: bool) -> None:
    config = replace(PRESETS[name], tied=tied)
    with torch.device("meta"):
        model = GPT(config)
    count = sum(weight.numel() for weight in model.parameters())
    assert count == sizing.parameters(config).total == sum(spec.size for spec in config.tensors())


def test_random_shapes_equal_the_closed_form_and_the_table_of_tensors() -> None:
    draw = random.Random(0)
    for _ in range(300):
        head_dim = 2 * draw.randint(1, 40)
        config = GPTConfig(depth=draw.randint(1, 9), dim=head_dim * draw.randint(1, 6), head_dim=head_dim,
                           vocab_size=draw.randint(1, 5000), tied=draw.random() < 0.5)
        with torch.device("meta"):
            model = GPT(config)
        built = {name: tuple(weight.shape) for name, weight in model.named_parameters()}
        assert built == {spec.name: spec.shape for spec in config.tensors()}
        assert sizing.parameters(config).total == sum(math.prod(shape) for shape in built.values())


@pytest.mark.parametrize("name", ["goldilocks", "nano", "micro"])
@pytest.mark.parametrize("tied", [False, True])
def test_first_loss_is_ln_v_and_no_token_copies_itself(name: str, tied: bool) -> None:
    config = replace(PRESETS[name], tied=tied, seq_len=64)
    model, x_BT = GPT(config), tokens(replace(PRESETS[name], seq_len=64))
    with torch.no_grad():
        loss = model(x_BT[:, :-1], x_BT[:, 1:]).item()
        own_logit = model(x_BT).gather(2, x_BT[..., None]).mean().item()
    assert loss == pytest.approx(math.log(config.vocab_size), rel=0.01)
    assert own_logit < 1.0


def test_naive_tying_starts_far_from_ln_v() -> None:
    config = replace(PRESETS["goldilocks"], tied=True, seq_len=64)
    model, x_BT = GPT(config), tokens(config)
    torch.nn.init.normal_(model.wte.weight, std=0.8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert model(x_BT[:, :-1], x_BT[:, 1:]).item() == pytest.approx(22.26, abs=0.3)


@pytest.mark.parametrize("cuts", [[64], [10, 54], [1] * 64, [5, 1, 30, 28]])
def test_cache_gives_the_logits_of_the_whole_pass(cuts: list[int]) -> None:
    model, x_BT = randomised(SMALL, std=0.05), tokens(SMALL)
    cache = KVCache(model, 2, 64)
    with torch.no_grad():
        parts = [model(part, cache=cache) for part in x_BT.split(cuts, dim=1)]
        assert torch.allclose(torch.cat(parts, dim=1), model(x_BT), atol=1e-5)
        with pytest.raises(ValueError, match="capacity=64"):
            model(x_BT[:, :1], cache=cache)


@pytest.mark.parametrize("cap", [15.0, 2.0, 80.0, None])
@pytest.mark.parametrize("chunk_rows", [1, 7, 64])
def test_chunked_loss_equals_the_plain_one(cap: float | None, chunk_rows: int) -> None:
    generator = torch.Generator().manual_seed(0)
    x_RD = torch.randn(20, 8, generator=generator, dtype=torch.float32).requires_grad_()
    table_VD = (5 * torch.randn(33, 8, generator=generator)).requires_grad_()
    y_R = torch.randint(-1, 33, (20,), generator=generator)
    plain = F.cross_entropy(softcap(x_RD @ table_VD.T, cap), y_R, ignore_index=-1)
    expected = torch.autograd.grad(3 * plain, (x_RD, table_VD))
    ours = cross_entropy(x_RD, table_VD, y_R, cap, chunk_rows=chunk_rows)
    assert torch.allclose(ours, plain, rtol=1e-5)
    for got, want in zip(torch.autograd.grad(3 * ours, (x_RD, table_VD)), expected, strict=True):
        assert torch.allclose(got, want, atol=1e-5)
    rows = F.cross_entropy(softcap(x_RD @ table_VD.T, cap), y_R, ignore_index=-1, reduction="none")
    for with_gradient in (True, False):
        with torch.set_grad_enabled(with_gradient):
            assert torch.allclose(cross_entropy(x_RD, table_VD, y_R, cap, "none", chunk_rows), rows, atol=1e-5)


def test_loss_never_holds_more_than_a_chunk_of_logits() -> None:
    x_RD, table_VD = torch.randn(4096, 16).requires_grad_(), torch.randn(4096, 16).requires_grad_()
    with torch.profiler.profile(profile_memory=True) as profile:
        cross_entropy(x_RD, table_VD, torch.zeros(4096, dtype=torch.long), 15.0, chunk_rows=64).backward()
    largest = max(event.cpu_memory_usage for event in profile.events())
    assert largest <= 2 * 64 * 4096 * 4 < 4096 * 4096 * 4 / 3


def test_loss_in_bfloat16_stays_near_and_keeps_the_gradient_in_float32() -> None:
    config = replace(SMALL, tied=True)
    model, x_BT = randomised(config, std=0.02), tokens(config)
    exact = model(x_BT[:, :-1], x_BT[:, 1:])
    (wanted,) = torch.autograd.grad(exact, model.wte.weight)
    model.dtype = torch.bfloat16
    loss = model(x_BT[:, :-1], x_BT[:, 1:])
    (got,) = torch.autograd.grad(loss, model.wte.weight)
    assert loss.item() == pytest.approx(exact.item(), rel=1e-2)
    assert got.dtype == torch.float32 and 0 < (got - wanted).norm() < 0.05 * wanted.norm()

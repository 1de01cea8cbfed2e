"""Checkers of notebook 01: architecture math."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from tinylib.config import PRESETS, GPTConfig
from tinylib.course.exercises import checker, given
from tinylib.sizing import flops_per_token, parameters


@checker("01.1")
def half_vocabulary(answer: Callable[[int, int], int]) -> None:
    """The vocabulary whose table has half as many parameters as the blocks of a depth and a width."""
    for depth, dim in ((4, 512), (16, 256), (3, 192)):
        found = given(answer(depth, dim))
        assert 2 * found * dim == 12 * depth * dim**2, (
            f"with {depth} layers of width {dim}, a table of {found} rows does not have half as many parameters as the "
            "blocks: set V·D equal to half of 12·L·D² and solve for V")


@checker("01.2")
def tied_depth(answer: Callable[[GPTConfig], int]) -> None:
    """The depth that a tied model can have with the parameters of the untied one."""
    for config in (PRESETS["goldilocks"], PRESETS["conventional"], GPTConfig(5, 128, 10_000)):
        depth, limit = given(answer(config)), parameters(config).total
        assert isinstance(depth, int), f"a depth is a whole number: return an int, not {depth!r}"
        grown = parameters(replace(config, depth=depth, tied=True)).total
        assert grown <= limit, f"{depth} layers tied have {grown:,} parameters, more than the {limit:,} allowed"
        assert parameters(replace(config, depth=depth + 1, tied=True)).total > limit, \
            f"with {depth} layers another one still fits: a layer costs 12·D², tying frees V·D"


@checker("01.3")
def design(answer: Callable[[], GPTConfig]) -> None:
    """An untied shape of 20M parameters, 8 layers or more, a third of them in the blocks."""
    config = given(answer())
    assert isinstance(config, GPTConfig), f"return a GPTConfig, not {type(config).__name__}"
    count = parameters(config)
    assert not config.tied and config.head_dim == 64, "the model must be untied, with a head dim of 64"
    assert config.depth >= 8, f"{config.depth} layers are fewer than 8"
    assert abs(count.total - 20e6) <= 0.01 * 20e6, f"{count.total:,} is not within 1 % of 20 million"
    assert abs(count.split["blocks"] - 100 / 3) <= 1, \
        f"the blocks have {count.split['blocks']:.1f} % of the parameters, not 32.3 to 34.3 %"


@checker("01.4")
def training_flops(answer: Callable[[GPTConfig], int]) -> None:
    """FLOPs per token of a training step, without the look-up and with the backward pass of attention."""
    for config, hint in ((GPTConfig(1, 64, 50_000, seq_len=8), "a large vocabulary: what does a look-up multiply?"),
                         (GPTConfig(2, 64, 100, seq_len=8192), "a long context: what does the backward pass cost?"),
                         (PRESETS["goldilocks"], "all terms together")):
        found, right = given(answer(config)), flops_per_token(config)
        assert found == right, (f"{config.depth} × {config.dim}, V {config.vocab_size:,}, T {config.seq_len:,}: "
                                f"{found / right:.2f} times what PyTorch counts; {hint}")


@checker("01.5")
def intensity(answer: Callable[[int, int, int], float]) -> None:
    """FLOPs per byte of a matrix product in float32."""
    for m, k, n in ((1024, 1024, 1024), (1, 1024, 1024), (64, 128, 512)):
        found, right = given(answer(m, k, n)), m * k * n / (2 * (m * k + k * n + m * n))
        assert abs(found / right - 1) < 1e-6, (
            f"[{m}, {k}] times [{k}, {n}]: the answer is {found / right:.3g} times what it should be; 2 FLOPs for each "
            "product, and 4 bytes for each number of both inputs and of the result")

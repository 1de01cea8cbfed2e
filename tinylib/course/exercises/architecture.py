"""Checkers of notebook 01: architecture math."""

from __future__ import annotations

import math
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
    assert abs(count.total - 20e6) <= 0.01 * 20e6, f"{count.total:,} is not within 1% of 20 million"
    assert abs(count.split["blocks"] - 100 / 3) <= 1, \
        f"the blocks have {count.split['blocks']:.1f}% of the parameters, not 32.3 to 34.3%"


@checker("01.4")
def frozen_head_flops(answer: Callable[[GPTConfig], int]) -> None:
    """FLOPs per token of a training step whose `lm_head` is frozen: no gradient of its weight, but of its input."""
    cases = ((GPTConfig(1, 64, 50_000, seq_len=8),
              "a large vocabulary: which of the two backward products of a frozen head is still needed?"),
             (GPTConfig(2, 64, 100, seq_len=8192), "a long context: what does the backward pass of attention cost?"),
             (GPTConfig(8, 512, 100, seq_len=8), "large blocks: what does a weight that is trained cost?"),
             (PRESETS["goldilocks"], "all terms together"))
    ratios = [given(answer(config)) / (flops_per_token(config) - 2 * config.vocab_size * config.dim)
              for config, _ in cases]
    worst = max(range(len(cases)), key=lambda place: abs(ratios[place] - 1))
    config, hint = cases[worst]
    assert abs(ratios[worst] - 1) < 1e-9, (
        f"{config.depth} × {config.dim}, V {config.vocab_size:,}, T {config.seq_len:,}: {ratios[worst]:.2f} times what "
        f"PyTorch counts; {hint}")


@checker("01.5")
def least_rows(answer: Callable[[int, float], float]) -> None:
    """Fewest rows with which a product with a square matrix is limited by compute."""
    for width, balance in ((4096, 4.1), (1024, 16.0), (512, 100.0), (64, 20.0)):
        rows = given(answer(width, balance))
        at = f"[M, {width}] times [{width}, {width}], balance {balance:g}"
        if balance >= width / 4:
            assert rows == math.inf, (f"{at}: {rows} rows are not enough: the intensity stays below {width / 4:g}, "
                                      "however many there are")
            continue
        assert rows != math.inf, f"{at}: some number of rows is enough: the intensity comes near {width / 4:g}"
        assert rows > 0 and rows == int(rows), f"{at}: M is a whole number above 0, not {rows}"
        assert _intensity(rows, width) >= balance, (
            f"{at}: with M = {rows} there are {_intensity(rows, width):.3g} FLOPs per byte; 2 FLOPs for each product, "
            "and 4 bytes for each number of both inputs and of the result")
        assert _intensity(rows - 1, width) < balance, f"{at}: {rows} rows are enough, but so are {rows - 1}"


def _intensity(rows: float, width: int) -> float:
    """FLOPs per byte of a product of [rows, width] and [width, width] in float32."""
    return 2 * rows * width**2 / (4 * (2 * rows * width + width**2))

"""Checkers of notebook 06: weight tying."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch

from tinylib.config import PRESETS, GPTConfig
from tinylib.course.exercises import checker, given
from tinylib.evaluate import t_interval
from tinylib.model import rms_norm
from tinylib.sizing import optimizer_bytes, weight_bytes


@checker("06.1")
def tied_std(answer: Callable[[int, float], float]) -> None:
    """The std of a tied table that gives a token a certain logit for itself before training."""
    generator = torch.Generator().manual_seed(0)
    for dim, logit in ((512, 0.5), (128, 0.5), (64, 8.0)):
        std = given(answer(dim, logit))
        table_VD = torch.randn(2000, dim, generator=generator) * std
        found = float((rms_norm(rms_norm(table_VD)) * table_VD).sum(1).mean())    # the first and the last norm
        assert abs(found / logit - 1) < 0.05, (
            f"at width {dim} a std of {std:.3g} gives a token an own logit of {found:.3g}, not {logit:g}: a norm "
            "divides a row by its std, and D squares of numbers with std 1 add up to about D")


@checker("06.2")
def saved_bytes(answer: Callable[[GPTConfig], int]) -> None:
    """Bytes of weights and optimizer state that tying saves."""
    for config in (PRESETS["goldilocks"], PRESETS["nano"], GPTConfig(5, 128, 10_000)):
        tied, found = replace(config, tied=True), given(answer(config))
        right = weight_bytes(config) + optimizer_bytes(config) - weight_bytes(tied) - optimizer_bytes(tied)
        assert found == right, (f"V = {config.vocab_size:,} and D = {config.dim} save {right:,} bytes, not {found:,}: "
                                "a number has 4 bytes, and AdamW keeps two more for each parameter of a table")


@checker("06.3")
def better(answer: Callable[[list[float], list[float]], str]) -> None:
    """A paired comparison over seeds by a t-interval."""
    cases = [([2.01, 2.12, 2.21], [2.00, 2.10, 2.20]), ([2.00, 2.10, 2.20], [2.02, 2.12, 2.23]),
             ([2.00, 2.10, 2.20], [2.05, 2.08, 2.21]), ([1.90, 2.00, 2.10], [2.00, 1.95, 2.40]), ([1, 2], [3, 4.1])]
    for first, second in cases:
        low, high = t_interval([a - b for a, b in zip(first, second, strict=True)])
        right = "first" if high < 0 else "second" if low > 0 else "neither"
        found = given(answer(list(first), list(second)))
        assert found == right, (f"{first} against {second}: the mean difference is between {low:.3f} and {high:.3f}, "
                                f"so {right!r}, not {found!r}: pair the seeds, and lower is better")

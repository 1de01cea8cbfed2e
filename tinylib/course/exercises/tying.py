"""Checkers of notebook 06: weight tying."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pandas as pd
import torch

from tinylib.config import PRESETS, GPTConfig
from tinylib.course.exercises import checker, given
from tinylib.evaluate import t_interval
from tinylib.experiments import compare
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


@checker("06.4")
def tied_table(answer: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> None:
    """The mean of two trained tables, once the rows of `wte` are as long as those of the head."""
    generator = torch.Generator().manual_seed(0)
    wte_VD, head_VD = (torch.randn(50, 8, generator=generator) for _ in range(2))
    wte_VD[7] = 0.0
    for size in (1.0, 40.0):
        found = given(answer(size * wte_VD, head_VD.clone()))
        assert found.shape == head_VD.shape, f"two tables of shape {tuple(head_VD.shape)} became {tuple(found.shape)}"
        assert found.isfinite().all(), "a row of zeros has the norm 0: don't divide by it"
        for row in (3, 7):
            part = wte_VD[row] / wte_VD[row].norm().clamp_min(1e-30) * head_VD[row].norm()
            off = float((found[row] - (part + head_VD[row]) / 2).abs().max())
            assert off < 1e-4, (
                f"where wte is {size:g} times as large, an entry of row {row} is off by {off:.2g}: the norm behind wte "
                "divides by the size of its row, so that size says nothing, and in a mean it drowns the head's row")


@checker("06.5")
def my_experiment(answer: Callable[[], tuple[pd.DataFrame, str]]) -> None:
    """Two arms with three seeds or more, and a conclusion that follows from the paired interval."""
    table, conclusion = given(answer())
    missing = {"arm", "seed", "bits_per_byte"} - set(table)
    assert not missing, f"the table has no column {', '.join(sorted(missing))}"
    arms = list(dict.fromkeys(table["arm"]))
    assert len(arms) == 2, f"compare two arms; the table has {len(arms)}: {', '.join(map(str, arms))}"
    first, second = (set(table.loc[table["arm"] == arm, "seed"]) for arm in arms)
    assert first == second and len(first) >= 3, "train both arms with the same seeds, at least three of them"
    assert table.groupby("arm")["bits_per_byte"].nunique().min() > 1, (
        "the seeds of an arm all gave the same: let the seed choose the first values and the batches")
    row = compare(table, arms[0]).loc[arms[1]]
    right = "better" if row["high"] < 0 else "worse" if row["low"] > 0 else "not told apart"
    assert conclusion == right, (
        f"{arms[1]!r} less {arms[0]!r} is between {row['low']:+.3f} and {row['high']:+.3f}, so {right!r}, not "
        f"{conclusion!r}")

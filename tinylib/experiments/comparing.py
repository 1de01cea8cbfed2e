"""Comparison of arms: differences paired within a seed, simultaneous intervals with a pooled residual, the report."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from tinylib import checks
from tinylib.experiments.description import Block, Description, describe
from tinylib.experiments.records import Record, by_machine, of_trial, records, step_times

if TYPE_CHECKING:
    import pandas as pd

By = Literal["flops", "bytes", "seconds"]
LEVEL = 0.95
_MACHINE = ("text", "hardware", "torch", "threads")
"""Fields that must be the same for all runs of one seed."""


def differences(table: pd.DataFrame, reference: str) -> pd.DataFrame:
    """Bits per byte of each arm less the reference's, with the same seed: a row a seed, a column an arm.

    Of a single arm it is the distance of each seed from their mean, the noise floor.
    """
    scores = table.pivot(index="seed", columns="arm", values="bits_per_byte")[list(dict.fromkeys(table["arm"]))]
    if len(scores.columns) == 1:
        return scores - scores.mean()
    return scores.sub(scores[reference], axis=0).drop(columns=reference)


def compare(table: pd.DataFrame, reference: str) -> pd.DataFrame:
    """Arms against `reference` in bits per byte: a row an arm; `table` has a row a run (arm, seed, bits_per_byte).

    Columns: `seeds`; `mean`; `difference` to the reference, `low` and `high` of its 95% interval, which hold for all
    arms together.  The model is arm + seed + noise, so that differences are paired within a seed and the noise is
    pooled over all arms; `attrs` has its standard deviation `noise` and the degrees of freedom `df`.  Runs that are
    still missing make intervals wider; without degrees of freedom there are none (NaN).  Of a single arm `noise` is the
    standard deviation over seeds, the noise floor of what is not paired.  scipy.stats.dunnett would
    leave the seeds' share in the noise, because it knows no pairs; with two arms this is the paired t-test.

    Source: Dunnett 1955, https://doi.org/10.1080/01621459.1955.10501294; for randomized blocks Hsu, Multiple
    Comparisons (1996), ch. 7.

    Raises ConfigError where the reference is missing, an arm has two runs with one seed, or runs with one seed differ
    in text, hardware, torch or threads.
    """
    import pandas as pd

    _check(table, reference)
    arms = [reference, *(arm for arm in dict.fromkeys(table["arm"]) if arm != reference)]
    # One column for each other arm, then one for each seed: the first coefficients are differences to the reference.
    seeds = sorted(set(table["seed"])) if len(arms) > 1 else []
    columns = [table["arm"] == arm for arm in arms[1:]] + [table["seed"] == seed for seed in seeds]
    design = np.column_stack(columns or [np.ones(len(table))]).astype(float)
    inverse = np.linalg.pinv(design.T @ design)
    scores = table["bits_per_byte"].to_numpy(float)
    fit = inverse @ design.T @ scores
    df = len(table) - int(np.linalg.matrix_rank(design))
    noise = float(np.sqrt(np.sum((scores - design @ fit) ** 2) / df)) if df else np.nan
    others = len(arms) - 1
    half = np.zeros(others)
    if others:
        spread = inverse[:others, :others]
        half = noise * np.sqrt(np.diag(spread)) * (quantile(spread, df) if df else np.nan)
    means = table.groupby("arm")["bits_per_byte"].agg(["size", "mean"]).loc[arms]
    found = pd.DataFrame({"seeds": means["size"], "mean": means["mean"], "difference": [0.0, *fit[:others]],
                          "low": [np.nan, *(fit[:others] - half)], "high": [np.nan, *(fit[:others] + half)]})
    found.attrs = {"noise": noise, "df": df}
    return found


def quantile(spread: np.ndarray, df: int) -> float:
    """The two-sided 95% quantile of the largest |t| of estimates with covariance `spread` and a common variance.

    With the correlations 1/2 of equally many runs it is Dunnett's:

    >>> round(quantile(np.eye(4) + 1, df=10), 2)
    2.89
    """
    from scipy import optimize, stats

    scale = np.sqrt(np.diag(spread))
    if len(scale) == 1:
        return float(stats.t.ppf((1 + LEVEL) / 2, df))
    together = stats.multivariate_t(shape=spread / np.outer(scale, scale), df=df, seed=0)

    def missed(limit: float) -> float:
        ends = np.full(len(scale), limit)
        return float(together.cdf(ends, lower_limit=-ends, random_state=0)) - LEVEL    # the same sample at each call

    return float(optimize.brentq(missed, 1, 1000, xtol=1e-4))


def _check(table: pd.DataFrame, reference: str) -> None:
    problems = [checks.check_choice("reference", reference, set(table["arm"]))]
    twice = table[table.duplicated(["arm", "seed"])]
    problems += [f"arm {arm!r} has two runs with seed {seed}: take those of one text and budget"
                 for arm, seed in zip(twice["arm"], twice["seed"], strict=True)]
    for name in (name for name in _MACHINE if name in table):
        several = table.groupby("seed")[name].nunique()
        problems += [f"runs with seed {seed} differ in {name}: compare those with the same"
                     for seed in several.index[several > 1]]
    checks.raise_if("compare", problems)


@dataclass(frozen=True)
class Comparison:
    """Records of one block on one text: some arms against their reference."""

    block: str
    text: str
    reference: str
    table: pd.DataFrame
    """A row a run."""
    missing: int
    """Runs that have no record yet."""
    flops: float
    """Budget of a run."""
    rule: str
    least: float
    """Least difference in bits per byte that counts."""

    @property
    def verdicts(self) -> pd.DataFrame:
        """Rows of `compared` but the reference, with a column `verdict`: better, worse, not told apart, or one seed.

        An arm is better or worse if its interval excludes zero and its difference is `least` or more.
        """
        table = self.compared.drop(index=self.reference)
        told_apart = ((table["low"] > 0) | (table["high"] < 0)) & (table["difference"].abs() >= self.least)
        table["verdict"] = np.select([table["low"].isna(), told_apart & (table["difference"] < 0), told_apart],
                                     ["one seed", "better", "worse"], "not told apart")
        return table

    @property
    def compared(self) -> pd.DataFrame:
        """See `compare`."""
        return compare(self.table, self.reference)

    @property
    def differences(self) -> pd.DataFrame:
        """See `differences`."""
        return differences(self.table, self.reference)

    @property
    def machine(self) -> str:
        """Hardware and torch of the runs, and the days on which they ended."""
        names = [", ".join(sorted(set(self.table[name]))) for name in ("hardware", "torch")]
        days = dict.fromkeys([self.table["date"].min(), self.table["date"].max()])
        return f"{names[0]}, torch {names[1]}, {' to '.join(days)}"


def report(name: str | Path, by: By = "flops") -> list[Comparison]:
    """Comparisons that the records of an experiment allow so far, in the order of its blocks, text by text.

    Runs of a block have equal FLOPs.  With `by` "bytes" or "seconds" its arms are compared at as many bytes of text, or
    seconds of `time_steps`, as the reference took: an arm's bits per byte are read off the line through its two budgets
    that are nearest, over the logarithm; arms with one budget, or without a time, are left out.
    """
    description = describe(name)
    found = records(description.records_file)
    return [comparison for text in dict.fromkeys(record["text"] for record in found)
            for block_name, block in description.blocks.items()
            for comparison in _comparisons(description, block_name, block,
                                           [record for record in found if record["text"] == text], by)]


def _comparisons(description: Description, name: str, block: Block, found: list[Record],
                 by: By) -> Iterator[Comparison]:
    import pandas as pd

    trials = list(description.block_trials(block))
    rows = [row for seed in block.seeds for row in _of_seed(description, block, seed, found, by)]
    references = block.arms if len(block.rates) > 1 else [block.reference or block.arms[0]]
    for reference in references:
        arms = {trial.arm for trial in trials if len(references) == 1 or trial.base == reference}
        table = pd.DataFrame([row for row in rows if row["arm"] in arms])
        if len(table) and (table["arm"] == reference).any():
            expected = sum(trial.arm in arms for trial in trials)
            yield Comparison(name, found[0]["text"], reference, table, expected - len(table),
                             description.budgets[block.budget], block.rule, block.least)


def _of_seed(description: Description, block: Block, seed: int, found: list[Record], by: By) -> list[Record]:
    """A block's records with one seed, all from the kind of machine that has the most of them."""
    kinds = [[record | {"arm": trial.arm} for trial in description.block_trials(replace(block, seeds=[seed]))
              for record in of_trial(trial, of_kind)[-1:]] for of_kind in by_machine(found).values()]
    own = max(kinds, key=len, default=[])
    return own if by == "flops" or not own else _at_equal(description, block, own, found, by)


def _at_equal(description: Description, block: Block, own: list[Record], found: list[Record], by: By) -> list[Record]:
    """The records `own` of one seed with their bits per byte at the reference's amount of bytes or seconds."""
    machine = own[0]["hardware"], own[0]["torch"]
    step_s = step_times(description, machine)

    def amount(record: Record) -> float:
        return record["bytes"] if by == "bytes" else record["steps"] * step_s.get(record["arm"], np.nan)

    wanted = [amount(record) for record in own if record["arm"] == (block.reference or block.arms[0])]
    rows = []
    for record in own:
        points = {amount(other): other["bits_per_byte"] for budget in description.budgets
                  for trial in description.block_trials(replace(block, budget=budget, seeds=[record["seed"]]))
                  if trial.arm == record["arm"] for other in of_trial(trial, by_machine(found)[machine])[-1:]}
        if wanted and len(points) > 1 and not np.isnan([*points, *wanted]).any():
            rows.append(record | {"bits_per_byte": at_amount(points, wanted[0])})
    return rows


def at_amount(points: Mapping[float, float], amount: float) -> float:
    """Bits per byte at `amount`: on the line through the two nearest `points`, over the logarithm of their amounts.

    >>> at_amount({1e6: 3.0, 1e8: 2.0}, 1e7)
    2.5
    """
    one, other = sorted(points, key=lambda place: abs(math.log(place / amount)))[:2]
    slope = (points[other] - points[one]) / math.log(other / one)
    return points[one] + slope * math.log(amount / one)

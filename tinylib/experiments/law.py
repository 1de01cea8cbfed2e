"""Scaling law: bits per byte of a shape after a budget of FLOPs, fitted to records, with prediction intervals.

    bits per byte = floor + size·(n / 400,000)^-α + data·(bytes / 30e6)^-β
                    + split·s + split_bend·s² + depth·l + depth_bend·l² + tied·(1 if tied)

n = 12·L·D² + V·D are the parameters of matrix products, the same tied and untied; `bytes` is the text that a run reads;
s is log2 of the blocks' share of n over a half, and l is log2 of the layers over 4.  The vocabulary acts through s, n
and `bytes`: it costs FLOPs at every token, and its tokens are longer, along a line over ln V.
"""

from __future__ import annotations

import functools
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from tinylib import sizing
from tinylib.checks import UserError
from tinylib.config import GPTConfig, from_dict
from tinylib.experiments.description import describe, identity
from tinylib.experiments.records import Record, records

if TYPE_CHECKING:
    import pandas as pd

EXPERIMENTS = ("nano", "micro", "mini")
"""Those with one text."""
PRIORS = {"floor": (0.6, 0.2), "size": (0.7, 0.5), "α": (0.34, 0.15), "data": (0.2, 0.3), "β": (0.5, 0.3),
          "split": (0.0, 0.1), "split_bend": (0.0, 0.05), "depth": (0.0, 0.05), "depth_bend": (0.0, 0.05),
          "tied": (0.0, 0.1)}
"""Mean and standard deviation of each coefficient before any record: what a few sizes alone don't tell.

Source: floor and α of Hoffmann et al. 2022, https://arxiv.org/abs/2203.15556 (1.69 nats a token, at about 4 bytes a
token; 0.34), with wide margins; the others are guesses, as wide.
"""


@dataclass(frozen=True)
class Law:
    """A fitted law."""

    values: np.ndarray
    """Coefficients in the order of PRIORS."""
    covariance: np.ndarray
    noise: float
    """Standard deviation of a mean over seeds about the law, bits per byte."""
    token_bytes: np.ndarray
    """Bytes a token: slope over ln V, and value at V = 1."""
    runs: int

    def predict(self, shapes: pd.DataFrame, flops: float) -> pd.DataFrame:
        """Bits per byte of each shape after `flops`, as a mean over seeds, and its difference to that of the first.

        `shapes` has the columns of `sizing.search`.  Returns `predicted`, `half` of its 95% interval, `difference` and
        `difference_half`.  The intervals hold if the law's form does, and far from the records' sizes nothing tests it.
        What shapes of one size have in common cancels in their difference, so that its interval is narrower.
        """
        read = flops / shapes["flops_per_token"] * np.polyval(self.token_bytes, np.log(shapes["vocab_size"]))
        return self.at(shapes.assign(bytes=read))

    def at(self, table: pd.DataFrame) -> pd.DataFrame:
        """As `predict`, after the bytes of text in the column `bytes`."""
        import pandas as pd

        mean = _bits_per_byte(self.values, table)
        steps = np.diag(1e-4 * np.sqrt(np.diag(self.covariance)))
        slopes = np.array([(_bits_per_byte(self.values + step, table) - mean) / step.sum() for step in steps])
        found = {}
        for name, value, slope, runs in (("predicted", mean, slopes, 1),
                                         ("difference", mean - mean[0], slopes - slopes[:, :1], 2)):
            variance = np.einsum("pr,pq,qr->r", slope, self.covariance, slope) + runs * self.noise**2
            found |= {name: value, "half" if runs == 1 else "difference_half": 1.96 * np.sqrt(variance)}
        found["difference_half"][0] = 0.0    # the first against itself
        return pd.DataFrame(found, index=table.index)


def _bits_per_byte(values: np.ndarray, table: pd.DataFrame) -> np.ndarray:
    floor, size, alpha, data, beta, split, split_bend, depth, depth_bend, tied = values
    blocks, read = table["blocks"].to_numpy(float), table["bytes"].to_numpy(float) / 3e7
    used = blocks + table["wte"].to_numpy(float)    # lm_head is as large, and has 0 parameters of its own if tied
    s = np.log2(2 * blocks / used)
    layers = np.log2(table["depth"].to_numpy(float) / 4)
    return np.asarray(floor + size * (used / 4e5) ** -alpha + data * read**-beta + split * s + split_bend * s**2
                      + depth * layers + depth_bend * layers**2 + tied * (table["total"] == table["total_tied"]))


def runs(names: Iterable[str] = EXPERIMENTS) -> pd.DataFrame:
    """The records that differ in shape, budget and seed only: a row a run, with the columns of `sizing.sheet`."""
    import pandas as pd

    found = [record for name in names for record in records(describe(name).records_file)]
    recipes = [_recipe(record) for record in found]
    usual = Counter(recipes).most_common(1)
    rows = [sizing.sheet(from_dict(GPTConfig, record["config"]["model"]))
            | {name: record[name] for name in ("size", "arm", "seed", "budget", "tokens", "bytes", "bits_per_byte")}
            for record, recipe in zip(found, recipes, strict=True) if recipe == usual[0][0]]
    return pd.DataFrame(rows)


def _recipe(record: Record) -> str:
    kept = {name: value for name, value in identity(record["config"]).items() if name not in ("model", "steps", "seed")}
    return json.dumps([kept, record["text"]])


def fit(table: pd.DataFrame) -> Law:
    """Fit the law to runs, as `runs` gives them, by least squares with PRIORS on the means over seeds.

    Raises UserError for fewer than three shapes and budgets.
    """
    from scipy import optimize

    means = table.groupby(["size", "arm", "budget"]).mean(numeric_only=True)
    if len(means) < 3:
        raise UserError(f"records of {len(means)} shapes and budgets are too few for a law: run `tinylib experiment "
                        "nano` first")
    center, spread = np.array(list(PRIORS.values())).T
    measured, noise, values = means["bits_per_byte"].to_numpy(float), 0.01, center

    def misfit(values: np.ndarray, noise: float) -> np.ndarray:
        return np.append((measured - _bits_per_byte(values, means)) / noise, (values - center) / spread)

    for _ in range(8):    # the noise weighs the records against the priors
        found = optimize.least_squares(misfit, values, x_scale=spread, args=(noise,))
        values, slopes = found.x, found.jac[:len(means)]
        covariance = np.linalg.inv(found.jac.T @ found.jac)
        df = len(means) - np.trace(covariance @ slopes.T @ slopes)    # each coefficient counts as far as records fix it
        noise = float(np.sqrt(np.sum((measured - _bits_per_byte(values, means)) ** 2) / df))
    per_token = np.polyfit(np.log(means["vocab_size"]), means["bytes"] / means["tokens"], 1)
    return Law(values, covariance, noise, per_token, len(table))


def unseen(table: pd.DataFrame, by: Sequence[str] = ("size", "arm")) -> pd.DataFrame:
    """Cross-validation: each run with the prediction of a law that was fitted without its group.

    `by` ("size", "arm") leaves out a shape with all its budgets and seeds, ("size",) all runs of a size.
    """
    import pandas as pd

    parts = [part.join(fit(table.drop(part.index)).at(part)) for _, part in table.groupby(list(by))]
    return pd.concat(parts).loc[table.index]


@functools.cache
def fitted() -> Law | None:
    """The law of the records in this checkout, or None where there are none, as in an installed package."""
    try:
        return fit(runs())
    except (FileNotFoundError, UserError):
        return None

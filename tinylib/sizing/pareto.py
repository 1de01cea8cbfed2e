"""The Pareto front of a search, and one line for each row that is shown."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import pandas as pd

CRITERIA = ("imbalance", "flops_per_token", "decode_bytes", "off_percent")
"""What the front of a search is of, as absolute values; less is better."""


def pareto_front(figures: np.ndarray) -> np.ndarray:
    """Pareto front: a mask of the rows of `figures` (rows × criteria, less is better) that no other row dominates.

    A row dominates another if it is at least as good in every criterion and better in one, so equal rows do not
    dominate each other.  Distinct rows are compared in lexicographic order, in blocks: only an earlier row can
    dominate a later one, so each block is settled in its turn, and drops all rows that it dominates.

    >>> pareto_front(np.array([[1, 3], [2, 4], [2, 2], [1, 3]])).tolist()
    [True, False, True, True]
    """
    distinct, group = np.unique(figures, axis=0, return_inverse=True)
    columns = np.ascontiguousarray(distinct.T)
    alive, front = np.arange(len(distinct)), np.zeros(len(distinct), bool)
    while len(alive):
        block = alive[:max(16, 2**21 // len(alive))]
        dominates = np.less_equal(columns[0, block, None], columns[0, alive])
        for column in columns[1:]:
            dominates &= column[block, None] <= column[alive]
        np.fill_diagonal(dominates, False)    # a row and itself
        dominated = dominates.any(0)
        front[block] = ~dominated[:len(block)]
        alive = alive[len(block):][~dominated[len(block):]]
    return front[group.reshape(-1)]


def describe(row: pd.Series, found: pd.DataFrame) -> str:
    """One line about a row of the search `found`: whether it is on the front, and how it differs from another row.

    A dominated row is compared with the first that dominates it, a row of the front with the first of all.  Imbalance
    is in percentage points, `off` is the distance from the target in percent, memory is that of decoding.

    >>> from tinylib.sizing import search
    >>> found = search()
    >>> describe(found.loc[1], found)
    'dominated by goldilocks: token ×1.25, memory ×1.18'
    """
    figures, own = found[list(CRITERIA)].abs().to_numpy(), row[list(CRITERIA)].abs().to_numpy(float)
    dominates = np.flatnonzero((figures <= own).all(1) & (figures < own).any(1))
    other = found.iloc[dominates[0] if len(dominates) else 0]
    if row.name == other.name:
        return f"first: {row['blocks_percent']:.2f} % in the blocks, {row['off_percent']:+.2f} % off target"
    steps = {"imbalance": row["imbalance"] - other["imbalance"],
             "off": abs(row["off_percent"]) - abs(other["off_percent"])}
    ratios = {"token": row["flops_per_token"] / other["flops_per_token"],
              "memory": row["decode_bytes"] / other["decode_bytes"]}
    changes = [f"{name} {step:+.2f}" for name, step in steps.items() if round(step, 2)]
    changes += [f"{name} ×{ratio:.2f}" for name, ratio in ratios.items() if round(ratio, 2) != 1]
    label = other["preset"] or f"{other['depth']} × {other['dim']}, V {other['vocab_size']:,}"
    place = "dominated by" if len(dominates) else "front; against"
    return f"{place} {label}: {', '.join(changes) or 'equal to two decimals'}"


def missed(found: pd.DataFrame) -> pd.DataFrame:
    """The rows of a search without a preset's name that are balanced at least as well as the worst that has one.

    >>> from tinylib.sizing import search
    >>> missed(search())[["depth", "dim", "vocab_size"]].values.tolist()
    [[16, 256, 49152], [64, 128, 98304], [28, 192, 65536], [63, 128, 98304]]
    """
    named = found["preset"] != ""
    return found[~named & (found["imbalance"] <= found.loc[named, "imbalance"].max())]

"""What each shape on a list trades: the Pareto front, a sentence for every row, what the hand-made list missed.

Texts are made by whole columns: a number is put into words once for each distinct value, never once for each shape.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import pandas as pd

_HARDLY = 0.005
"""Differences that two decimals can't show are left out of a sentence, or said to be small."""


def dominated_by(figures: np.ndarray) -> np.ndarray:
    """For each row of `figures` (rows × properties, less is better) the row that beats it; itself where none does.

    A row beats another if it is at least as good in every property and better in one; so equal rows stand together,
    and the Pareto front is where `dominated_by(figures) == arange(rows)`.  Of several that do, the first in lexicographic
    order is named: none beats that one.  Distinct rows are gone through in that order, in blocks: what beats a row
    stands before it, so a block is settled when its turn comes, and whatever it beats drops out.

    >>> dominated_by(np.array([[1, 3], [2, 4], [2, 2], [1, 3]])).tolist()
    [0, 0, 2, 3]
    """
    order = np.lexsort(figures.T[::-1])
    columns = np.ascontiguousarray(figures[order].T)
    first = np.r_[True, (columns[:, 1:] != columns[:, :-1]).any(0)] if len(order) else np.zeros(0, bool)
    columns, group = columns[:, first], np.cumsum(first) - 1
    by = np.arange(len(columns[0]))
    alive = by.copy()
    while len(alive):
        block = alive[:max(16, 2**21 // len(alive))]
        beats = np.less_equal(columns[0, block, None], columns[0, alive])
        for column in columns[1:]:
            beats &= column[block, None] <= column[alive]
        beaten = beats.any(0)    # each of the block by itself, if by none before it
        by[alive[beaten]] = block[beats[:, beaten].argmax(0)]
        alive = alive[len(block):][~beaten[len(block):]]
    result = np.arange(len(order))
    lost = by[group] != group
    result[order[lost]] = order[np.flatnonzero(first)[by[group[lost]]]]
    return result


def sentences(found: pd.DataFrame, by: np.ndarray, named: pd.DataFrame, target: float) -> np.ndarray:
    """What every row of a search trades, one sentence each, as an array of texts.

    `found`: rows of `search`, the best first; `by`: `dominated_by` of them; `named`: the same figures of the presets;
    `target`: wanted percent of the blocks.  A row says its depth, split and size; then whose size and split it has;
    then, beaten, by whom and in what; on the front, what it is best at, what it gains on the first row and pays for it.
    """
    rank, first = np.arange(len(found)), np.zeros(len(found), int)
    label, best = _labels(found), _superlatives(found)
    twin, answered = _twins(found, named)
    better, worse = _differences(found, rank, first)
    front = "against " + label[0] + ": " + _joined([_or(better, "better by a hair"), _before("but ", worse)])
    front = np.where((better == "") & (worse == ""), "like " + label[0] + " to two decimals", front)
    front = _joined([best, front], "; ")
    front[0] = _first(found, best[0])
    other, _ = _differences(found, by, rank)
    beaten = label[by] + " is at least as good in everything: " + _or(other, "better by a hair")
    beaten = np.where(answered & (by != rank), "", beaten)
    return _joined([_leads(found, target), twin, np.where(by == rank, front, beaten)], "; ")


def missed(found: pd.DataFrame) -> pd.DataFrame:
    """The rows of a search without a name that are balanced at least as well as the worst that has one.

    No rows if none has a name.

    >>> from tinylib.sizing import search
    >>> missed(search())[["depth", "dim", "vocab_size"]].values.tolist()
    [[16, 256, 49152], [64, 128, 98304], [28, 192, 65536], [63, 128, 98304]]
    """
    named = found["preset"] != ""
    return found[~named & (found["imbalance"] <= found.loc[named, "imbalance"].max())]


def practical_depth(found: pd.DataFrame) -> str:
    """Why depth, not arithmetic, chooses among shapes of one size and split, the best that several share: a sentence.

    >>> from tinylib.sizing import search
    >>> practical_depth(search())
    '4, 16 and 64 layers hold the same 37,748,736 parameters in the same split, but 64 layers work one after another \
and cost 1.75 × the compute of a token and 4 × the KV cache of 4: counting parameters cannot choose among them, \
practical depth does'
    """
    size_and_split = found.groupby(["wte", "blocks"])["depth"]
    shared = found[size_and_split.transform("size") > 1]
    if not len(shared):
        return "no two shapes here have the same size and split, so balance alone tells them apart"
    best = shared.iloc[0]
    same = shared[(shared["wte"] == best["wte"]) & (shared["blocks"] == best["blocks"])].sort_values("depth")
    low, high = same.iloc[0], same.iloc[-1]
    *some, last = (f"{depth:,}" for depth in same["depth"])
    compute, cache = (high[column] / low[column] for column in ("flops_per_token", "kv_cache_bytes"))
    return (f"{', '.join(some)} and {last} layers hold the same {best['total']:,} parameters in the same split, but "
            f"{last} layers work one after another and cost {compute:.3g} × the compute of a token and {cache:.3g} × "
            f"the KV cache of {some[0]}: counting parameters cannot choose among them, practical depth does")


def findings(found: pd.DataFrame) -> list[str]:
    """What a search found, in a few sentences: the named shapes, what no name stands for, the front, and depth.

    >>> from tinylib.sizing import search
    >>> findings(search())[0]
    'found by itself: goldilocks (rank 1), conventional (rank 4), extremist (rank 7)'
    """
    names, others = found.loc[found["preset"] != "", "preset"], missed(found)
    texts = ["no named shape is among them"]
    if len(names):
        some = "; ".join(_labels(others.head(5))) + (f" and {len(others) - 5:,} more" if len(others) > 5 else "")
        texts = ["found by itself: " + ", ".join(f"{name} (rank {rank + 1:,})" for rank, name in names.items()),
                 f"without a name, but balanced at least as well as {names.iloc[-1]}: {some or 'none'}"]
    front = f"{int(found['pareto'].sum()):,} of {len(found):,}"
    return [*texts, f"Pareto front: none beats {front} in distance from target, balance, FLOPs per token and decode "
            "memory together", practical_depth(found)]


def _said(values: Any, form: Callable[[Any], str]) -> np.ndarray:
    """`form` of every value; each distinct one is formed once."""
    distinct, where = np.unique(np.asarray(values), return_inverse=True)
    return np.array([form(value) for value in distinct.tolist()], dtype=object)[where]


def _joined(pieces: Sequence[np.ndarray], separator: str = ", ") -> np.ndarray:
    """Pieces side by side, row by row, leaving out what is empty."""
    whole = pieces[0]
    for piece in pieces[1:]:
        whole = whole + np.where((whole != "") & (piece != ""), separator, "").astype(object) + piece
    return whole


def _before(word: str, texts: np.ndarray) -> np.ndarray:
    return np.where(texts == "", "", word + texts)


def _or(texts: np.ndarray, word: str) -> np.ndarray:
    return np.where(texts == "", word, texts)


def _labels(found: pd.DataFrame) -> np.ndarray:
    """A preset's name, or depth × width with vocabulary."""
    shape = (_said(found["depth"], "{:,} × ".format) + _said(found["dim"], "{:,} with ".format)
             + _said(found["vocab_size"], "{:,}".format))
    for name in found["preset"].unique():
        if name:
            shape[found["preset"] == name] = name
    return shape


def _leads(found: pd.DataFrame, target: float) -> np.ndarray:
    """Depth, split and size of every row."""
    whole = {100 / 3: ("a third", "exact thirds"), 50.0: ("a half", "exact halves")}
    share, exact = whole.get(target, (f"{target:g} %", f"exactly {target:g} % in the blocks"))
    if share == "a half" and (found["lm_head"] > 0).any():
        exact = "exactly half in the blocks"
    layers = _said(found["depth"], lambda count: f"{count:,} layer{'s' * (count > 1)}")
    split = _said((found["blocks_percent"] - target).round(2), lambda points: (
        f"blocks {abs(points):.2f} points {'over' if points > 0 else 'under'} {share}" if points
        else f"blocks within 0.01 points of {share}"))
    size = _said(found["off_percent"].round(2), lambda off: (
        f"{abs(off):.2f} % {'above' if off > 0 else 'below'} target" if off else "within 0.01 % of target"))
    return _joined([layers, np.where(found["imbalance"] == 0, exact, split),
                    np.where(found["off_percent"] == 0, "exactly on target", size)])


def _differences(found: pd.DataFrame, rows: np.ndarray, others: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """In what `rows` are better than `others`, and in what worse; what two decimals can't show is left out."""
    def points(values: np.ndarray, form: str, better: str, worse: str) -> tuple[np.ndarray, np.ndarray]:
        steps = (values[rows] - values[others]).round(2)
        return (_said(steps, lambda step: form.format(-step, better) if step < -_HARDLY else ""),
                _said(steps, lambda step: form.format(step, worse) if step > _HARDLY else ""))

    def times(ratios: np.ndarray, word: str) -> tuple[np.ndarray, np.ndarray]:
        return (_said(ratios, lambda ratio: f"{word} ×{ratio:.2f}" if ratio < 1 - _HARDLY else ""),
                _said(ratios, lambda ratio: f"{word} ×{ratio:.2f}" if ratio > 1 + _HARDLY else ""))

    token, memory = _ratios(found.iloc[rows], found.iloc[others])
    alike = token == memory
    pairs = [points(found["off_percent"].abs().to_numpy(), "{:.2f} % {} target", "nearer to", "further from"),
             points(found["imbalance"].to_numpy(), "{:.2f} points {} balanced", "better", "less"),
             times(np.where(alike, token, 1), "token and decode memory"), times(np.where(alike, 1, token), "token"),
             times(np.where(alike, 1, memory), "decode memory")]
    better, worse = zip(*pairs, strict=True)
    return _joined(better), _joined(worse)


def _ratios(rows: Any, others: Any) -> tuple[np.ndarray, np.ndarray]:
    """FLOPs per token and decode memory of rows against others; of tied models they are the same."""
    return tuple(np.round(np.asarray(rows[column]) / np.asarray(others[column]), 2)
                 for column in ("flops_per_token", "decode_bytes"))


def _superlatives(found: pd.DataFrame) -> np.ndarray:
    """What a row is the best at of the whole list, but for balance, by which the list is sorted."""
    figures = {"nearest to target": found["off_percent"].abs(), "cheapest token": found["flops_per_token"],
               "least decode memory": found["decode_bytes"]}
    best = _joined([np.where(figure == figure.min(), "the " + word, "").astype(object)
                    for word, figure in figures.items()], " and ")
    return np.where(best == "", "", best + f" of all {len(found):,}")


def _first(found: pd.DataFrame, superlatives: str) -> str:
    """What stands behind the lead of the first row, which the others are measured against."""
    as_balanced = int((found["imbalance"] == found["imbalance"].iloc[0]).sum())
    text = f"the best balanced of all {len(found):,}" if as_balanced == 1 else (
        f"the cheapest token of the {as_balanced:,} best balanced")
    return "; ".join(filter(None, [text, superlatives]))


def _twins(found: pd.DataFrame, named: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """Whose size and split a row has, and at what price; and whether that says, too, that the named one beats it."""
    texts, answered = np.full(len(found), "", dtype=object), np.zeros(len(found), bool)
    listed = set(found["preset"].unique())
    for name, preset in named.iterrows():
        same = (found["wte"] == preset["wte"]) & (found["blocks"] == preset["blocks"]) & (found["preset"] != name)
        rows = found[same]
        deep = rows["depth"] / preset["depth"]
        how = _said(deep, lambda times, name=name: (
            f"the same size and split as {name}, " + ("as deep" if times == 1 else f"{times:.3g} × as deep"
                                                      if times > 1 else f"{1 / times:.3g} × shallower")))
        token, memory = _ratios(rows, preset)
        price = np.where(token == memory, _said(token, "token and decode memory ×{:.2f}".format),
                         _said(token, "token ×{:.2f}, ".format) + _said(memory, "decode memory ×{:.2f}".format))
        price = np.where(rows["flops_per_token"] == preset["flops_per_token"], "", price)
        texts[same] = _joined([how, price], ": ")
        answered[same] = (deep > 1) & (name in listed)
    return texts, answered

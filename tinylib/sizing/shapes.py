"""Grid search for balanced shapes of a given size."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from tinylib import checks
from tinylib.config import PRESETS, ConfigError
from tinylib.sizing.counts import Shapes
from tinylib.sizing.figures import COLUMNS, sheet
from tinylib.sizing.pareto import CRITERIA, pareto_front

if TYPE_CHECKING:
    import pandas as pd

_MOST_PAIRS, _MOST_CANDIDATES, _MOST_VOCABULARIES = 2_000_000, 200_000, 10_000_000
"""Limits of one search: pairs of depth and width, candidates, vocabulary sizes; each takes up to some 200 MB."""
_DEPTH, _DIM, _VOCAB, _CONTEXT = 100_000, 2**20, 2**32, 10**8
"""Largest legal values: up to these, and 1e13 parameters, no count overflows 64 bits."""


@dataclass(frozen=True)
class _Request:
    """The legal arguments of a search."""

    total: float
    head_dim: int
    vocab_V: np.ndarray
    """Distinct vocabulary sizes, sorted."""
    depths: tuple[int, int]
    dims: tuple[int, int]
    tied: bool
    tolerance: float


def search(total: float = 38e6, head_dim: int = 64, vocab_sizes: int | Sequence[int] = range(4096, 131_073, 4096),
           min_depth: int = 3, max_depth: int = 64, min_dim: int = 1, max_dim: int | None = None, tied: bool = False,
           tolerance: float = 0.02, blocks_percent: float | None = None, context: int = 2048) -> pd.DataFrame:
    """Every shape within `tolerance` (a share) of `total` parameters, the best balanced first.

    Balance is the distance of the blocks' share from `blocks_percent`: by default a third, of a tied model half, so
    that each table equals the blocks; equally balanced shapes are sorted by FLOPs per token.  Widths are the multiples
    of `head_dim` from `min_dim` to `max_dim` (None: what can fit); `vocab_sizes` may be one number.  Raises
    ConfigError with every problem of the arguments, or with the nearest size if no shape fits.

    Columns: preset (its name, or ""), those of `specifications` at `context` tokens, `off_percent` (distance from
    `total`), `imbalance` (percentage points), and `pareto`: whether no other row is at least as good in |off_percent|,
    imbalance, flops_per_token and decode_bytes and better in one.  `describe` puts a row into words.

    >>> search().head(2)[["preset", "depth", "dim", "vocab_size"]].values.tolist()
    [['goldilocks', 4, 512, 24576], ['', 16, 256, 49152]]
    """
    import pandas as pd

    vocab_V, wrong = _vocabularies(vocab_sizes)
    widest = _DIM if max_dim is None else max_dim
    checks.raise_if("search", [
        checks.check_float("total", total, 1, 1e13),
        checks.check_int("head_dim", head_dim, 2, _DIM, step=2, why="RoPE rotates pairs of channels"), *wrong,
        checks.check_int("min_depth", min_depth, most=_DEPTH), checks.check_int("max_depth", max_depth, most=_DEPTH),
        checks.check_int("min_dim", min_dim, most=_DIM), checks.check_int("max_dim", widest, most=_DIM),
        checks.check_choice("tied", tied, (True, False)),
        checks.check_float("tolerance", tolerance, 0, 1, note=" (0.02 is 2 %)"),
        None if blocks_percent is None else checks.check_float("blocks_percent", blocks_percent, 0.1, 99.9),
        checks.check_int("context", context, most=_CONTEXT),
        _depth_problem(min_depth, max_depth), _dim_problem(min_dim, widest, head_dim)])
    request = _Request(float(total), int(head_dim), vocab_V, (int(min_depth), int(max_depth)),
                       (int(min_dim), int(widest)), tied, float(tolerance))
    shapes = sheet(Shapes(*_candidates(request), int(head_dim), int(context), tied))
    target = (50 if tied else 100 / 3) if blocks_percent is None else float(blocks_percent)
    return _ranked(pd.DataFrame({name: shapes[name] for name in COLUMNS}), request.total, target)


def _ranked(found: pd.DataFrame, total: float, target: float) -> pd.DataFrame:
    """The candidates sorted by the criteria of the front, with the columns that compare them."""
    found["off_percent"] = 100 * (found["total"] - total) / total
    found["imbalance"] = (found["blocks_percent"] - target).abs().round(9)
    criteria = found[list(CRITERIA)].abs().to_numpy()
    best = np.lexsort(criteria.T[::-1])
    found = found.iloc[best].reset_index(drop=True)
    found.insert(0, "preset", "")
    for name, config in PRESETS.items():
        same = [found[field] == getattr(config, field) for field in ("depth", "dim", "vocab_size", "head_dim")]
        found.loc[np.logical_and.reduce(same), "preset"] = name
    found["pareto"] = pareto_front(criteria[best])
    return found


def _candidates(request: _Request) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Depth, width and vocabulary of every shape within the tolerance.

    For each depth and width the vocabularies that fit are one range of the sorted list, whose ends are found by
    bisection, in integers: the whole grid is never in memory.
    """
    slack = request.tolerance * request.total
    least, most = math.ceil(request.total - slack), math.floor(request.total + slack)
    depth, dim = _pairs(request)
    tables, blocks = (1 if request.tied else 2) * dim, 12 * depth * dim * dim
    first = np.searchsorted(request.vocab_V, -((blocks - least) // tables), "left")
    count = np.searchsorted(request.vocab_V, (most - blocks) // tables, "right") - first
    if count.sum() > _MOST_CANDIDATES:
        raise ConfigError("search", [_too_many(request.tolerance, int(count.sum()))])
    if not count.any():
        raise ConfigError("search", [_nearest(request, depth, dim, tables, blocks)])
    pair, nth = _ranges(first, count)
    return depth[pair], dim[pair], request.vocab_V[nth]


def _pairs(request: _Request) -> tuple[np.ndarray, np.ndarray]:
    """Depths and widths whose blocks alone are not too large, and the next width and depth, which may be nearest."""
    most, (shallowest, deepest) = request.total * (1 + request.tolerance), request.depths
    narrowest, widest = -(-request.dims[0] // request.head_dim), request.dims[1] // request.head_dim
    deepest = min(deepest, max(shallowest, int(most / 12 / (narrowest * request.head_dim)**2) + 1))
    depth = np.arange(shallowest, deepest + 1)
    heads = (np.sqrt(most / 12 / depth) / request.head_dim).astype(np.int64) + 1
    count = np.clip(heads, narrowest, widest) - narrowest + 1
    if count.sum() > _MOST_PAIRS:
        raise ConfigError("search", [
            f"max_depth={request.depths[1]} and max_dim={request.dims[1]} leave {count.sum()} pairs of depth and "
            f"width, more than the limit of {_MOST_PAIRS}: use lower ones, or a higher min_depth, min_dim or head_dim"])
    row, heads = _ranges(np.full(len(depth), narrowest), count)
    return depth[row], request.head_dim * heads


def _ranges(first: np.ndarray, count: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For each i `count[i]` rows: i, and beside it first[i], first[i] + 1 …

    >>> [rows.tolist() for rows in _ranges(np.array([5, 8]), np.array([2, 1]))]
    [[0, 0, 1], [5, 6, 8]]
    """
    row = np.repeat(np.arange(len(count)), count)
    return row, (first - np.cumsum(count) + count)[row] + np.arange(len(row))


def _too_many(tolerance: float, count: int) -> str:
    fit = tolerance * _MOST_CANDIDATES / count / 2
    fewer = f"tolerance={fit:.1g} or less, " if fit else ""
    return (f"tolerance={tolerance:g} leaves {count} candidates, more than the limit of {_MOST_CANDIDATES}: "
            f"use {fewer}wider steps in vocab_sizes or narrower limits")


def _nearest(request: _Request, depth: np.ndarray, dim: np.ndarray, tables: np.ndarray, blocks: np.ndarray) -> str:
    """The problem of an empty result: the nearest shape, of the vocabularies just below and above in every pair."""
    total, vocab_V = request.total, request.vocab_V
    above = np.searchsorted(vocab_V, (total - blocks) / tables)
    nth = np.clip([above - 1, above], 0, len(vocab_V) - 1)
    size = blocks + tables * vocab_V[nth]
    side, pair = np.unravel_index(np.argmin(np.abs(size - total)), size.shape)
    nearest = int(size[side, pair])
    needed = math.ceil(1000 * abs(nearest - total) / total) / 1000
    return (f"total={total:.15g} is not within tolerance={request.tolerance:g} of any shape in these limits; the "
            f"nearest holds {nearest}: depth={depth[pair]}, dim={dim[pair]}, vocab_size={vocab_V[nth[side, pair]]}: "
            f"use total={nearest}" + (f" or tolerance={needed:g}" if needed <= 1 else "")
            + ", or wider limits of depth, width or vocabulary")


def _depth_problem(least: Any, most: Any) -> str | None:
    if not (checks.is_int(least) and checks.is_int(most) and most < least):
        return None
    return f"max_depth={most} is below min_depth={least}: use max_depth={least} or min_depth={max(1, most)}"


def _dim_problem(least: Any, most: Any, head_dim: Any) -> str | None:
    if not all(checks.is_int(value) and value > 0 for value in (least, most, head_dim)):
        return None
    above, below = -(-int(least) // int(head_dim)) * int(head_dim), most // head_dim * head_dim
    if above <= most:
        return None
    return (f"max_dim={most} leaves no width, a multiple of head_dim={head_dim} from min_dim={least} on: use "
            f"max_dim={above}" + (f" or min_dim={below}" if below else ""))


def _vocabularies(sizes: Any) -> tuple[np.ndarray, list[str]]:
    """Distinct vocabulary sizes, sorted, or none and the problems with them, three at most."""
    none = np.zeros(0, np.int64)
    if not hasattr(sizes, "__len__") or isinstance(sizes, str | bytes | dict) or getattr(sizes, "ndim", 1) == 0:
        problem = checks.check_int("vocab_sizes", sizes, most=_VOCAB)
        return (none, [f"{problem}, or a list of such"]) if problem else (np.array([int(sizes)]), [])
    count = max(0, -((sizes.start - sizes.stop) // sizes.step)) if isinstance(sizes, range) else len(sizes)
    if not 0 < count <= _MOST_VOCABULARIES:
        return none, [f"vocab_sizes holds {count} sizes: use 1 to {_MOST_VOCABULARIES} of them"
                      + (", in wider steps" if count else "")]
    if isinstance(sizes, range):
        sizes = np.arange(sizes.start, sizes.stop, sizes.step)
    values = np.asarray(sizes) if hasattr(sizes, "dtype") else np.array([*sizes, None], object)[:-1]
    if values.dtype.kind in "iu" and values.ndim == 1:
        wrong = np.flatnonzero((values < 1) | (values > _VOCAB))
    else:
        wrong = [nth for nth, size in enumerate(values) if checks.check_int("", size, most=_VOCAB)]
    if not len(wrong):
        return np.unique(values.astype(np.int64)), []
    found = [checks.check_int(f"vocab_sizes[{nth}]", values[nth], most=_VOCAB) or "" for nth in wrong[:3]]
    return none, found + ([f"vocab_sizes has {len(wrong) - 3} more of that kind"] if len(wrong) > 3 else [])

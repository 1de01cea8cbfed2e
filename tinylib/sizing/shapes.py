"""The sheet of figures of a shape, and the search for a balanced one."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from tinylib.config import PRESETS, ConfigError
from tinylib.sizing.counts import flops, parts
from tinylib.sizing.pareto import dominated_by, sentences
from tinylib.sizing.request import Request, checked

if TYPE_CHECKING:
    import pandas as pd

_MOST_PAIRS, _MOST_CANDIDATES = 2_000_000, 200_000
"""Pairs of depth and width, and candidates, that a search holds: some 200 MB and seconds for either."""


def specifications() -> pd.DataFrame:
    """The sheet of every preset, indexed by its name: the columns of `search`, computed.

    >>> specifications().loc["goldilocks", ["depth", "dim", "total"]].tolist()
    [4, 512, 37748736]
    """
    import pandas as pd

    sheets = [_sheet(config.depth, config.dim, config.vocab_size, config.head_dim, config.tied, config.seq_len)
              for config in PRESETS.values()]
    return pd.concat([pd.DataFrame(sheet, index=[name]) for name, sheet in zip(PRESETS, sheets, strict=True)])


def search(total: float = 38e6, head_dim: int = 64, vocab_sizes: Sequence[int] = range(4096, 131_073, 4096),
           min_depth: int = 3, max_depth: int = 64, min_dim: int = 1, max_dim: int | None = None, tied: bool = False,
           tolerance: float = 0.02, blocks_percent: float | None = None, context: int = 2048) -> pd.DataFrame:
    """Every shape within `tolerance` (a share) of `total` parameters, the best balanced first.

    Balance is the distance of the blocks' share from `blocks_percent`: by default a third, of a tied model half, so
    that each table equals the blocks; among equals the cheaper token comes first.  Widths are all the multiples of
    `head_dim` from `min_dim` to `max_dim` (None: what can fit); `vocab_sizes` may be one number.  Raises ConfigError
    with everything that is wrong with a request, and names the nearest size if nothing fits.

    Columns: preset (a name, if the shape has one), the shape, parameters by part, split in percent, `per_layer`,
    `aspect` (dim / depth), `flops_per_token` at `context`, `tokens` at 20 per parameter and the `training_flops` on
    them; `kv_cache_bytes` of one sequence of `context` tokens and `decode_bytes`, weights and that cache, in float32;
    `off_percent` (distance from `total`), `imbalance` (percentage points); `pareto`: no other candidate is at least
    as good in |off_percent|, imbalance, flops_per_token and decode_bytes and better in one; `trades`: in words.

    >>> found = search()
    >>> found.head(2)[["preset", "depth", "dim", "vocab_size"]].values.tolist()
    [['goldilocks', 4, 512, 24576], ['', 16, 256, 49152]]
    >>> found.trades[1]
    '16 layers, exact thirds, 0.66 % below target; the same size and split as goldilocks, 4 × as deep: token ×1.25, \
decode memory ×1.18'
    """
    request = checked(total, head_dim, vocab_sizes, (min_depth, max_depth), (min_dim, max_dim), tied, tolerance,
                      blocks_percent, context)
    found, figures = _ranked(request, *_candidates(request))
    named = _frame(request, *(np.array([getattr(config, field) for config in PRESETS.values()])
                              for field in ("depth", "dim", "vocab_size"))).set_axis(list(PRESETS))
    by = dominated_by(figures)
    found["pareto"] = by == np.arange(len(by))
    found["trades"] = sentences(found, by, named, request.target)
    return found


def _frame(request: Request, depth: np.ndarray, dim: np.ndarray, vocab_size: np.ndarray) -> pd.DataFrame:
    import pandas as pd

    return pd.DataFrame(_sheet(depth, dim, vocab_size, request.head_dim, request.tied, request.context))


def _ranked(request: Request, depth: np.ndarray, dim: np.ndarray,
            vocab_size: np.ndarray) -> tuple[pd.DataFrame, np.ndarray]:
    """The sheets of these shapes, the best balanced first, and beside them the four figures that the front is of."""
    found = _frame(request, depth, dim, vocab_size)
    found["off_percent"] = 100 * (found["total"] - request.total) / request.total
    found["imbalance"] = (found["blocks_percent"] - request.target).abs().round(9)
    figures = np.stack([found["imbalance"], found["flops_per_token"], found["decode_bytes"],
                        found["off_percent"].abs()], axis=1)
    best = np.lexsort(figures.T[::-1])
    found = found.iloc[best].reset_index(drop=True)
    found.insert(0, "preset", _preset_names(found))
    return found, figures[best]


def _candidates(request: Request) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Depth, width and vocabulary of every shape within the tolerance.

    For each depth and width the vocabularies that fit are a stretch of the sorted list, whose ends are found by
    bisection, in whole numbers: of a grid of millions only the candidates are ever made.
    """
    slack = request.tolerance * request.total
    least, most = math.ceil(request.total - slack), math.floor(request.total + slack)
    depth, dim = _pairs(request)
    tables, blocks = (1 if request.tied else 2) * dim, parts(depth, dim, 0)[1]
    first = np.searchsorted(request.vocab_V, -((blocks - least) // tables), "left")
    count = np.searchsorted(request.vocab_V, (most - blocks) // tables, "right") - first
    if count.sum() > _MOST_CANDIDATES:
        raise ConfigError("search", [_too_many(request.tolerance, int(count.sum()))])
    if not count.any():
        raise ConfigError("search", [_nearest(request, depth, dim, tables, blocks)])
    pair, nth = _runs(first, count)
    return depth[pair], dim[pair], request.vocab_V[nth]


def _pairs(request: Request) -> tuple[np.ndarray, np.ndarray]:
    """Depths and widths whose blocks are not too large, and for each depth (and beyond the last) the next, which is."""
    most, (shallowest, deepest) = request.total * (1 + request.tolerance), request.depths
    narrowest = -(-request.dims[0] // request.head_dim)
    widest = None if request.dims[1] is None else request.dims[1] // request.head_dim
    deepest = min(deepest, max(shallowest, int(most / 12 / (narrowest * request.head_dim)**2) + 1))
    depth = np.arange(shallowest, deepest + 1)
    heads = (np.sqrt(most / 12 / depth) / request.head_dim).astype(np.int64) + 1
    count = np.clip(heads, narrowest, widest) - narrowest + 1
    if count.sum() > _MOST_PAIRS:
        raise ConfigError("search", [
            f"max_depth={request.depths[1]} and max_dim={request.dims[1]} leave {count.sum()} pairs of depth and "
            f"width, more than the {_MOST_PAIRS} that a search holds: use lower ones, or a higher min_depth, min_dim "
            f"or head_dim"])
    row, heads = _runs(np.full(len(depth), narrowest), count)
    return depth[row], request.head_dim * heads


def _too_many(tolerance: float, count: int) -> str:
    fit = tolerance * _MOST_CANDIDATES / count / 2
    fewer = f"tolerance={fit:.1g} or less, " if fit else ""
    return (f"tolerance={tolerance:g} leaves {count} candidates, more than the {_MOST_CANDIDATES} that a list holds: "
            f"use {fewer}wider steps in vocab_sizes or narrower limits")


def _nearest(request: Request, depth: np.ndarray, dim: np.ndarray, tables: np.ndarray, blocks: np.ndarray) -> str:
    """That nothing is near the total, and the shape that is nearest: above or below it in vocabulary, in some pair."""
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


def _runs(first: np.ndarray, count: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For each i `count[i]` rows: i, and beside it first[i], first[i] + 1 …

    >>> [rows.tolist() for rows in _runs(np.array([5, 8]), np.array([2, 1]))]
    [[0, 0, 1], [5, 6, 8]]
    """
    row = np.repeat(np.arange(len(count)), count)
    return row, (first - np.cumsum(count) + count)[row] + np.arange(len(row))


def _preset_names(frame: pd.DataFrame) -> Any:
    names = np.full(len(frame), "", dtype=object)
    for name, config in PRESETS.items():
        same = [frame[column] == getattr(config, column) for column in ("depth", "dim", "vocab_size", "head_dim")]
        names[np.logical_and.reduce(same)] = name
    return names


def _sheet(depth: Any, dim: Any, vocab_size: Any, head_dim: int, tied: bool, context: int) -> dict[str, Any]:
    """Every figure of a shape by name; whole numbers or arrays of them."""
    table, blocks = parts(depth, dim, vocab_size)
    total = blocks + (table if tied else 2 * table)
    cost, cache = flops(depth, dim, vocab_size, context), 4 * 2 * depth * dim * context
    return {"depth": depth, "dim": dim, "n_head": dim // head_dim, "head_dim": head_dim, "vocab_size": vocab_size,
            "wte": table, "blocks": blocks, "lm_head": 0 * table if tied else table,
            "total": total, "total_tied": table + blocks, "wte_percent": 100 * table / total,
            "blocks_percent": 100 * blocks / total, "lm_head_percent": 0 * table if tied else 100 * table / total,
            "per_layer": blocks // depth, "aspect": dim / depth, "flops_per_token": cost, "tokens": 20 * total,
            "training_flops": 20.0 * total * cost, "kv_cache_bytes": cache, "decode_bytes": 4 * total + cache}

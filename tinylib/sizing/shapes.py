"""The sheet of figures of a shape, and the search for a balanced one."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from tinylib.config import PRESETS, ConfigError, head_problem
from tinylib.sizing.counts import check, flops, parts

if TYPE_CHECKING:
    import pandas as pd


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
           min_depth: int = 3, max_depth: int = 64, tied: bool = False, tolerance: float = 0.02,
           blocks_percent: float | None = None, context: int = 2048) -> pd.DataFrame:
    """Every shape within `tolerance` (a share) of `total` parameters, the best balanced first.

    Balance is the distance of the blocks' share from `blocks_percent`: by default a third, of a tied model half, so
    that each table equals the blocks; among equals the cheaper token comes first.  Widths are all the multiples of
    `head_dim` that can fit.  Raises ConfigError for an impossible request, and names the nearest size if nothing fits.

    Columns: preset (a name, if the shape has one), the shape, parameters by part, split in percent, `off_percent`
    (distance from `total`), `imbalance` (percentage points), `per_layer`, `aspect` (dim / depth),
    `flops_per_token` at `context`, `tokens` at 20 per parameter and the `training_flops` on them.

    >>> search().head(2)[["preset", "depth", "dim", "vocab_size"]].values.tolist()
    [['goldilocks', 4, 512, 24576], ['', 16, 256, 49152]]
    """
    import pandas as pd

    target = (50.0 if tied else 100 / 3) if blocks_percent is None else blocks_percent
    _check_search(total, head_dim, vocab_sizes, min_depth, max_depth, tolerance, target, context)
    widest = max(1, math.isqrt(int(total * (1 + tolerance) / 12 / min_depth)) // head_dim)
    depth, dim, vocab = (grid.ravel() for grid in np.meshgrid(
        np.arange(min_depth, max_depth + 1), head_dim * np.arange(1, widest + 1), np.asarray(vocab_sizes, np.int64)))
    table, blocks = parts(depth, dim, vocab)
    size = blocks + (table if tied else 2 * table)
    near = np.abs(size - total) <= tolerance * total
    if not near.any():
        closest = int(size[np.argmin(np.abs(size - total))])
        raise ConfigError("search", [f"total={total:g}: no shape is within tolerance={tolerance:g} of it; "
                                     f"the nearest holds {closest}: ask for that, or raise tolerance"])
    frame = pd.DataFrame(_sheet(depth[near], dim[near], vocab[near], head_dim, tied, context))
    frame.insert(0, "preset", _preset_names(frame))
    frame["off_percent"] = 100 * (frame["total"] - total) / total
    frame["imbalance"] = (frame["blocks_percent"] - target).abs().round(9)
    return frame.sort_values(["imbalance", "flops_per_token"], ignore_index=True)


def _check_search(total: float, head_dim: int, vocab_sizes: Sequence[int], min_depth: int, max_depth: int,
                  tolerance: float, target: float, context: int) -> None:
    whole = {"head_dim": head_dim, "min_depth": min_depth, "max_depth": max_depth, "context": context}
    whole |= {f"vocab_sizes[{index}]": int(size) for index, size in enumerate(vocab_sizes) if size < 1}
    problems = []
    if not 0 < target < 100:
        problems.append(f"blocks_percent={target!r} is no split: use more than 0, less than 100")
    if not len(vocab_sizes):
        problems.append("vocab_sizes is empty: give at least one")
    if head_dim % 2:
        problems.append(head_problem(head_dim, head_dim))
    if max_depth < min_depth:
        problems.append(f"max_depth={max_depth} is below min_depth={min_depth}: use {min_depth} or more")
    check("search", problems, whole, {"total": total, "tolerance": tolerance})


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
    cost = flops(depth, dim, vocab_size, context)
    return {"depth": depth, "dim": dim, "n_head": dim // head_dim, "head_dim": head_dim, "vocab_size": vocab_size,
            "wte": table, "blocks": blocks, "lm_head": 0 * table if tied else table,
            "total": total, "total_tied": table + blocks, "wte_percent": 100 * table / total,
            "blocks_percent": 100 * blocks / total, "lm_head_percent": 0 * table if tied else 100 * table / total,
            "per_layer": blocks // depth, "aspect": dim / depth, "flops_per_token": cost, "tokens": 20 * total,
            "training_flops": 20.0 * total * cost}

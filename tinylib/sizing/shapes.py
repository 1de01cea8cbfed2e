"""Tables of shapes: every figure of a shape, the grid search for balanced ones, and its Pareto front."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from tinylib import checks
from tinylib.config import PRESETS, ConfigError, GPTConfig
from tinylib.sizing.budgets import BUDGETS
from tinylib.sizing.counts import Shapes, flops_by_part, flops_per_token, parameters
from tinylib.sizing.memory import (
    activation_bytes,
    chunk_rows,
    kv_cache_bytes,
    loss_bytes,
    optimizer_bytes,
    weight_bytes,
)

if TYPE_CHECKING:
    import pandas as pd

COLUMNS = ("depth", "dim", "n_head", "head_dim", "vocab_size", "wte", "blocks", "lm_head", "total", "total_tied",
           "wte_percent", "blocks_percent", "lm_head_percent", "per_layer", "aspect", "flops_per_token", "tokens",
           "training_flops", "kv_cache_bytes", "decode_bytes")
"""The figures of a shape in `specifications` and `search`."""
CRITERIA = ("imbalance", "flops_per_token", "decode_bytes", "off_percent")
"""Criteria of the Pareto front of a search, as absolute values; less is better."""
_MOST_PAIRS, _MOST_CANDIDATES, _MOST_VOCABULARIES = 2_000_000, 200_000, 10_000_000
"""Limits of one search: pairs of depth and width, candidates, vocabulary sizes; each takes up to some 200 MB."""
_DEPTH, _DIM, _VOCAB, _CONTEXT = 100_000, 2**20, 2**32, 10**8
"""Largest legal values: up to these, and 1e13 parameters, no count overflows 64 bits."""


def sheet(config: GPTConfig | Shapes, batch_size: int = 1) -> dict[str, Any]:
    """Every figure of a model by name; of Shapes, arrays.  All tables of shapes take their figures from here.

    `aspect` is dim / depth.  FLOPs are per token at a context of `seq_len`, except `prefill_flops` of a sequence and
    `training_flops` of `tokens`, 20 per parameter.  Bytes are of float32, with `batch_size` sequences at once;
    `decode_bytes` are weights and KV cache.

    >>> from tinylib.config import PRESETS
    >>> sheet(PRESETS["goldilocks"])["decode_flops"]
    67108864
    >>> import numpy as np
    >>> sheet(Shapes(np.array([4, 16]), np.array([512, 256]), np.array([24_576, 49_152])))["total"].tolist()
    [37748736, 37748736]
    """
    count, token = parameters(config), flops_by_part(config)
    tokens = BUDGETS["all"].tokens_per_parameter * count.total
    weights, cache = weight_bytes(config), kv_cache_bytes(config, batch_size)
    return {
        "depth": config.depth, "dim": config.dim, "n_head": config.n_head, "head_dim": config.head_dim,
        "vocab_size": config.vocab_size, **vars(count),
        **{f"{part}_percent": share for part, share in count.split.items()}, "aspect": config.dim / config.depth,
        "flops_per_token": token.total, "forward_flops": token.forward, "backward_flops": token.backward,
        "flops_per_token_causal": flops_per_token(config, convention="causal"),
        "prefill_flops": config.seq_len * token.forward, "decode_flops": token.forward,
        "tokens": tokens, "training_flops": 1.0 * tokens * token.total,
        "weight_bytes": weights, "gradient_bytes": weights, "optimizer_bytes": optimizer_bytes(config),
        "activation_bytes": activation_bytes(config, batch_size),
        "activation_bytes_recomputed": activation_bytes(config, batch_size, recompute=True),
        "loss_bytes_naive": loss_bytes(config, batch_size),
        "loss_bytes_chunked": loss_bytes(config, batch_size, rows=chunk_rows(config.vocab_size)),
        "kv_cache_bytes": cache, "decode_bytes": weights + cache}


def specifications() -> pd.DataFrame:
    """The figures of every preset, indexed by its name: the columns of `search`.

    >>> specifications().loc["goldilocks", ["depth", "dim", "total"]].tolist()
    [4, 512, 37748736]
    """
    import pandas as pd

    sheets = {name: sheet(config) for name, config in PRESETS.items()}
    return pd.DataFrame.from_dict(sheets, orient="index")[list(COLUMNS)]


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

    widest = _DIM if max_dim is None else max_dim
    checks.raise_if("search", [
        checks.check_float("total", total, 1, 1e13),
        checks.check_int("head_dim", head_dim, 2, _DIM, step=2, why="RoPE rotates pairs of channels"),
        checks.check_int("min_depth", min_depth, most=_DEPTH), checks.check_int("max_depth", max_depth, most=_DEPTH),
        checks.check_int("min_dim", min_dim, most=_DIM), checks.check_int("max_dim", widest, most=_DIM),
        checks.check_choice("tied", tied, (True, False)),
        checks.check_float("tolerance", tolerance, 0, 1, note=" (0.02 is 2%)"),
        None if blocks_percent is None else checks.check_float("blocks_percent", blocks_percent, 0.1, 99.9),
        checks.check_int("context", context, most=_CONTEXT), *_vocabulary_problems(vocab_sizes)])
    vocab_V = np.unique(np.array(list(vocab_sizes) if np.iterable(vocab_sizes) else [vocab_sizes], dtype=np.int64))
    depth, dim = _pairs(total * (1 + tolerance), int(head_dim), range(min_depth, max_depth + 1),
                        range(min_dim, widest + 1))
    shapes = sheet(Shapes(*_candidates(total, tolerance, depth, dim, vocab_V, tied), int(head_dim), int(context), tied))
    target = (50 if tied else 100 / 3) if blocks_percent is None else float(blocks_percent)
    return _ranked(pd.DataFrame({name: shapes[name] for name in COLUMNS}), float(total), target)


def _ranked(found: pd.DataFrame, total: float, target: float) -> pd.DataFrame:
    """The candidates sorted by the criteria of the front, with the columns that compare them."""
    found["off_percent"] = 100 * (found["total"] - total) / total
    found["imbalance"] = (found["blocks_percent"] - target).abs().round(9)
    criteria = found[list(CRITERIA)].abs().to_numpy()
    best = np.lexsort(criteria.T[::-1])
    found = found.iloc[best].reset_index(drop=True)
    names = {(config.depth, config.dim, config.vocab_size, config.head_dim): name for name, config in PRESETS.items()}
    rows = zip(found["depth"], found["dim"], found["vocab_size"], found["head_dim"], strict=True)
    found.insert(0, "preset", [names.get(row, "") for row in rows])
    found["pareto"] = pareto_front(criteria[best])
    return found


def _pairs(most: float, head_dim: int, depths: range, dims: range) -> tuple[np.ndarray, np.ndarray]:
    """Every depth with every width, up to the first whose blocks alone have more than `most` parameters."""
    if not depths:
        raise ConfigError("search", [f"max_depth={depths.stop - 1} is below min_depth={depths.start}: use "
                                     f"max_depth={depths.start} or more"])
    widest = int(math.sqrt(most / 12 / depths.start)) + head_dim
    narrowest = -(-dims.start // head_dim) * head_dim
    dim = np.arange(narrowest, min(dims.stop, max(widest, narrowest) + 1), head_dim)
    if not len(dim):
        raise ConfigError("search", [f"max_dim={dims.stop - 1} leaves no width, a multiple of head_dim={head_dim} from "
                                     f"min_dim={dims.start} on: use max_dim={narrowest}"])
    depth = np.arange(depths.start, min(depths.stop, max(int(most / 12 / narrowest**2), depths.start) + 2))
    if len(depth) * len(dim) > _MOST_PAIRS:
        raise ConfigError("search", [
            f"max_depth={depths.stop - 1} and max_dim={dims.stop - 1} leave {len(depth) * len(dim)} pairs of depth and "
            f"width, more than the limit of {_MOST_PAIRS}: use lower ones, or a higher min_depth, min_dim or head_dim"])
    return np.repeat(depth, len(dim)), np.tile(dim, len(depth))


def _candidates(total: float, tolerance: float, depth: np.ndarray, dim: np.ndarray, vocab_V: np.ndarray,
                tied: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Depth, width and vocabulary of every shape within the tolerance.

    For each depth and width the vocabularies that fit are one range of the sorted list, whose ends are found by
    bisection, in integers: the whole grid is never in memory.
    """
    tables, blocks = (1 if tied else 2) * dim, 12 * depth * dim * dim
    least, most = math.ceil(total - tolerance * total), math.floor(total + tolerance * total)
    first = np.searchsorted(vocab_V, -((blocks - least) // tables), "left")
    count = np.searchsorted(vocab_V, (most - blocks) // tables, "right") - first
    if count.sum() > _MOST_CANDIDATES:
        raise ConfigError("search", [
            f"tolerance={tolerance:g} leaves {count.sum()} candidates, more than the limit of {_MOST_CANDIDATES}: use "
            "a smaller tolerance, wider steps in vocab_sizes or narrower limits"])
    if count.any():
        pair = np.repeat(np.arange(len(count)), count)
        nth = np.arange(len(pair)) - (np.cumsum(count) - count)[pair]
        return depth[pair], dim[pair], vocab_V[first[pair] + nth]
    above = np.searchsorted(vocab_V, (total - blocks) / tables)
    nth = np.clip([above - 1, above], 0, len(vocab_V) - 1)    # in every pair, the vocabularies just below and above
    size = blocks + tables * vocab_V[nth]
    side, pair = np.unravel_index(np.argmin(np.abs(size - total)), size.shape)
    nearest = int(size[side, pair])
    needed = math.ceil(1000 * abs(nearest - total) / total) / 1000
    raise ConfigError("search", [
        f"total={total:.15g} is not within tolerance={tolerance:g} of any shape in these limits; the nearest holds "
        f"{nearest}: depth={depth[pair]}, dim={dim[pair]}, vocab_size={vocab_V[nth[side, pair]]}: use total={nearest}"
        + (f" or tolerance={needed:g}" if needed <= 1 else "") + ", or wider limits of depth, width or vocabulary"])


def _vocabulary_problems(sizes: Any) -> list[str | None]:
    """The problem with one vocabulary size, or with the first wrong one of many."""
    if not np.iterable(sizes) or isinstance(sizes, str):
        return [checks.check_int("vocab_sizes", sizes, most=_VOCAB)]
    if not 0 < len(sizes) <= _MOST_VOCABULARIES:
        return [f"vocab_sizes holds {len(sizes)} sizes: use 1 to {_MOST_VOCABULARIES} of them"]
    wrong = (checks.check_int(f"vocab_sizes[{nth}]", size, most=_VOCAB) for nth, size in enumerate(sizes))
    return [next(filter(None, wrong), None)]


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
        return f"first: {row['blocks_percent']:.2f}% in the blocks, {row['off_percent']:+.2f}% off target"
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

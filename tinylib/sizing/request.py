"""What a search may be asked: every problem of a request at once, each with the nearest legal values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tinylib import checks

_VOCABULARIES = 10_000_000
"""Longest list of vocabulary sizes: 80 MB of numbers."""
_DEPTH, _DIM, _VOCAB, _CONTEXT = 100_000, 2**20, 2**32, 10**8
"""Largest legal values: below them, and 1e13 parameters, no count leaves 64 bits."""


@dataclass(frozen=True)
class Request:
    """A search whose arguments are legal, see `tinylib.sizing.search`."""

    total: float
    head_dim: int
    vocab_V: np.ndarray
    """Vocabulary sizes, sorted, each once."""
    depths: tuple[int, int]
    dims: tuple[int, int | None]
    tied: bool
    tolerance: float
    target: float
    """Wanted share of the blocks in percent."""
    context: int


def checked(total: float, head_dim: int, vocab_sizes: int | Sequence[int], depths: tuple[int, int],
            dims: tuple[int, int | None], tied: bool, tolerance: float, blocks_percent: float | None,
            context: int) -> Request:
    """The request; raises ConfigError with every problem: field, value, rule, nearest legal values."""
    widest = _DIM if dims[1] is None else dims[1]
    vocab_V, wrong = _vocabularies(vocab_sizes)
    checks.raise_if("search", [
        checks.check_float("total", total, 1, 1e13), checks.check_int("head_dim", head_dim, 2, _DIM, step=2), *wrong,
        checks.check_int("min_depth", depths[0], most=_DEPTH), checks.check_int("max_depth", depths[1], most=_DEPTH),
        checks.check_int("min_dim", dims[0], most=_DIM), checks.check_int("max_dim", widest, most=_DIM),
        checks.check_choice("tied", tied, (True, False)), checks.check_float("tolerance", tolerance, 0, 1, note=" (0.02 is 2 %)"),
        None if blocks_percent is None else checks.check_float("blocks_percent", blocks_percent, 0.1, 99.9),
        checks.check_int("context", context, most=_CONTEXT),
        _depth_problem(*depths), _dim_problem(dims[0], widest, head_dim)])
    target = (50 if tied else 100 / 3) if blocks_percent is None else blocks_percent
    return Request(float(total), int(head_dim), vocab_V, (int(depths[0]), int(depths[1])),
                   (int(dims[0]), None if dims[1] is None else int(dims[1])), bool(tied), float(tolerance),
                   float(target), int(context))


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
    """Vocabulary sizes, sorted, each once, and what is wrong with them; at most three are named."""
    none = np.zeros(0, np.int64)
    if not hasattr(sizes, "__len__") or isinstance(sizes, str | bytes | dict) or getattr(sizes, "ndim", 1) == 0:
        problem = checks.check_int("vocab_sizes", sizes, most=_VOCAB)
        return (none, [f"{problem}, or a list of such"]) if problem else (np.array([int(sizes)]), [])
    count = max(0, -((sizes.start - sizes.stop) // sizes.step)) if isinstance(sizes, range) else len(sizes)
    if not 0 < count <= _VOCABULARIES:
        return none, [f"vocab_sizes holds {count} sizes: use 1 to {_VOCABULARIES} of them"
                      + (", in wider steps" if count else "")]
    if isinstance(sizes, range):
        sizes = np.arange(sizes.start, sizes.stop, sizes.step)
    whole = hasattr(sizes, "dtype") or set(map(type, sizes)) == {int}
    values = np.asarray(sizes) if whole else none
    if values.dtype.kind in "iu" and values.ndim == 1 and len(values):
        wrong = np.flatnonzero((values < 1) | (values > _VOCAB)).tolist()
    else:
        values = list(sizes)
        wrong = [index for index, size in enumerate(values) if checks.check_int("", size, most=_VOCAB)]
    if not wrong:
        return np.unique(np.asarray(values, np.int64)), []
    found = [checks.check_int(f"vocab_sizes[{index}]", values[index], most=_VOCAB) or "" for index in wrong[:3]]
    more = [f"vocab_sizes has {len(wrong) - 3} more of that kind: mend them likewise"]
    return none, found + (more if len(wrong) > 3 else [])

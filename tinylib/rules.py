"""What is wrong with a value, said in one way everywhere: the field, the value, the rule, and what would do.

Each rule returns one problem as text, or None where nothing is wrong; `refuse` raises all problems at once.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from numbers import Integral, Real
from typing import Any


class ConfigError(ValueError):
    """A request that breaks its rules; the message lists every problem: field, value, rule, fix."""

    def __init__(self, owner: str, problems: list[str]) -> None:
        self.problems = problems
        super().__init__(f"{owner}: " + "; ".join(problems))


def refuse(owner: str, problems: Iterable[str | None]) -> None:
    """Raise ConfigError with every problem there is, if there is one."""
    found = [problem for problem in problems if problem]
    if found:
        raise ConfigError(owner, found)


def is_whole(value: Any) -> bool:
    """Whether `value` is a whole number, Python's or numpy's; True and False are none."""
    return isinstance(value, Integral) and not isinstance(value, bool)


def whole(name: str, value: Any, least: int = 1, most: int | None = None, step: int = 1) -> str | None:
    """What is wrong with `value` as a multiple of `step` from `least` to `most`.

    >>> whole("head_dim", 7, least=2, step=2)
    'head_dim=7 is not an even whole number (RoPE turns pairs) of at least 2: use 6 or 8'
    """
    if is_whole(value) and least <= value and (most is None or value <= most) and value % step == 0:
        return None
    kind = "an even whole number (RoPE turns pairs)" if step == 2 else "a whole number"
    limits = f"of at least {least}" if most is None else f"from {least} to {most}"
    return f"{name}={plain(value)!r} is not {kind} {limits}: use {_nearest_whole(value, least, most, step)}"


def _nearest_whole(value: Any, least: int, most: int | None, step: int) -> str:
    if most is not None and isinstance(value, Real) and value > most:
        return f"{most} or less"
    if isinstance(value, bool) or not isinstance(value, Real) or not math.isfinite(value) or value < least:
        return f"{least} or more"
    return either(size for size in neighbours(int(value), step) if size >= least and (most is None or size <= most))


def number(name: str, value: Any, low: float, high: float = math.inf, above: bool = False,
           note: str = "") -> str | None:
    """What is wrong with `value` as a finite number from `low` (or above it, if `above`) to `high`.

    >>> number("mfu", 2, 0, 1, above=True), number("tolerance", -0.1, 0, 1)
    ('mfu=2 is not a number above 0, at most 1: use 1', 'tolerance=-0.1 is not a number from 0 to 1: use 0')
    """
    real = isinstance(value, Real) and not isinstance(value, bool) and value == value
    if real and low <= value <= high and value != math.inf and not (above and value == low):
        return None
    first, last = f"{low:.15g}", f"{high:.15g}"
    rule = f"from {first} to {last}"
    if above or high == math.inf:
        rule = f"{'above' if above else 'of at least'} {first}" + (f", at most {last}" if high < math.inf else "")
    fix = f"a number {rule}"
    if real and value > high:
        fix = last
    elif real and value < low and not above:
        fix = first
    return f"{name}={plain(value)!r} is not a number {rule}{note}: use {fix}"


def choice(name: str, value: Any, legal: Iterable[Any]) -> str | None:
    """What is wrong with `value` if it is none of the `legal` ones.

    >>> choice("budget", "some", ("all", "blocks"))
    "budget='some' is not a choice: use all or blocks"
    """
    options = list(legal)
    known = any(type(value) is type(option) and value == option for option in options)
    return None if known else f"{name}={value!r} is not a choice: use {either(options)}"


def neighbours(value: int, step: int) -> list[int]:
    """The multiples of `step` just below and above `value`, leaving out zero.

    >>> neighbours(500, 64), neighbours(30, 64)
    ([448, 512], [64])
    """
    below = value // step * step
    return [multiple for multiple in (below, below + step) if multiple > 0]


def either(values: Iterable[Any]) -> str:
    """The values in words.

    >>> either([1, 2, 3])
    '1, 2 or 3'
    """
    *some, last = map(str, values)
    return f"{', '.join(some)} or {last}" if some else last


def plain(value: Any) -> Any:
    """Python's own number for numpy's, which prints shorter."""
    return value.item() if hasattr(value, "item") and getattr(value, "ndim", 1) == 0 else value

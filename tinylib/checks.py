"""Validation: one message for a wrong value, with the field, the value, the rule and the nearest legal values.

Each `check_…` returns one problem as text, or None where nothing is wrong; `raise_if` raises all problems at once.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from numbers import Integral, Real
from typing import Any


class UserError(ValueError):
    """An error that the user can mend; the command line shows its message alone, without a traceback."""


class ConfigError(UserError):
    """A configuration that breaks its rules; the message lists every problem: field, value, rule, fix."""

    def __init__(self, owner: str, problems: list[str]) -> None:
        self.problems = problems
        super().__init__(f"{owner}: " + "; ".join(problems))


def raise_if(owner: str, problems: Iterable[str | None]) -> None:
    """Raise ConfigError with every problem that is not None, if there is one."""
    found = [problem for problem in problems if problem]
    if found:
        raise ConfigError(owner, found)


def is_int(value: Any) -> bool:
    """Whether `value` is an integer, Python's or numpy's; True and False are not."""
    return isinstance(value, Integral) and not isinstance(value, bool)


def check_int(name: str, value: Any, least: int = 1, most: int | None = None, step: int = 1,
              why: str = "") -> str | None:
    """The problem with `value` as a multiple of `step` from `least` to `most`; `why` explains the rule.

    >>> check_int("head_dim", 7, least=2, step=2, why="RoPE rotates pairs of channels")
    'head_dim=7 is not a multiple of 2 of at least 2 (RoPE rotates pairs of channels): use 6 or 8'
    """
    if is_int(value) and least <= value and (most is None or value <= most) and value % step == 0:
        return None
    kind = "a whole number" if step == 1 else f"a multiple of {step}"
    limits = f"of at least {least}" if most is None else f"from {least} to {most}"
    reason = f" ({why})" if why else ""
    return f"{name}={plain(value)!r} is not {kind} {limits}{reason}: use {_nearest_int(value, least, most, step)}"


def _nearest_int(value: Any, least: int, most: int | None, step: int) -> str:
    if most is not None and isinstance(value, Real) and value > most:
        return f"{most} or less"
    if isinstance(value, bool) or not isinstance(value, Real) or not math.isfinite(value) or value < least:
        return f"{least} or more"
    nearest = nearest_multiples(int(value), step)
    return join_or(size for size in nearest if size >= least and (most is None or size <= most))


def check_float(name: str, value: Any, low: float, high: float = math.inf, above: bool = False,
                note: str = "") -> str | None:
    """The problem with `value` as a finite number from `low` (or above it, if `above`) to `high`.

    >>> check_float("mfu", 2, 0, 1, above=True), check_float("tolerance", -0.1, 0, 1)
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


def check_choice(name: str, value: Any, legal: Iterable[Any]) -> str | None:
    """The problem with `value` if it is none of the `legal` values.

    >>> check_choice("budget", "some", ("all", "blocks"))
    "budget='some' is not a choice: use all or blocks"
    """
    options = list(legal)
    known = any(type(value) is type(option) and value == option for option in options)
    return None if known else f"{name}={value!r} is not a choice: use {join_or(options)}"


def texts(name: str, values: Iterable[Any]) -> Iterator[str]:
    """The texts of `values` one by one; UserError for a single string, and for one that is no string.

    >>> list(texts("texts", ["one", None]))
    Traceback (most recent call last):
        ...
    tinylib.checks.UserError: text 1 of texts is None, no str: leave it out, or make a str of it
    """
    if isinstance(values, str | bytes):
        raise UserError(f"{name} is one {type(values).__name__}, whose characters are no texts: use a list of texts")
    for number, value in enumerate(values):
        if not isinstance(value, str):
            raise UserError(f"text {number} of {name} is {value!r:.60}, no str: leave it out, or make a str of it")
        yield value


def nearest_multiples(value: int, step: int) -> list[int]:
    """The multiples of `step` just below and above `value`, without zero.

    >>> nearest_multiples(500, 64), nearest_multiples(30, 64)
    ([448, 512], [64])
    """
    below = value // step * step
    return [multiple for multiple in (below, below + step) if multiple > 0]


def join_or(values: Iterable[Any]) -> str:
    """The values as an enumeration in English.

    >>> join_or([1, 2, 3])
    '1, 2 or 3'
    """
    *some, last = map(str, values)
    return f"{', '.join(some)} or {last}" if some else last


def plain(value: Any) -> Any:
    """A numpy scalar as Python's own number, which prints shorter; anything else as it is."""
    return value.item() if hasattr(value, "item") and getattr(value, "ndim", 1) == 0 else value

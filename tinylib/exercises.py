"""The checkers of the notebooks' exercises: `check("01.1", answer)` says solved, not yet, or what is off.

A checker takes the reader's answer, calls it if it is a function, and raises AssertionError with a hint where it is
off.  An answer of None, or a function that returns None, is a stub nobody has filled in yet.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

_CHECKERS: dict[str, Callable[[Any], None]] = {}


@dataclass(frozen=True)
class Verdict:
    """What `check` found; a notebook shows its text."""

    exercise: str
    solved: bool
    message: str

    def __repr__(self) -> str:
        return f"{'☑' if self.solved else '☐'} {self.exercise} {self.message}"


class NotYet(Exception):
    """The stub is still a stub."""


def check(exercise: str, answer: Any) -> Verdict:
    """Judge `answer` to `exercise`; never raises for a wrong answer, so a notebook runs to its end.

    >>> check("01.1", None)
    ☐ 01.1 not yet: fill in the stub and run the cell again
    """
    if exercise not in _CHECKERS:
        raise KeyError(f"exercise={exercise!r} is not known: exercises are {', '.join(sorted(_CHECKERS))}")
    try:
        if answer is None or answer is ...:
            raise NotYet
        _CHECKERS[exercise](answer)
    except NotYet:
        return Verdict(exercise, False, "not yet: fill in the stub and run the cell again")
    except AssertionError as hint:
        return Verdict(exercise, False, f"not quite: {hint}")
    except Exception as error:  # the reader's own code failed: say so in one line
        return Verdict(exercise, False, f"your code raised {type(error).__name__}: {error}")
    return Verdict(exercise, True, "solved")


def exercises() -> tuple[str, ...]:
    """The names of all exercises."""
    return tuple(sorted(_CHECKERS))


def _checker(exercise: str) -> Callable[[Callable[[Any], None]], Callable[[Any], None]]:
    def register(function: Callable[[Any], None]) -> Callable[[Any], None]:
        _CHECKERS[exercise] = function
        return function
    return register


def _given(value: Any) -> Any:
    """`value`, unless the stub returned nothing."""
    if value is None or value is ...:
        raise NotYet
    return value


# Notebook 01: architecture math

# Notebook 02: tokenizer

# Notebook 03: model

# Notebook 04: distributed training

# Notebook 05: evaluation

# Notebook 06: weight tying

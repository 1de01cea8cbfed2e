"""Checkers of the notebooks' exercises: `check("01.1", answer)` returns a verdict with a hint.

Each notebook has a module of checkers, imported when one of its exercises is checked.  A checker calls the reader's
answer and asserts; the message of a failed assert is the hint.
"""

from __future__ import annotations

import sysconfig
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

CHECKERS: dict[str, Callable[[Any], None]] = {}
_MODULES = {"01": "architecture", "02": "tokenizer", "03": "model", "04": "distributed", "05": "evaluation",
            "06": "tying", "07": "chat"}
_OURS = str(Path(__file__).parent)
_LIBRARIES = (str(Path(__file__).parents[2]), *{sysconfig.get_path(name) for name in ("stdlib", "purelib", "platlib")})


def checker(exercise: str) -> Callable[[Callable[[Any], None]], Callable[[Any], None]]:
    """Decorator that registers a function as the checker of `exercise`."""
    return lambda function: CHECKERS.setdefault(exercise, function)


def given(value: Any) -> Any:
    """Return `value`, an answer or what it returned; raises NotImplementedError for that of a stub, None or ..."""
    if value is None or value is ...:
        raise NotImplementedError
    return value


@dataclass(frozen=True)
class Verdict:
    """Result of `check`; a notebook shows its text."""

    exercise: str
    solved: bool
    message: str

    def __repr__(self) -> str:
        return f"{'☑' if self.solved else '☐'} {self.exercise} {self.message}"


def check(exercise: str, answer: Any) -> Verdict:
    """Check `answer`, a function in most exercises; never raises for a wrong one, so that a notebook runs to its end.

    An answer is a stub if it is None or ..., or if it returns one of them or raises NotImplementedError.  Raises
    KeyError for an unknown exercise.

    >>> check("01.1", None)
    ☐ 01.1 not yet: fill in the stub and run the cell again
    >>> check("01.1", lambda depth, dim: depth * dim).solved
    False
    """
    if module := _MODULES.get(exercise[:2]):
        import_module(f"{__name__}.{module}")
    if exercise not in CHECKERS:
        raise KeyError(f"exercise={exercise!r} is not known: exercises are {', '.join(exercises())}")
    try:
        CHECKERS[exercise](given(answer))
    except NotImplementedError:
        return Verdict(exercise, False, "not yet: fill in the stub and run the cell again")
    except Exception as error:
        return Verdict(exercise, False, _explain(error))
    return Verdict(exercise, True, "solved")


def exercises() -> tuple[str, ...]:
    """The names of all exercises."""
    for module in _MODULES.values():
        import_module(f"{__name__}.{module}")
    return tuple(sorted(CHECKERS))


def _explain(error: Exception) -> str:
    """The hint of a checker; or the error of the reader's code with the line where it was raised."""
    frames = traceback.extract_tb(error.__traceback__)
    if isinstance(error, AssertionError) and frames[-1].filename.startswith(_OURS):
        return f"not quite: {error}"
    own = [frame for frame in frames if not frame.filename.startswith(_LIBRARIES)]
    if not own:
        return f"this answer can't be checked, {type(error).__name__}: {error}"
    at = own[-1]
    file = f"{Path(at.filename).name}, " if Path(at.filename).is_file() else ""    # a cell has no file
    return f"your code raised {type(error).__name__}: {error}\n  {file}line {at.lineno}, in {at.name}: {at.line}"

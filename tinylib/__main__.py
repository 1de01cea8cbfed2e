"""The command line, `python -m tinylib VERB`: thin, its flags are the fields and parameters of the library.

Every verb that ends by itself prints a table for people and, as the last line of stdout, one JSON object.
Exit code 0: done.  1: it can't be done, said in one line.  2: the command is wrong.
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from collections.abc import Callable
from typing import Any

from tinylib.config import PRESETS
from tinylib.verbs import Result, design, machine, runs, text, training

USER_ERRORS = (ValueError, OSError, RuntimeError)

VERBS: dict[str, Callable[[list[str]], Result | None]] = {
    "size": design.size, "search": design.search, "plan": design.plan, "corpus": text.corpus,
    "tokenize": text.tokenize, "train": training.train, "eval": training.evaluate, "sample": training.sample,
    "export": training.export, "runs": runs.runs, "course": machine.course, "doctor": machine.doctor}


def main(arguments: list[str] | None = None) -> int:
    """Run one verb; returns the exit code."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(_overview())
        return 0
    if arguments[0] not in VERBS:
        print(f"verb={arguments[0]!r} is not known: use one of {', '.join(VERBS)}", file=sys.stderr)
        return 2
    try:
        result = VERBS[arguments[0]](arguments[1:])
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except USER_ERRORS as error:
        if not _is_users(error):
            raise
        print(f"error: {error}", file=sys.stderr)
        return 1
    if result is not None:
        print(json.dumps(result, default=_plain))
        return int(result.get("ok") is False)
    return 0


def _is_users(error: BaseException) -> bool:
    """Whether `error` tells the user what to change; a RuntimeError of a library is a programmer's, but for a run's."""
    return not isinstance(error, RuntimeError) or type(error).__module__.startswith("tinylib.")


def _overview() -> str:
    lines = [f"  {name:<10} {str(verb.__doc__).splitlines()[0]}" for name, verb in VERBS.items()]
    return "\n".join(["python -m tinylib VERB [--help]", "", *lines, "",
                      f"--model is one of {', '.join(PRESETS)}; the other flags change it."])


def _plain(value: Any) -> Any:
    """What JSON lacks: paths, dataclasses and numpy's numbers."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    return value.item() if hasattr(value, "item") else str(value)


if __name__ == "__main__":
    sys.exit(main())

"""Command line: `tinylib VERB`, also `python -m tinylib VERB`; tyro makes the flags from typed functions.

A verb prints a table; with `--json` it prints one JSON object and nothing else on stdout.
Exit code 0: done.  1: it failed, with one line on stderr.  2: the command line is wrong.  130: interrupted.
"""
# ruff: noqa: I001

from __future__ import annotations

import io
import os
import sys

from tinylib.checks import ConfigError, UserError
from tinylib.cli import design, data, training, chat, evaluation, experiments, machine  # noqa: F401 - help lists them in this order
from tinylib.cli.verbs import CONFIG, InvalidFlags, app, registry


def main(arguments: list[str] | None = None) -> int:
    """Run one verb, by default the one in `sys.argv`; returns the exit code."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")    # a terminal that can't show a character shows "?"
    words = (sys.argv[1:] if arguments is None else arguments) or ["--help"]
    try:
        return app.cli(prog="tinylib", args=words, config=CONFIG, registry=registry(words),
                       description="Design, train and understand tiny language models.")
    except SystemExit as leaving:    # tyro's: it has printed help or what is wrong
        return int(leaving.code or 0)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (UserError, InvalidFlags, OSError, RuntimeError) as error:
        # A library's RuntimeError is a programmer's error and keeps its traceback; a failed run or course is not.
        if isinstance(error, RuntimeError) and not type(error).__module__.startswith("tinylib."):
            raise
        # Every rank of torchrun finds the same mistake in the configuration.
        if os.environ.get("LOCAL_RANK", "0") == "0" or not isinstance(error, ConfigError | InvalidFlags):
            print(f"error: {error}", file=sys.stderr)
        return 1

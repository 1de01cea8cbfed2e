"""Records of finished runs: one JSON line each, appended with fsync; a line cut short by a kill is dropped."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tinylib.checks import UserError
from tinylib.experiments.description import Description, Trial, describe, identity

if TYPE_CHECKING:
    import pandas as pd

Record = dict[str, Any]


def records(file: Path) -> list[Record]:
    """The records in `file`, without a last line that has no end; UserError for any other line that is no record."""
    if not file.is_file():
        return []
    *lines, _cut_short = file.read_bytes().split(b"\n")
    found = []
    for number, line in enumerate(lines, start=1):
        try:
            found.append(dict(json.loads(line)))
        except ValueError as error:
            raise UserError(f"line {number} of {file} is no record ({error}): restore the file from git, or delete the "
                            "line, and its run is done again") from None
    return found


def append(file: Path, record: Mapping[str, Any]) -> None:
    """Append one record, flushed to disk, in place of a last line that has no end."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("a+b") as opened:
        opened.seek(0)
        opened.truncate(opened.read().rfind(b"\n") + 1)
        opened.write(json.dumps(record).encode() + b"\n")
        opened.flush()
        os.fsync(opened.fileno())


def by_machine(found: Iterable[Record]) -> dict[tuple[str, str], list[Record]]:
    """The records by kind of machine, (CPU, torch): results of two kinds are not the same to the last bit."""
    kinds: dict[tuple[str, str], list[Record]] = {}
    for record in found:
        kinds.setdefault((record["hardware"], record["torch"]), []).append(record)
    return kinds


def of_trial(trial: Trial, found: Iterable[Record]) -> list[Record]:
    """The records of this very configuration, by whatever name it had: one a text and kind of machine."""
    wanted = trial.identity
    return [record for record in found if identity(record["config"]) == wanted]


def read(name: str | Path) -> pd.DataFrame:
    """The records of an experiment, a row each: every field, `config` and `curve` as they are in the file."""
    import pandas as pd

    return pd.DataFrame(records(describe(name).records_file))


def times_file(description: Description) -> Path:
    """File of the step times, beside the records."""
    return description.records_file.with_name(f"{description.name}-seconds.jsonl")


def step_times(description: Description, machine: tuple[str, str]) -> dict[str, float]:
    """Seconds a step by arm on this kind of machine, (CPU, torch); of each arm the newest."""
    return {record["arm"]: record["seconds"] for record in records(times_file(description))
            if (record["hardware"], record["torch"]) == machine}

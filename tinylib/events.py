"""The metrics once more, as TensorBoard's event files, for people's own tools: `tensorboard --logdir runs`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any

from tinylib import checks
from tinylib.config import TrainConfig
from tinylib.rundir import RunDirectory

FLUSH_S = 5
"""Seconds after which others can see what was written."""


def check_tensorboard(config: TrainConfig) -> None:
    """Raise ConfigError where `config` asks for event files and the package that writes them is not installed."""
    missing = config.tensorboard and find_spec("tensorboard") is None
    checks.raise_if("TrainConfig", ["tensorboard=True needs a package that is not installed: "
                                 "pip install -e '.[tensorboard]', or leave it out"] if missing else [])


@contextmanager
def event_files(directory: RunDirectory, resumed_at: int | None = None) -> Iterator[Callable[[dict[str, Any]], None]]:
    """A function that takes records of the metrics and writes each of their numbers as `kind/name`, such as step/loss.

    A run that was `resumed_at` a step voids what an earlier start wrote from there on, for its last evaluation is done
    again, and keeps that step's own record.
    """
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(directory.events), purge_step=resumed_at, flush_secs=FLUSH_S) as writer:
        def write(record: dict[str, Any]) -> None:
            for name, value in record.items():
                if isinstance(value, float) and name != "time_s":
                    writer.add_scalar(f"{record['kind']}/{name}", value, record["step"], walltime=record["time_s"])

        kept = directory.last("step") if resumed_at is not None else None
        if kept:
            write(kept)
        yield write

"""TensorBoard event files of a run's metrics, for `tensorboard --logdir runs`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from importlib.util import find_spec

from tinylib import checks
from tinylib.config import TrainConfig
from tinylib.rundir import Eval, Record, RunDirectory, Step

FLUSH_S = 5
"""Seconds after which readers can see what was written."""


def check_tensorboard(config: TrainConfig) -> None:
    """Raise ConfigError where `config` asks for event files and tensorboard is not installed."""
    missing = config.tensorboard and find_spec("tensorboard") is None
    checks.raise_if("TrainConfig", ["tensorboard=True needs a package that is not installed: "
                                    "pip install -e '.[tensorboard]', or leave it out"] if missing else [])


@contextmanager
def event_files(directory: RunDirectory, enabled: bool = True,
                resumed_at: int | None = None) -> Iterator[Callable[[Record], None]]:
    """A function that writes each float of a `Step` or `Eval` record as a scalar `kind/name`, such as step/loss.

    A run that was `resumed_at` a step purges what an earlier start wrote from there on, because its last evaluation is
    done again, and keeps that step's own record.
    """
    if not enabled:
        yield lambda record: None
        return
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(directory.events), purge_step=resumed_at, flush_secs=FLUSH_S) as writer:
        def write(record: Record) -> None:
            if not isinstance(record, Step | Eval):
                return
            for name, value in asdict(record).items():
                if isinstance(value, float) and name != "time_s":
                    writer.add_scalar(f"{type(record).__name__.lower()}/{name}", value, record.step,
                                      walltime=record.time_s)

        kept = directory.last(Step) if resumed_at is not None else None
        if kept:
            write(kept)
        yield write

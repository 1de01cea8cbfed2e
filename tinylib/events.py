"""Metrics as TensorBoard event files: `tensorboard --logdir runs`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec

from tinylib import checks
from tinylib.config import TrainConfig
from tinylib.rundir import Eval, Record, RunDirectory, Step


def check_tensorboard(config: TrainConfig) -> None:
    """Raise ConfigError if `config` asks for event files and the package `tensorboard` is not installed."""
    if config.tensorboard and find_spec("tensorboard") is None:
        checks.raise_if("TrainConfig", ["tensorboard=True needs a package that is not installed: "
                                        "pip install -e '.[tensorboard]', or tensorboard=False"])


@contextmanager
def event_files(directory: RunDirectory, enabled: bool = True,
                resumed_at: int | None = None) -> Iterator[Callable[[Record], None]]:
    """Open the event files of a run; yields a function that writes the floats of a Step or Eval, such as step/loss.

    With `resumed_at`, scalars that an earlier start wrote from that step on are purged.  The record of that step itself
    is written again; its evaluation is not, because it is repeated.
    """
    if not enabled:
        yield lambda record: None
        return
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(directory.events), purge_step=resumed_at, flush_secs=5) as writer:
        def write(record: Record) -> None:
            if not isinstance(record, Step | Eval):
                return
            for name, value in vars(record).items():
                if isinstance(value, float) and name != "time_s":
                    writer.add_scalar(f"{type(record).__name__.lower()}/{name}", value, record.step,
                                      walltime=record.time_s)

        if resumed_at is not None and (kept := directory.last(Step)):
            write(kept)
        yield write

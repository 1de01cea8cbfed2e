"""Start a training run on many processes from a notebook cell, and follow, stop or resume it from anywhere.

`launch` starts torchrun in a process session of its own and returns at once, so an interrupted, restarted or closed
kernel doesn't touch the training.  A `Run` keeps nothing in memory: all it shows is read from the run directory.
Sessions and signals are POSIX's; on Windows train in the calling process, with `tinylib.train.train`.
"""

from tinylib.launch.run import Run, RunFailed, RunStopped, attach, runs
from tinylib.launch.start import launch, write_slurm

__all__ = ["Run", "RunFailed", "RunStopped", "attach", "launch", "runs", "write_slurm"]

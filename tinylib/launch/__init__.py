"""Training runs as detached torchrun processes: start, follow, stop and resume them from any notebook.

`launch` starts torchrun in a process session of its own and returns at once, so an interrupted, restarted or closed
kernel doesn't touch the training.  A `Run` keeps nothing in memory: everything is read from the run directory.
Sessions and signals are POSIX's; on Windows train in the calling process, with `tinylib.train.train`.
"""

from tinylib.launch.run import Run, RunFailed, RunStopped, attach, launch, runs, show
from tinylib.launch.slurm import write_slurm

__all__ = ["Run", "RunFailed", "RunStopped", "attach", "launch", "runs", "show", "write_slurm"]

"""Run directory: configuration, metrics, status, logs, process ids and checkpoints of one training run.

Everything that a `Run` shows is read from these files, so a second notebook, a restarted kernel and a person with
`tail -f` see the same.
"""

from tinylib.rundir.directory import ENDED, RunDirectory, State, absolute, find_run, plain, runs
from tinylib.rundir.processes import Process
from tinylib.rundir.progress import Progress, StatusLine, downsampled, progress_line, show_progress
from tinylib.rundir.records import Eval, Header, Record, Step, Summary

__all__ = ["ENDED", "Eval", "Header", "Process", "Progress", "Record", "RunDirectory", "State", "StatusLine", "Step",
           "Summary", "absolute", "downsampled", "find_run", "plain", "progress_line", "runs", "show_progress"]

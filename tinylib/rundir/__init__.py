"""The run directory: its paths, its writers and its readers; the one place that knows the file names.

Everything that a `Run` shows is read from these files, so a second notebook, a restarted kernel and a person with
`tail -f` see the same.  Small files appear whole or not at all: they are written beside and moved into place.
"""

from tinylib.rundir.directory import ENDED, RunDirectory, State, plain
from tinylib.rundir.files import replace_folder, write_folder, write_json, write_text
from tinylib.rundir.processes import Process

__all__ = ["ENDED", "Process", "RunDirectory", "State", "plain", "replace_folder", "write_folder", "write_json",
           "write_text"]

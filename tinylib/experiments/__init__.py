"""Experiments: shapes × seeds × FLOP budgets, run one beside another, one record a run, compared with intervals.

An experiment is a committed description, `data/experiments/NAME.toml`: the question, predictions and decision rules
written before the runs, arms, blocks of arms, seeds and budgets.  `run` does what is still missing and appends a record
of each finished run to `data/records/NAME.jsonl`; `read` and `compare` make tables of the records.
"""

from tinylib.experiments.comparing import compare, differences, report
from tinylib.experiments.description import FOLDER, Block, Description, Text, Trial, describe
from tinylib.experiments.records import append, read, records
from tinylib.experiments.running import again, folder, run
from tinylib.experiments.timing import time_steps

__all__ = ["FOLDER", "Block", "Description", "Text", "Trial", "again", "append", "compare", "describe", "differences",
           "folder", "read", "records", "report", "run", "time_steps"]

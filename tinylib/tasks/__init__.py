"""Benchmarks: CORE's 22 tasks, minimal pairs; accuracy beside chance, with intervals, whatever the number of items.

>>> item = {"query": "Paris is in", "choices": ["France", "Peru"], "gold": 0}
>>> task = Task("capitals", "multiple_choice", [item], chance=0.5)
>>> task.shots, task.delimiter
(0, ' ')
"""

from tinylib.tasks.questions import Question, Task, core, fetch_bundle, minimal_pairs
from tinylib.tasks.scoring import answers, compare, evaluate, mean_centered
from tinylib.tasks.suite import suite

__all__ = ["Question", "Task", "answers", "compare", "core", "evaluate", "fetch_bundle", "mean_centered",
           "minimal_pairs", "suite"]

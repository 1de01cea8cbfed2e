"""The course: run all notebooks in order, check exercises, explore shapes.

`tinylib.course.figures` has the figures that one notebook draws.  The library itself needs none of this.
"""

from tinylib.course.exercises import Verdict, check, exercises
from tinylib.course.explorer import Explorer, explore
from tinylib.course.runner import NOTEBOOKS, CourseFailed, run

__all__ = ["NOTEBOOKS", "CourseFailed", "Explorer", "Verdict", "check", "exercises", "explore", "run"]

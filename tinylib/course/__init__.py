"""The course: run all notebooks in order, check exercises, explore shapes.

What only the course needs lies here; the work itself needs none of it.
"""

from tinylib.course.exercises import Verdict, check, exercises
from tinylib.course.explorer import Explorer, explore

__all__ = ["Explorer", "Verdict", "check", "exercises", "explore"]

"""Validation: legal values pass, and the values that a message proposes are legal."""

from __future__ import annotations

import math
import random
import re

import numpy as np
import pytest
from helpers import problems

from tinylib import checks


def test_the_integers_that_a_message_proposes_are_legal():
    generator = random.Random(0)
    for _ in range(3000):
        least, step = generator.randint(0, 9), generator.choice([1, 2])
        least += least % step
        most = generator.choice([None, least + step * generator.randint(0, 9)])
        limits = {"least": least, "step": step, "most": most}
        value = generator.choice([generator.randint(-30, 30), generator.uniform(-30, 30), math.inf, math.nan, True])
        problem = checks.check_int("size", value, **limits)
        if problem is None:
            assert isinstance(value, int) and least <= value and value % step == 0
            continue
        proposed = [int(word) for word in re.findall(r"\d+", problem.rsplit("use ", 1)[1])]
        assert proposed and all(checks.check_int("size", size, **limits) is None for size in proposed), problem


@pytest.mark.parametrize("value", [3, np.int64(3), np.int32(3)])
def test_integers_of_numpy_are_integers(value):
    assert checks.check_int("size", value) is None and checks.is_int(value)


@pytest.mark.parametrize("value", [True, np.bool_(True), 3.0, "3", None, np.float64(3), [3], np.array([3])])
def test_other_values_are_not_integers(value):
    assert checks.check_int("size", value).startswith("size=") and not checks.is_int(value)


@pytest.mark.parametrize(("value", "limits", "problem"), [
    (0, {"low": 0}, None), (0, {"low": 0, "above": True}, "x=0 is not a number above 0: use a number above 0"),
    (2, {"low": 0, "high": 1}, "x=2 is not a number from 0 to 1: use 1"), (1, {"low": 0, "high": 1}, None),
    (-1, {"low": 0}, "x=-1 is not a number of at least 0: use 0"), (np.float32(0.5), {"low": 0, "high": 1}, None),
    (math.nan, {"low": 0, "high": 1}, "x=nan is not a number from 0 to 1: use a number from 0 to 1"),
    (math.inf, {"low": 0}, "x=inf is not a number of at least 0: use a number of at least 0"),
    ("1", {"low": 0}, "x='1' is not a number of at least 0: use a number of at least 0")])
def test_floats(value, limits, problem):
    assert checks.check_float("x", value, **limits) == problem


def test_a_choice_must_have_the_type_too():
    assert checks.check_choice("tied", True, (True, False)) is None
    assert checks.check_choice("tied", 1, (True, False)) == "tied=1 is not a choice: use True or False"
    assert checks.check_choice("device", ["cpu"], ("cpu",)) == "device=['cpu'] is not a choice: use cpu"


def test_raise_if_lists_all_problems_or_does_nothing():
    checks.raise_if("plan", [None, None])
    assert problems(checks.raise_if, "plan", [None, "a", "", "b"]) == ["a", "b"]

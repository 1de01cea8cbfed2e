"""Every rule lets pass what it should and says of the rest what would do; a proposed value is always legal."""

from __future__ import annotations

import math
import random
import re

import numpy as np
import pytest

from tinylib import rules


def test_what_a_whole_number_s_problem_proposes_is_legal():
    generator = random.Random(0)
    for _ in range(3000):
        least, step = generator.randint(0, 9), generator.choice([1, 2])
        least += least % step
        most = generator.choice([None, least + step * generator.randint(0, 9)])
        limits = {"least": least, "step": step, "most": most}
        value = generator.choice([generator.randint(-30, 30), generator.uniform(-30, 30), math.inf, math.nan, True])
        problem = rules.whole("size", value, **limits)
        if problem is None:
            assert isinstance(value, int) and least <= value and value % step == 0
            continue
        proposed = [int(word) for word in re.findall(r"\d+", problem.rsplit("use ", 1)[1])]
        assert proposed and all(rules.whole("size", size, **limits) is None for size in proposed), problem


@pytest.mark.parametrize("value", [3, np.int64(3), np.int32(3)])
def test_numpy_s_whole_numbers_are_whole(value):
    assert rules.whole("size", value) is None and rules.is_whole(value)


@pytest.mark.parametrize("value", [True, np.bool_(True), 3.0, "3", None, np.float64(3), [3], np.array([3])])
def test_other_things_are_not(value):
    assert rules.whole("size", value).startswith("size=") and not rules.is_whole(value)


@pytest.mark.parametrize(("value", "limits", "said"), [
    (0, {"low": 0}, None), (0, {"low": 0, "above": True}, "x=0 is not a number above 0: use a number above 0"),
    (2, {"low": 0, "high": 1}, "x=2 is not a number from 0 to 1: use 1"), (1, {"low": 0, "high": 1}, None),
    (-1, {"low": 0}, "x=-1 is not a number of at least 0: use 0"), (np.float32(0.5), {"low": 0, "high": 1}, None),
    (math.nan, {"low": 0, "high": 1}, "x=nan is not a number from 0 to 1: use a number from 0 to 1"),
    (math.inf, {"low": 0}, "x=inf is not a number of at least 0: use a number of at least 0"),
    ("1", {"low": 0}, "x='1' is not a number of at least 0: use a number of at least 0")])
def test_numbers(value, limits, said):
    assert rules.number("x", value, **limits) == said


def test_choices_are_not_confused_with_what_equals_them():
    assert rules.choice("tied", True, (True, False)) is None
    assert rules.choice("tied", 1, (True, False)) == "tied=1 is not a choice: use True or False"
    assert rules.choice("device", ["cpu"], ("cpu",)) == "device=['cpu'] is not a choice: use cpu"


def test_refusing_names_everything_or_nothing():
    rules.refuse("plan", [None, None])
    with pytest.raises(rules.ConfigError, match="plan: a; b") as error:
        rules.refuse("plan", [None, "a", "", "b"])
    assert error.value.problems == ["a", "b"]

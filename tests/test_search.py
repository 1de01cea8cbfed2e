"""The search for a balanced shape, against counting one by one, and its front against the plain definition."""

from __future__ import annotations

import math
import re
import tracemalloc

import numpy as np
import pandas as pd
import pytest
from helpers import problems

from tinylib import sizing
from tinylib.config import PRESETS, ConfigError, GPTConfig

FIGURES = ("off_percent", "imbalance", "flops_per_token", "decode_bytes")


@pytest.fixture(scope="module")
def found() -> pd.DataFrame:
    return sizing.search()


def shapes(found: pd.DataFrame) -> list[tuple[int, int, int]]:
    return list(zip(found.depth, found.dim, found.vocab_size, strict=True))


def figures(found: pd.DataFrame) -> np.ndarray:
    return found[list(FIGURES)].abs().to_numpy()


# What is found

def test_search_finds_the_three_by_itself(found):
    assert found.preset[0] == "goldilocks"
    named = found[found.preset != ""].set_index("preset")
    expected = {"extremist": (442_368, 0.01), "goldilocks": (3_145_728, 0.66), "conventional": (1_769_472, 1.18)}
    assert set(named.index) == set(expected)
    for name, (per_layer, off) in expected.items():
        row, config = named.loc[name], PRESETS[name]
        assert (row.per_layer, round(abs(row.off_percent), 2)) == (per_layer, off)
        assert (row.depth, row.dim, row.vocab_size) == (config.depth, config.dim, config.vocab_size)
        assert row.aspect == config.dim / config.depth
        assert found.index[found.preset == name][0] < 10


def test_search_lists_every_exact_third_of_the_goldilocks_size():
    found = sizing.search(min_depth=1)
    exact = found[(found.imbalance == 0) & (found.total == 37_748_736)]
    assert set(shapes(exact)) == {(1, 1024, 12_288), (4, 512, 24_576), (16, 256, 49_152), (64, 128, 98_304)}


@pytest.mark.parametrize("tied", [False, True])
def test_search_equals_counting_one_by_one(tied: bool):
    arguments = {"total": 2e6, "head_dim": 32, "vocab_sizes": range(500, 9000, 500), "max_depth": 12, "tied": tied,
                 "context": 512}
    found = sizing.search(**arguments, tolerance=0.03)
    by_hand = {}
    for depth in range(3, 13):
        for dim in range(32, 2000, 32):
            for vocab_size in arguments["vocab_sizes"]:
                config = GPTConfig(depth, dim, vocab_size, 32, 512, tied=tied)
                if abs(sizing.parameters(config).total - 2e6) <= 0.03 * 2e6:
                    by_hand[depth, dim, vocab_size] = config
    assert set(shapes(found)) == set(by_hand) and len(found) == len(by_hand) > 20
    for row in found.itertuples():
        config = by_hand[row.depth, row.dim, row.vocab_size]
        count = sizing.parameters(config)
        assert (row.wte, row.blocks, row.lm_head, row.total, row.total_tied) == \
            (count.wte, count.blocks, count.lm_head, count.total, count.total_tied)
        assert (row.per_layer, row.flops_per_token) == (count.per_layer, sizing.flops_per_token(config))
        assert row.kv_cache_bytes == sizing.kv_cache_bytes(config)
        assert row.decode_bytes == sizing.kv_cache_bytes(config) + sizing.weight_bytes(config)
        assert (row.tokens, row.training_flops) == (20 * count.total, 20 * count.total * row.flops_per_token)
        assert row.imbalance == pytest.approx(abs(count.split["blocks"] - (50 if tied else 100 / 3)))
        assert row.off_percent == pytest.approx(100 * (count.total / 2e6 - 1))
    assert found.imbalance.is_monotonic_increasing


def test_bounds_of_the_tolerance_belong_to_it():
    """A total that is hit, and one that is a parameter too far, at both ends."""
    total = sizing.parameters(PRESETS["goldilocks"]).total
    only = {"head_dim": 64, "vocab_sizes": 24_576, "min_depth": 4, "max_depth": 4, "min_dim": 512, "max_dim": 512}
    for wanted in (total - 1000, total + 1000):
        assert len(sizing.search(total=wanted, tolerance=1000 / wanted * (1 + 1e-12), **only)) == 1
        with pytest.raises(ConfigError):
            sizing.search(total=wanted, tolerance=999 / wanted, **only)
    assert shapes(sizing.search(total=total, tolerance=0, **only)) == [(4, 512, 24_576)]


def test_search_takes_another_split_and_limits_of_width():
    best = sizing.search(blocks_percent=70).iloc[0]
    assert best.blocks_percent == pytest.approx(70, abs=1)
    every, some = sizing.search(), sizing.search(min_dim=200, max_dim=512)
    assert set(shapes(some)) == {shape for shape in shapes(every) if 200 <= shape[1] <= 512}
    assert 0 < len(some) < len(every) and some.dim.min() == 256 and some.dim.max() == 512


@pytest.mark.parametrize("sizes", [
    [49_152, 24_576, 24_576], (24_576, 49_152), np.array([24_576, 49_152], np.uint16), {24_576, 49_152},
    pd.Series([49_152, 24_576]), [np.int32(24_576), 49_152], range(49_152, 0, -24_576)],
    ids=lambda sizes: type(sizes).__name__)
def test_any_list_of_vocabularies_will_do(sizes):
    pd.testing.assert_frame_equal(sizing.search(vocab_sizes=sizes), sizing.search(vocab_sizes=[24_576, 49_152]))


def test_one_vocabulary_and_numbers_of_numpy_will_do():
    found = sizing.search(vocab_sizes=24_576)
    assert set(found.vocab_size) == {24_576} and found.preset[0] == "goldilocks"
    same = sizing.search(np.float32(38e6), np.uint8(64), np.int64(24_576), np.int16(3), np.uint8(64),
                         max_dim=np.int64(600))
    pd.testing.assert_frame_equal(found[found.dim <= 600].reset_index(drop=True)[["depth", "dim", "off_percent"]],
                                  same[["depth", "dim", "off_percent"]])


# The front

def beats(rows: np.ndarray) -> np.ndarray:
    """beats[i, j]: row i is at least as good as row j in everything and better in something.  The definition."""
    return (rows[:, None] <= rows[None]).all(2) & (rows[:, None] < rows[None]).any(2)


@pytest.mark.parametrize(("rows", "columns", "values"), [
    (400, 4, 10**9), (400, 4, 6), (500, 4, 2), (500, 2, 30), (300, 3, 1), (600, 1, 5), (1, 4, 9), (0, 4, 9),
    (2000, 4, 10**9), (2000, 4, 25)])    # the last two take two blocks
def test_the_front_is_the_plain_definition(rows: int, columns: int, values: int):
    """Random rows, then fewer and fewer different values, until most rows have equals."""
    data = np.random.default_rng(rows + values).integers(0, values, (rows, columns)).astype(float)
    assert (sizing.pareto_front(data) == ~beats(data).any(0)).all()


def test_equal_rows_do_not_dominate_each_other():
    data = np.array([[1, 2], [2, 1], [1, 2], [3, 3], [3, 3]], float)
    assert sizing.pareto_front(data).tolist() == [True, True, True, False, False]


def test_a_front_of_everything_is_found():
    """Where no row drops out the work is largest: 4,000 points of a simplex, all of them on the front."""
    data = np.random.default_rng(0).random((4000, 4))
    data /= data.sum(1, keepdims=True)
    data[:, 3] = 1 - data[:, :3].sum(1)
    assert sizing.pareto_front(data).all()


@pytest.mark.parametrize("keywords", [{}, {"tied": True}, {"blocks_percent": 70}, {"tolerance": 0.1, "context": 64}])
def test_pareto_is_the_front_of_the_four_columns(keywords):
    found = sizing.search(**keywords)
    assert (found.pareto == ~beats(figures(found)).any(0)).all()
    assert 1 < found.pareto.sum() < len(found) and found.pareto[0]


# The line of a row

@pytest.mark.parametrize("keywords", [{}, {"tied": True}, {"blocks_percent": 70}, {"total": 570e6, "head_dim": 128},
                                      {"vocab_sizes": range(256, 131_073, 4096), "tolerance": 0.01}])
def test_every_number_of_a_line_is_so(keywords):
    found = sizing.search(**keywords)
    matrix = beats(figures(found))
    rows = {row.preset or f"{row.depth} × {row.dim}, V {row.vocab_size:,}": row for _, row in found.iterrows()}
    for rank, row in found.iterrows():
        line = sizing.describe(row, found)
        assert len(line) <= 90 and "\n" not in line
        if not rank:
            assert f"{row.blocks_percent:.2f}%" in line and f"{row.off_percent:+.2f}%" in line
            continue
        place, label, changes = re.fullmatch(r"(dominated by|front; against) (.*): (.*)", line).groups()
        other = rows[label]
        assert matrix[other.name, rank] if place == "dominated by" else row.pareto and not other.name
        check_changes(changes, row, other)


def check_changes(text: str, row: pd.Series, other: pd.Series) -> None:
    """`text` names every difference between `row` and `other` that two decimals show."""
    said = {name: float(step) for name, step in re.findall(r"(imbalance|off) ([+-][\d.]+)", text)}
    said |= {name: float(ratio) for name, ratio in re.findall(r"(token|memory) ×([\d.]+)", text)}
    right = {"imbalance": row.imbalance - other.imbalance, "off": abs(row.off_percent) - abs(other.off_percent),
             "token": row.flops_per_token / other.flops_per_token, "memory": row.decode_bytes / other.decode_bytes}
    for name, value in right.items():
        same = 0 if name in ("imbalance", "off") else 1
        assert said.get(name, same) == pytest.approx(value, abs=0.0051)


def test_what_the_list_by_hand_missed(found):
    missed = sizing.missed(found)
    assert {(16, 256, 49_152), (64, 128, 98_304), (28, 192, 65_536)} <= set(shapes(missed))
    worst = found[found.preset != ""].imbalance.max()
    assert len(missed) == ((found.imbalance <= worst) & (found.preset == "")).sum()
    assert (28, 192, 65_536) in shapes(sizing.missed(sizing.search(max_depth=28)))    # as balanced as the worst named
    assert len(sizing.missed(sizing.search(tied=True))) == 0 and not sizing.search(tied=True).preset.any()


# Size

def test_the_grid_is_never_made_whole():
    """Ten million shapes would take 80 MB for one column."""
    vocab_sizes = range(256, 131_073, 13)
    assert len(vocab_sizes) * 62 * (1037 // 64) > 9.9e6
    tracemalloc.start()
    found = sizing.search(vocab_sizes=vocab_sizes, tolerance=0.001)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 20e6 and len(found) > 2000


# What can't be done

@pytest.mark.parametrize(("keywords", "message"), [
    ({"head_dim": 7}, "head_dim=7 is not a multiple of 2 from 2 to 1048576 (RoPE"), ({"head_dim": 7}, "use 6 or 8"),
    ({"head_dim": 64.0}, "use 64"), ({"head_dim": 63.0}, "use 62 or 64"), ({"head_dim": 1}, "use 2"),
    ({"head_dim": 2**21}, "use 1048576 or less"), ({"head_dim": "64"}, "head_dim='64' is not"),
    ({"total": 0}, "total=0 is not a number from 1 to 10000000000000: use 1"), ({"total": "38e6"}, "a number from 1"),
    ({"total": None}, "a number from 1"), ({"total": math.nan}, "a number from 1"), ({"total": True}, "total=True is"),
    ({"total": math.inf}, "use 10000000000000"), ({"total": 10**400}, "use 10000000000000"), ({"total": [1]}, "[1]"),
    ({"tolerance": -0.1}, "use 0"), ({"tolerance": 2}, "tolerance=2 is not a number from 0 to 1 (0.02 is 2%): use 1"),
    ({"blocks_percent": 0}, "use 0.1"), ({"blocks_percent": 100}, "use 99.9"), ({"blocks_percent": ""}, "from 0.1 to"),
    ({"max_depth": 2}, "max_depth=2 is below min_depth=3: use max_depth=3 or more"),
    ({"max_depth": 10**9}, "use 100000 or less"), ({"min_depth": 2.5}, "use 2 or 3"), ({"min_depth": None}, "use 1"),
    ({"min_dim": 65, "max_dim": 100}, "multiple of head_dim=64 from min_dim=65 on: use max_dim=128"),
    ({"max_dim": 32}, "use max_dim=64"), ({"context": True}, "context=True is not"), ({"context": 0}, "use 1 or more"),
    ({"tied": 1}, "tied=1 is not a choice: use True or False"), ({"tied": "yes"}, "use True or False"),
    ({"vocab_sizes": []}, "vocab_sizes holds 0 sizes: use 1 to 10000000"), ({"vocab_sizes": None}, "vocab_sizes=None"),
    ({"vocab_sizes": range(5, 1)}, "holds 0 sizes"), ({"vocab_sizes": "24576"}, "use 1 or more"),
    ({"vocab_sizes": range(1, 10**9)}, "use 1 to 10000000"), ({"vocab_sizes": 24_576.5}, "use 24576 or 24577"),
    ({"vocab_sizes": [1000, 1000.5]}, "vocab_sizes[1]=1000.5 is not a whole number from 1 to 4294967296: use 1000 or"),
    ({"vocab_sizes": [True, 5]}, "vocab_sizes[0]=True"), ({"vocab_sizes": [5, None]}, "vocab_sizes[1]=None"),
    ({"vocab_sizes": np.array([math.nan])}, "vocab_sizes[0]=nan"), ({"vocab_sizes": [2**70]}, "or less"),
    ({"vocab_sizes": np.array(0)}, "vocab_sizes="),
    ({"vocab_sizes": range(300)}, "vocab_sizes[0]=0 is not"),
    ({"vocab_sizes": range(-2, 300)}, "vocab_sizes[0]=-2 is not a whole number from 1 to 4294967296: use 1 or more"),
])
def test_bad_input_is_named_with_its_rule_and_the_nearest_legal_value(keywords, message):
    found = problems(sizing.search, **keywords)
    assert any(message in problem for problem in found), found


def test_bad_input_is_named_all_at_once():
    found = problems(sizing.search, total=-1, head_dim=7, vocab_sizes=[0, -1, 5, -2, None, 1.5], min_depth=0,
                     max_depth=-1, tolerance="x", blocks_percent=100, min_dim=0, max_dim=0, context=None, tied=None)
    for field in ("total=-1", "head_dim=7", "vocab_sizes[0]=0", "min_depth=0", "max_depth=-1", "tolerance='x'",
                  "blocks_percent=100", "min_dim=0", "max_dim=0", "context=None", "tied=None"):
        assert any(problem.startswith(field) for problem in found), field


def brute_nearest(total: float, **limits) -> int:
    sizes = [12 * depth * dim**2 + 2 * vocab * dim for depth in limits["depths"] for dim in limits["dims"]
             for vocab in limits["vocabularies"]]
    return min(abs(size - total) for size in sizes)


@pytest.mark.parametrize(("total", "tolerance", "sizes", "dims"), [
    (1000, 0.02, [4096, 6000, 50_000], (1, 640)), (1e12, 0.02, [4096, 6000, 50_000], (1, 640)),
    (3_333_333, 0.0, [4096, 6000, 50_000], (1, 640)), (7_654_321, 0.0001, [4096, 6000, 50_000], (1, 640)),
    (9.2e6, 0.001, [1], (1, 640)),    # blocks that alone are too large are nearest: the next width
    (23e6, 0.01, [1], (640, 640))])     # … and the next depth
def test_a_search_without_result_names_the_nearest_size_and_its_shape(total, tolerance, sizes, dims):
    limits = {"vocab_sizes": sizes, "max_depth": 9, "min_dim": dims[0], "max_dim": dims[1]}
    message = problems(sizing.search, total=total, tolerance=tolerance, **limits)[0]
    size, depth, dim, vocab = map(int, re.search(
        r"holds (\d+): depth=(\d+), dim=(\d+), vocab_size=(\d+)", message).groups())
    assert sizing.parameters(GPTConfig(depth, dim, vocab)).total == size
    assert abs(size - total) == brute_nearest(total, depths=range(3, 10), vocabularies=sizes, dims=[
        dim for dim in range(64, 641, 64) if dims[0] <= dim <= dims[1]])
    assert (depth, dim, vocab) in shapes(sizing.search(total=size, tolerance=0, **limits))
    if raised := re.search(r"or tolerance=([\d.]+)", message):
        assert (depth, dim, vocab) in shapes(sizing.search(total=total, tolerance=float(raised[1]), **limits))
    else:
        assert abs(size - total) > total


def test_a_grid_too_large_to_hold_says_how_to_shrink_it():
    wide = problems(sizing.search, vocab_sizes=range(1, 131_073), tolerance=0.04)[0]
    assert "more than the limit of 200000: use a smaller tolerance" in wide
    fine = problems(sizing.search, total=1e12, head_dim=2, max_depth=10_000)[0]
    assert "more than the limit of 2000000: use lower ones" in fine
    assert len(sizing.search(total=1e12, head_dim=2**12, max_depth=10_000, tolerance=0.05)) > 0

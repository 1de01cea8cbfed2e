"""The search for a balanced shape, against counting one by one, and its front against the plain definition."""

from __future__ import annotations

import cProfile
import math
import pstats
import re
import time
import tracemalloc

import numpy as np
import pandas as pd
import pytest

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
    (3000, 4, 10**9), (3000, 4, 25)])    # the last two take several blocks
def test_the_front_is_the_plain_definition(rows: int, columns: int, values: int):
    """Random rows, then fewer and fewer different values, until most rows have equals."""
    data = np.random.default_rng(rows + values).integers(0, values, (rows, columns)).astype(float)
    by, matrix = sizing.dominated_by(data), beats(data)
    front = by == np.arange(rows)
    assert (front == ~matrix.any(0)).all()
    assert matrix[by[~front], np.flatnonzero(~front)].all() and front[by].all()
    for row in np.flatnonzero(~front)[::7]:
        rivals = data[matrix[:, row]].tolist()
        assert data[by[row]].tolist() == min(rivals)


def test_equal_rows_stand_together_and_fall_together():
    data = np.array([[1, 2], [2, 1], [1, 2], [3, 3], [3, 3]], float)
    assert (sizing.dominated_by(data) == np.arange(5)).tolist() == [True, True, True, False, False]


def test_a_front_of_everything_is_found():
    """Where no row drops out the work is largest: 4,000 points of a simplex, all of them on the front."""
    data = np.random.default_rng(0).random((4000, 4))
    data /= data.sum(1, keepdims=True)
    data[:, 3] = 1 - data[:, :3].sum(1)
    assert (sizing.dominated_by(data) == np.arange(4000)).all()


@pytest.mark.parametrize("keywords", [{}, {"tied": True}, {"blocks_percent": 70}, {"tolerance": 0.1, "context": 64}])
def test_pareto_is_the_front_of_the_four_columns(keywords):
    found = sizing.search(**keywords)
    assert (found.pareto == ~beats(figures(found)).any(0)).all()
    assert 1 < found.pareto.sum() < len(found) and found.pareto[0]


# What is said

def labelled(found: pd.DataFrame) -> dict[str, pd.Series]:
    rows = {f"{row.depth:,} × {row.dim:,} with {row.vocab_size:,}": row for _, row in found.iterrows()}
    return rows | {row.preset: row for row in rows.values() if row.preset}


@pytest.mark.parametrize("keywords", [{}, {"tied": True}, {"min_depth": 1}, {"blocks_percent": 70}, {"total": 25.2e6,
                                      "tied": True}, {"vocab_sizes": range(256, 131_073, 1024), "tolerance": 0.01},
                                      {"total": 570e6, "head_dim": 128}])
def test_every_number_of_a_sentence_is_so(keywords):
    found = sizing.search(**keywords)
    rows, first, target = labelled(found), found.iloc[0], keywords.get("blocks_percent", 50 if keywords.get("tied")
                                                                      else 100 / 3)
    assert (found.trades != "").all()
    for row in (row for _, row in found.iterrows()):
        lead, *clauses = row.trades.split("; ")
        check_lead(lead, row, target)
        beaten = [clause for clause in clauses if " is at least as good in everything: " in clause]
        against = [clause for clause in clauses if clause.startswith("against ")]
        for clause in clauses:
            if clause in beaten:
                name, text = clause.split(" is at least as good in everything: ")
                other = rows[name]
                assert other.pareto and beats(figures(pd.DataFrame([other, row])))[0, 1]
                check_differences(text, other, row, better=True)
            elif clause in against:
                better, _, worse = clause.split(": ", 1)[1].partition("but ")
                assert clause.startswith(f"against {first.preset or next(iter(rows))}: ")
                check_differences(better, row, first, better=True)
                check_differences(worse, row, first, better=False)
        assert row.pareto == (not beaten and not twin_above(row, found))
        if row.pareto and row.name:
            assert against or "like " in row.trades


def twin_above(row: pd.Series, found: pd.DataFrame) -> bool:
    """Whether a named shape of the same size and split on the list is shallower."""
    same = found[(found.wte == row.wte) & (found.blocks == row.blocks) & (found.preset != "")]
    return bool((same.depth < row.depth).any())


def check_lead(lead: str, row: pd.Series, target: float) -> None:
    depth, split, size = lead.split(", ")
    assert depth == f"{row.depth} layer{'s' if row.depth > 1 else ''}"
    if not split.startswith("exact"):
        points, side = re.match(r"blocks (?:within )?([\d.]+) points (under|over|of) ", split).groups()
        assert float(points) == pytest.approx(abs(row.blocks_percent - target), abs=0.0051)
        assert side == "of" or (side == "over") == (row.blocks_percent > target)
    assert split.startswith("exact") == (row.imbalance == 0)
    if size != "exactly on target" and not size.startswith("within"):
        assert float(size.split()[0]) == pytest.approx(abs(row.off_percent), abs=0.0051)
        assert ("above" in size) == (row.off_percent > 0)


def check_differences(text: str, row: pd.Series, other: pd.Series, better: bool) -> None:
    """`text` names every difference between `row` and `other` that is good (or bad), as two decimals show it."""
    sign, said = -1 if better else 1, {}
    for number, unit in re.findall(r"([\d.]+) (%|points)", text):
        said[unit] = sign * float(number)
    for words, ratio in re.findall(r"(token and decode memory|token|decode memory) ×([\d.]+)", text):
        said |= {word: float(ratio) - 1 for word in ("token", "memory") if word in words}
    changes = {"%": abs(row.off_percent) - abs(other.off_percent), "points": row.imbalance - other.imbalance,
               "token": row.flops_per_token / other.flops_per_token - 1,
               "memory": row.decode_bytes / other.decode_bytes - 1}
    for name, change in changes.items():
        if name in said:
            assert said[name] == pytest.approx(change, abs=0.0051) and (said[name] < 0) == better
        else:
            assert sign * change < 0.0051, (name, text)


def test_twins_of_a_preset_are_said_to_be_so():
    found = sizing.search(min_depth=1).set_index(["depth", "dim", "vocab_size"]).trades
    assert found[16, 256, 49_152].endswith("the same size and split as goldilocks, 4 × as deep: token ×1.25, "
                                           "decode memory ×1.18")
    assert "the same size and split as goldilocks, 4 × shallower: token ×0.88" in found[1, 1024, 12_288]
    assert "the same size and split as conventional, 9 × as deep" in found[63, 128, 98_304]
    said = found[found.str.contains("the same size and split")].index
    expected = {(depth, dim, vocab) for depth, dim, vocab in found.index for preset in PRESETS.values()
                if (vocab * dim, depth * dim**2) == (preset.vocab_size * preset.dim, preset.depth * preset.dim**2)
                and (depth, dim, vocab) != (preset.depth, preset.dim, preset.vocab_size)}
    assert set(said) == expected and len(expected) > 4


def test_sentences_of_the_three(found):
    said = found.set_index("preset").trades
    assert said["goldilocks"] == ("4 layers, exact thirds, 0.66 % below target; "
                                  "the cheapest token of the 3 best balanced")
    assert "the nearest to target of all 188; against goldilocks: 0.65 % nearer to target, but" in said["extremist"]
    assert "goldilocks is at least as good in everything" in said["conventional"]
    assert "exact halves" in sizing.search(tied=True).trades[0]
    assert "exactly 75 % in the blocks" in sizing.search(blocks_percent=75, total=37_748_736).trades[0]


def test_what_the_list_by_hand_missed(found):
    missed = sizing.missed(found)
    assert {(16, 256, 49_152), (64, 128, 98_304), (28, 192, 65_536)} <= set(shapes(missed))
    worst = found[found.preset != ""].imbalance.max()
    assert len(missed) == ((found.imbalance <= worst) & (found.preset == "")).sum()
    assert (28, 192, 65_536) in shapes(sizing.missed(sizing.search(max_depth=28)))    # as balanced as the worst named
    assert len(sizing.missed(sizing.search(tied=True))) == 0 and not sizing.search(tied=True).preset.any()


def test_practical_depth_is_computed_from_the_rows():
    text = sizing.practical_depth(sizing.search(min_depth=1, max_depth=20, context=1024))
    one, sixteen = (sizing.flops_per_token(GPTConfig(depth, dim, vocab), 1024)
                    for depth, dim, vocab in ((1, 1024, 12_288), (16, 256, 49_152)))
    assert text.startswith("1, 4 and 16 layers hold the same 37,748,736 parameters")
    assert f"cost {sixteen / one:.3g} × the compute of a token and 4 × the KV cache of 1:" in text
    assert sizing.practical_depth(sizing.search(max_depth=5)).startswith("no two shapes")


def test_findings_name_all_of_it(found):
    texts = sizing.findings(found)
    assert all(name in texts[0] for name in ("goldilocks (rank 1)", "conventional (rank 4)", "extremist (rank 7)"))
    assert "16 × 256 with 49,152" in texts[1] and f"{found.pareto.sum()} of {len(found)}" in texts[2]
    assert texts[3] == sizing.practical_depth(found)
    assert sizing.findings(sizing.search(tied=True))[0] == "no named shape is among them"


# Speed and size

MILLION = range(256, 131_073, 128)


def test_a_million_shapes_in_two_seconds():
    assert len(MILLION) * 62 * (1037 // 64) > 1e6
    start_s = time.process_time()
    found = sizing.search(vocab_sizes=MILLION)
    assert time.process_time() - start_s < 2
    assert len(found) > 6000 and found.trades.str.len().min() > 20


def test_the_grid_is_never_made_whole():
    """Ten million shapes would take 80 MB for one column."""
    vocab_sizes = range(256, 131_073, 13)
    assert len(vocab_sizes) * 62 * (1037 // 64) > 9.9e6
    tracemalloc.start()
    found = sizing.search(vocab_sizes=vocab_sizes, tolerance=0.001)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 20e6 and len(found) > 2000


def test_python_is_not_called_for_every_candidate():
    rows, calls = [], []
    for vocab_sizes in (range(256, 131_073, 26), range(256, 131_073, 13)):
        with cProfile.Profile() as profile:
            rows.append(len(sizing.search(vocab_sizes=vocab_sizes)))
        calls.append(pstats.Stats(profile).total_calls)
    assert rows[1] > rows[0] + 30_000
    assert calls[1] - calls[0] < 0.6 * (rows[1] - rows[0])    # numbers that were not said before


# What can't be done

def problems(**keywords) -> list[str]:
    with pytest.raises(ConfigError) as error:
        sizing.search(**keywords)
    return error.value.problems


@pytest.mark.parametrize(("keywords", "message"), [
    ({"head_dim": 7}, "head_dim=7 is not an even whole number (RoPE turns pairs) from 2 to 1048576: use 6 or 8"),
    ({"head_dim": 64.0}, "use 64"), ({"head_dim": 63.0}, "use 62 or 64"), ({"head_dim": 1}, "use 2"),
    ({"head_dim": 2**21}, "use 1048576 or less"), ({"head_dim": "64"}, "head_dim='64' is not"),
    ({"total": 0}, "total=0 is not a number from 1 to 10000000000000: use 1"), ({"total": "38e6"}, "a number from 1"),
    ({"total": None}, "a number from 1"), ({"total": math.nan}, "a number from 1"), ({"total": True}, "total=True is"),
    ({"total": math.inf}, "use 10000000000000"), ({"total": 10**400}, "use 10000000000000"), ({"total": [1]}, "[1]"),
    ({"tolerance": -0.1}, "use 0"), ({"tolerance": 2}, "tolerance=2 is not a number from 0 to 1 (0.02 is 2 %): use 1"),
    ({"blocks_percent": 0}, "use 0.1"), ({"blocks_percent": 100}, "use 99.9"), ({"blocks_percent": ""}, "from 0.1 to"),
    ({"max_depth": 2}, "max_depth=2 is below min_depth=3: use max_depth=3 or min_depth=2"),
    ({"max_depth": 10**9}, "use 100000 or less"), ({"min_depth": 2.5}, "use 2 or 3"), ({"min_depth": None}, "use 1"),
    ({"min_dim": 65, "max_dim": 100}, "multiple of head_dim=64 from min_dim=65 on: use max_dim=128 or min_dim=64"),
    ({"max_dim": 32}, "use max_dim=64"), ({"context": True}, "context=True is not"), ({"context": 0}, "use 1 or more"),
    ({"tied": 1}, "tied=1 is not a choice: use True or False"), ({"tied": "yes"}, "use True or False"),
    ({"vocab_sizes": []}, "vocab_sizes holds 0 sizes: use 1 to 10000000"), ({"vocab_sizes": None}, "or a list of such"),
    ({"vocab_sizes": range(5, 1)}, "holds 0 sizes"), ({"vocab_sizes": "24576"}, "use 1 or more, or a list"),
    ({"vocab_sizes": range(1, 10**30)}, "in wider steps"), ({"vocab_sizes": 24_576.5}, "use 24576 or 24577"),
    ({"vocab_sizes": [1000, 1000.5]}, "vocab_sizes[1]=1000.5 is not a whole number from 1 to 4294967296: use 1000 or"),
    ({"vocab_sizes": [True, 5]}, "vocab_sizes[0]=True"), ({"vocab_sizes": ["a", None]}, "vocab_sizes[1]=None"),
    ({"vocab_sizes": np.array([1.0, math.nan])}, "vocab_sizes[1]=nan"), ({"vocab_sizes": [2**70]}, "or less"),
    ({"vocab_sizes": np.array(0)}, "vocab_sizes="), ({"vocab_sizes": {"a": 1}}, "vocab_sizes="),
    ({"vocab_sizes": range(300)}, "vocab_sizes[0]=0 is not"),
    ({"vocab_sizes": range(-2, 300)}, "vocab_sizes[0]=-2 is not a whole number from 1 to 4294967296: use 1 or more"),
])
def test_bad_input_is_named_with_its_rule_and_the_nearest_legal_value(keywords, message):
    assert any(message in problem for problem in problems(**keywords)), problems(**keywords)


def test_bad_input_is_named_all_at_once():
    found = problems(total=-1, head_dim=7, vocab_sizes=[0, -1, 5, -2, None, 1.5], min_depth=0, max_depth=-1,
                     tolerance="x", blocks_percent=100, min_dim=0, max_dim=0, context=None, tied=None)
    for field in ("total=-1", "head_dim=7", "vocab_sizes[0]=0", "vocab_sizes[1]=-1", "vocab_sizes[3]=-2", "min_depth=0",
                  "max_depth=-1", "tolerance='x'", "blocks_percent=100", "min_dim=0", "max_dim=0", "context=None",
                  "tied=None"):
        assert any(problem.startswith(field) for problem in found), field
    assert "vocab_sizes has 2 more of that kind: mend them likewise" in found
    assert not any("vocab_sizes[4]" in problem for problem in found)


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
    message = problems(total=total, tolerance=tolerance, **limits)[0]
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
    wide = {"vocab_sizes": range(1, 131_073), "tolerance": 0.04}
    message = problems(**wide)[0]
    assert "more than the 200000 that a list holds" in message
    fit = float(re.search(r"use tolerance=([\de.-]+) or less", message)[1])
    assert len(sizing.search(**wide | {"tolerance": fit / 20})) > 1000
    fine = problems(total=1e12, head_dim=2, max_depth=10_000)[0]
    assert "more than the 2000000 that a search holds: use lower ones" in fine
    assert len(sizing.search(total=1e12, head_dim=2**12, max_depth=10_000, tolerance=0.05)) > 0

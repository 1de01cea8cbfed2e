"""Experiments: descriptions are checked as a whole, records survive kills, statistics agree with scipy's."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from importlib import metadata

import numpy as np
import pandas as pd
import pytest
from filelock import FileLock
from helpers import problems
from scipy import stats

from tinylib import experiments, hardware, sizing
from tinylib.checks import ConfigError, UserError
from tinylib.cli import main
from tinylib.experiments import FOLDER, append, compare, describe, differences, records
from tinylib.experiments.comparing import Comparison, quantile
from tinylib.experiments.records import step_times, times_file
from tinylib.experiments.running import Failed, Source, folder, missing
from tinylib.launch import Run

TINY = """
question = "Does a second layer pay?"
[text]
name = TEXTS
characters = 100_000
[every]
size = "nano"
dim = 16
vocab_size = 300
seq_len = 32
total_batch_size = 128
device_batch_size = 4
[budgets]
small = 3e7
[arms]
one = {depth = 1}
two = {depth = 2, vocab_size = 290}
more = {depth = 1, init_from = "one", share = 0.5}
[blocks.depth]
prediction = "No."
rule = "It pays if the interval is below zero."
arms = ["one", "two", "more"]
budget = "small"
seeds = [0]
"""


@pytest.fixture
def tiny(tmp_path):
    """Write the description with changes to its text, under a name of its own; returns its path."""
    texts = tmp_path / "texts.jsonl"
    documents = [f"The square of {n} is {n * n}, and after {n} comes {n + 1}. " * 4 for n in range(300)]
    texts.write_text("\n".join(json.dumps({"text": text}) for text in documents))

    def write(*changes):
        text = TINY.replace("TEXTS", json.dumps(str(texts)))
        for old, new in changes:
            assert old in text
            text = text.replace(old, new)
        path = tmp_path / "experiments" / f"{tmp_path.name}.toml"
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        return path
    return write


# Descriptions

@pytest.mark.parametrize("name", sorted(path.stem for path in FOLDER.glob("*.toml")))
def test_the_committed_descriptions_can_be_run(name):
    description = describe(name)
    trials = description.trials()
    assert len({trial.label for trial in trials}) == len(trials)
    for trial in trials:
        step_flops = sizing.flops_per_token(trial.config.model) * trial.config.total_batch_size
        if trial.config.device == "cpu":
            assert trial.config.total_batch_size == 4096 and trial.config.model.seq_len == 256
        share = description.arms[trial.base].get("share", 1)
        assert abs(trial.config.steps * step_flops - share * trial.flops) <= step_flops / 2
        assert trial.config.steps > 250


@pytest.mark.parametrize("change, message", [
    (('"nano"\n', '"nano"\nvocab_sise = 3\n'), "arm every: vocab_sise=3 is not a field: use vocab_size"),
    (("{depth = 1}", "{depth = 1, data = 'x'}"), "data='x' is not a field"),
    (("small = 3e7", "small = 10"), "arm 'one', budget 'small': 10 FLOPs give no step"),
    (("small = 3e7", "small = -1"), "budget small=-1 is not a number above 0"),
    (('"one", "two"', '"one", "three"'), "arm='three' is not a choice: use one, two or more"),
    (('budget = "small"', 'budget = "large"'), "budget='large' is not a choice: use small"),
    (('init_from = "one"', 'init_from = "more"'), "init_from='more' is not a choice: use one or two"),
    (("depth = 2", "depth = 2, heads = 3"), "dim=16 is not a multiple of 3"),
    (('budget = "small"', 'budget = "small"\nequal_size = true'), "arm two has 15,424 parameters"),
    (("rule =", "rules ="), "rules='It pays if the interval is below zero.' is not a field: use rule"),
    (("characters = 100_000", "characters = 100_000\nsha256 = 'x'"), "use one of them"),
    (('size = "nano"', 'size = "small"'), "size='small' is not a choice"),
    (("depth = 1, init_from", "depth = 2, init_from"), "its model is not that of init_from"),
    (("share = 0.5}", 'convert = "untie"}'), "only tied may differ, and must where convert is set"),
    (("share = 0.5}", 'convert = "untie", tied = true}'), "convert='untie' is not a choice: use least-change, mean"),
    (("share = 0.5}", "at = 0.55}"), "at=0.55 is not a choice: use 0.1, 0.2"),
    (("{depth = 1}", "{depth = 1, at = 0.5}"), "convert and at need a run to start from: set init_from"),
])
def test_a_wrong_description_is_one_clear_error(tiny, change, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        describe(tiny(change))


def test_a_file_that_is_not_toml_and_an_unknown_name(tiny):
    with pytest.raises(UserError, match="is not TOML"):
        describe(tiny(("[budgets]", "[budgets")))
    with pytest.raises(FileNotFoundError, match=r"no experiment 'nanno': there are .*nano"):
        describe("nanno")


def test_rates_multiply_every_learning_rate_and_shared_runs_are_there_once(tiny):
    description = describe(tiny(('seeds = [0]', 'seeds = [0, 1]\nrates = [1, 0.5]'), ('"one", "two", "more"', '"one"')))
    trials = description.trials()
    assert [(trial.arm, trial.seed) for trial in trials] == [
        ("one", 0), ("one, rates ×0.5", 0), ("one", 1), ("one, rates ×0.5", 1)]
    first, half = (trial.config for trial in trials[:2])
    for name in ("embedding_lr", "unembedding_lr", "tied_lr", "matrix_lr"):
        assert getattr(half, name) == getattr(first, name) / 2
    before = '[blocks.before]\nprediction = ""\nrule = ""\narms = ["one"]\nbudget = "small"\nseeds = [0]\n'
    again = describe(tiny(("[blocks.depth]", f"{before}[blocks.depth]")))
    assert [trial.arm for trial in again.trials()] == ["one", "two", "more"]


# Records

def test_a_cut_line_is_dropped_and_a_broken_one_is_an_error(tmp_path):
    file = tmp_path / "deeper" / "records.jsonl"
    append(file, {"seed": 0})
    with file.open("a") as opened:
        opened.write('{"seed": 1, "cur')
    assert records(file) == [{"seed": 0}]
    append(file, {"seed": 2})
    assert records(file) == [{"seed": 0}, {"seed": 2}]
    file.write_text("{broken\n" + file.read_text())
    with pytest.raises(UserError, match=r"line 1 of .*records\.jsonl is no record"):
        records(file)


# Statistics

def table_of(scores):
    """A row a run of a frame with a row a seed and a column an arm."""
    return scores.rename_axis("seed").reset_index().melt("seed", var_name="arm", value_name="bits_per_byte").dropna()


@pytest.fixture
def scores():
    drawn = np.random.default_rng(0).normal(size=(4, 3))
    return pd.DataFrame(drawn * 0.01 + np.arange(4)[:, None] * 0.1 + [1.5, 1.45, 1.6], columns=["a", "b", "c"])


def test_two_arms_are_the_paired_t_test(scores):
    found = compare(table_of(scores[["a", "b"]]), "a")
    right = stats.ttest_rel(scores["b"], scores["a"]).confidence_interval(0.95)
    assert found.loc["b", ["low", "high"]].tolist() == pytest.approx(list(right))
    assert found.loc["b", "difference"] == pytest.approx(differences(table_of(scores), "a")["b"].mean())


def test_the_residual_is_pooled_over_the_arms_of_randomized_blocks(scores):
    found = compare(table_of(scores), "a")
    residual = scores.sub(scores.mean(axis=1), axis=0).sub(scores.mean(), axis=1) + scores.to_numpy().mean()
    noise = np.sqrt((residual**2).to_numpy().sum() / 6)    # (4 - 1) · (3 - 1) degrees of freedom
    assert found.attrs == {"noise": pytest.approx(noise), "df": 6}
    half = quantile(np.eye(2) + 1, 6) * noise * np.sqrt(2 / 4)
    assert found.loc["c", "high"] == pytest.approx((scores["c"] - scores["a"]).mean() + half)
    assert found["difference"].tolist() == pytest.approx((scores.mean() - scores["a"].mean()).tolist())


def test_the_quantile_is_that_of_dunnett():
    rng = np.random.default_rng(1)
    control, *others = rng.normal(size=(4, 6))
    noise = np.sqrt(np.mean([np.var(group, ddof=1) for group in (control, *others)]))
    right = stats.dunnett(*others, control=control, random_state=0).confidence_interval(0.95)
    half = quantile(np.eye(3) + 1, df=20) * noise * np.sqrt(2 / 6)
    assert half == pytest.approx((right.high - right.low)[0] / 2, rel=2e-3)


def test_a_missing_run_leaves_the_differences_of_an_additive_table():
    scores = pd.DataFrame(np.arange(3)[:, None] * 0.1 + np.array([1.5, 1.45, 1.6]), columns=["a", "b", "c"])
    scores.loc[2, "a"] = scores.loc[1, "c"] = np.nan
    found = compare(table_of(scores), "a")
    assert found["difference"].tolist() == pytest.approx([0, -0.05, 0.1])
    assert found["seeds"].tolist() == [2, 3, 2] and found.attrs["noise"] == pytest.approx(0, abs=1e-9)


def test_one_arm_is_the_noise_floor_and_one_seed_has_no_interval(scores):
    found = compare(table_of(scores[["a"]]), "a")
    assert found.attrs == {"noise": pytest.approx(scores["a"].std()), "df": 3}
    assert differences(table_of(scores[["a"]]), "a")["a"].tolist() == pytest.approx(
        (scores["a"] - scores["a"].mean()).tolist())
    alone = compare(table_of(scores[:1]), "a")
    assert alone.attrs["df"] == 0 and alone[["low", "high"]].isna().to_numpy().all()


def test_a_verdict_needs_an_interval_without_zero_and_a_difference_that_counts():
    noise = np.array([[1, -1, 0, 0], [-1, 1, 0, 0], [0, 0, 1, -1], [0, 0, -1, 1]]) * 1e-4
    scores = pd.DataFrame(np.add(noise, [1.5, 1.45, 1.6, 1.503]), columns=["a", "b", "c", "d"])

    def verdicts(table):
        return Comparison("block", "t", "a", table, 0, 1e12, "rule", least=0.005).verdicts["verdict"].to_dict()

    assert verdicts(table_of(scores)) == {"b": "better", "c": "worse", "d": "not told apart"}    # 0.003 is too little
    assert verdicts(table_of(scores + np.random.default_rng(0).normal(size=(4, 4)))) == dict.fromkeys(
        "bcd", "not told apart")
    assert verdicts(table_of(scores[:1])) == dict.fromkeys("bcd", "one seed")


def test_what_cannot_be_compared_is_an_error(scores):
    table = table_of(scores)
    assert "reference='d' is not a choice" in problems(compare, table, "d")[0]
    assert "arm 'a' has two runs with seed 0" in problems(compare, pd.concat([table, table[:1]]), "a")[0]
    other = table.assign(hardware=["x"] + ["y"] * (len(table) - 1))
    assert problems(compare, other, "a") == ["runs with seed 0 differ in hardware: compare those with the same"]
    mixed = compare(table.assign(dtype=["bfloat16"] + ["float32"] * (len(table) - 1)), "a")    # an arm of its own
    pd.testing.assert_frame_equal(mixed, compare(table, "a"))


def test_at_equal_bytes_and_seconds_arms_are_read_off_their_own_line(tiny, monkeypatch):
    path = tiny(("small = 3e7", "small = 3e7\nlarge = 12e7"), ('"one", "two", "more"', '"one", "two"'),
                ('budget = "small"', 'budget = "large"'), ("seeds = [0]", "seeds = [0, 1]"))
    description, bits = describe(path), {"one": 3.0, "two": 3.2}
    for block in (description.blocks["depth"], replace(description.blocks["depth"], budget="small")):
        for trial in description.block_trials(block):
            slope = -0.2 * (trial.budget == "large")    # of four times the FLOPs
            append(description.records_file, {
                "config": trial.identity, "hardware": "cpu", "torch": "2", "threads": 1, "dtype": "float32",
                "text": "t", "date": "2026-11-27", "arm": trial.arm, "seed": trial.seed, "steps": trial.config.steps,
                "bytes": trial.flops * (2 if trial.arm == "two" else 1), "bits_per_byte": bits[trial.arm] + slope})
    found = experiments.report(path)[0].compared
    assert found["difference"]["two"] == pytest.approx(0.2)
    found = experiments.report(path, "bytes")[0].compared    # twice the bytes at equal FLOPs: half of a step back
    assert found["mean"].tolist() == pytest.approx([2.8, 3.1])
    assert experiments.report(path, "seconds") == []
    for arm, seconds in (("one", 9.0), ("two", 1.0), ("one", 2.0)):    # the newest counts
        append(times_file(description), {"arm": arm, "seconds": seconds, "hardware": "cpu", "torch": "2"})
    found = experiments.report(path, "seconds")[0].compared
    steps = {trial.arm: trial.config.steps for trial in description.trials()}
    longer = 2 * steps["one"] / steps["two"]
    assert found["mean"]["two"] == pytest.approx(3.0 - 0.2 * np.log(longer) / np.log(4), abs=0.01)


def test_arms_with_other_rates_have_lines_of_their_own(tiny):
    path = tiny(("small = 3e7", "small = 3e7\nlarge = 12e7"), ('"one", "two", "more"', '"one"'),
                ('budget = "small"', 'budget = "large"'), ("seeds = [0]", "seeds = [0]\nrates = [1, 0.5]"))
    description = describe(path)
    for block in (description.blocks["depth"], replace(description.blocks["depth"], budget="small")):
        for trial in description.block_trials(block):
            append(description.records_file, {
                "config": trial.identity, "hardware": "cpu", "torch": "2", "threads": 1, "dtype": "float32",
                "text": "t", "date": "2026-11-27", "arm": trial.arm, "seed": 0, "steps": trial.config.steps,
                "bytes": trial.flops, "bits_per_byte": 3 + 0.1 * ("rates" in trial.arm) - (trial.budget == "large")})
    found = experiments.report(path, "bytes")[0].compared
    assert found["mean"].to_dict() == pytest.approx({"one": 2.0, "one, rates ×0.5": 2.1})


def test_steps_are_timed_on_an_idle_machine_only(tiny, monkeypatch):
    path = tiny(('"one", "two", "more"', '"one", "two"'))
    monkeypatch.setattr("psutil.cpu_percent", lambda interval: 50)
    with pytest.raises(UserError, match="other processes use 50% of the cores"):
        experiments.time_steps(path)
    monkeypatch.setattr("psutil.cpu_percent", lambda interval: 5)
    found = experiments.time_steps(path)
    assert set(found) == {"one", "two"} and min(found.values()) > 0
    machine = hardware.processor(), metadata.version("torch")
    assert step_times(describe(path), machine) == found


# Runs

def test_pairs_are_made_whole_on_one_kind_of_machine(tiny, monkeypatch):
    blocks = '[blocks.second]\nprediction = ""\nrule = ""\narms = ["one", "two"]\nbudget = "small"\nseeds = [0, 1]\n'
    description = describe(tiny(('"one", "two", "more"', '"one", "two"'), ("[blocks.depth]", f"{blocks}[blocks.depth]"),
                                ("seeds = [0]\n", "seeds = [0, 2]\n")))
    monkeypatch.setattr("tinylib.hardware.processor", lambda: "here")

    def made(*names, machine="there"):
        return [{"config": trial.identity, "hardware": machine, "torch": metadata.version("torch")}
                for trial in description.trials() if (trial.arm, trial.seed) in names]

    def names(found):
        return [(trial.arm, trial.seed) for trial in missing(description, found)]

    seeds = {seed: [("one", seed), ("two", seed)] for seed in (0, 1, 2)}
    assert names([]) == seeds[0] + seeds[1] + seeds[2]
    assert names(made(*seeds[0])) == seeds[1] + seeds[2]                  # whole there
    assert names(made(("one", 0))) == seeds[1] + seeds[2] + seeds[0]      # begun there: last, and whole here
    assert names(made(("one", 0)) + made(("two", 0), machine="here")) == [("one", 0)] + seeds[1] + seeds[2]


def test_an_experiment_started_twice_and_shards_of_another_vocabulary(tiny):
    path = tiny()
    folder(describe(path)).mkdir(parents=True)
    with FileLock(folder(describe(path)) / ".lock"), pytest.raises(BlockingIOError, match="another process runs this"):
        experiments.run(path)
    other = Source(describe(path), None).shards(290).with_name("shards-300")
    shutil.copytree(other.with_name("shards-290"), other, dirs_exist_ok=True)
    with pytest.raises(UserError, match="holds shards with a vocabulary of 290, not 300: delete it"):
        experiments.run(path)
    shutil.rmtree(other)


def test_a_text_that_tinylib_does_not_bring(tiny, tmp_path, monkeypatch):
    path = tiny((f'name = {json.dumps(str(tmp_path / "texts.jsonl"))}', 'sha256 = "0123"\nsource = "Write it."'))
    with pytest.raises(UserError, match=r"--corpus PATH or TINYLIB_CORPUS; sha256 0123; Write it\."):
        experiments.run(path)
    monkeypatch.setenv("TINYLIB_CORPUS", str(tmp_path / "texts.jsonl"))
    with pytest.raises(UserError, match="and the experiment is about 0123"):
        experiments.run(path)


@pytest.fixture
def call(capsys):
    def run(*arguments):
        code = main(["experiment", *map(str, arguments)])
        return code, *capsys.readouterr()
    return run


@pytest.mark.slow
def test_an_experiment_from_its_first_run_to_one_made_again(tiny, call, tmp_path):
    path = tiny()
    assert call(path, "--report", "--json")[0] == 0
    code, out, err = call(path, "--json")
    assert code == 0, err
    assert json.loads(out)["done"] == 3 and json.loads(out)["missing"] == 0
    table = experiments.read(path)
    assert table["arm"].tolist() == ["one", "two", "more"] or table["arm"].tolist() == ["two", "one", "more"]
    assert set(table.columns) >= {
        "experiment", "size", "arm", "seed", "budget", "config", "data", "commit", "hardware", "torch", "threads",
        "dtype", "date", "steps", "tokens", "flops", "seconds", "curve", "bits_per_byte", "interval"}
    for _, row in table.iterrows():
        assert row["interval"][0] < row["bits_per_byte"] < row["interval"][1] and row["curve"][-1][0] == row["steps"]
    one, more = (table[table["arm"] == arm].iloc[0] for arm in ("one", "more"))
    assert more["curve"][0][1] < one["curve"][0][1] - 0.1    # it went on from there
    assert not [*folder(describe(path)).glob("*-0-*")]
    before = describe(path).records_file.read_bytes()
    assert call(path)[0] == 0 and describe(path).records_file.read_bytes() == before
    code, out, err = call(path, "--again", "two-small-0", "--json")
    assert code == 0 and json.loads(out)["same"] is True, err
    code, out, err = call(path, "--report", "--figure", tmp_path / "figure.png")
    assert code == 0 and "It pays if the interval is below zero." in out
    assert (tmp_path / "figure.png").stat().st_size > 5000
    code, out, err = call(path, "--again", "two")
    assert code == 1 and "use one-small-0, two-small-0 or more-small-0" in err


@pytest.mark.slow
def test_an_arm_is_untied_on_its_way_and_another_tied_at_its_end(tiny):
    """An untied child goes on with its parent's schedule and order of data, so its curve is close to the parent's."""
    arms = """
tied = {depth = 1, tied = true}
freed = {depth = 1, init_from = "tied", convert = "untie", at = 0.7}
bound = {depth = 1, tied = true, init_from = "one", convert = "least-change", share = 0.1}
two ="""
    path = tiny(('"one", "two", "more"', '"tied", "freed", "one", "bound"'), ("3e7", "3e8"), ("\ntwo =", arms))
    assert experiments.run(path) == {"done": 4, "missing": 0}
    made = {record["arm"]: record for record in records(describe(path).records_file)}
    curves = {arm: dict(map(tuple, record["curve"])) for arm, record in made.items()}
    steps = made["tied"]["steps"]
    assert made["freed"]["steps"] == steps and min(curves["freed"]) == 7 * (steps // 10) + 1
    shared = sorted(curves["freed"].keys() & curves["tied"].keys())
    freed, tied = ([curves[arm][step] for step in shared] for arm in ("freed", "tied"))
    assert freed == pytest.approx(tied, rel=0.2)
    assert made["bound"]["steps"] == round(0.1 * made["one"]["steps"]) and made["bound"]["config"]["model"]["tied"]
    assert not [*folder(describe(path)).glob("*-0-*")]


def start(path):
    return subprocess.Popen([sys.executable, "-m", "tinylib", "experiment", str(path), "--workers", "1"],
                            stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def wait_for(condition, timeout_s=200):
    end_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end_s
        time.sleep(0.02)


@pytest.mark.slow
def test_killed_and_interrupted_runs_go_on_bit_for_bit(tiny):
    path = tiny(("3e7", "2e10"), (', "two", "more"', ""))
    runs, file = folder(describe(path)), describe(path).records_file

    def step():
        status = [json.loads(name.read_text()) for name in runs.glob("one*/status.json")]
        return max([entry.get("step", 0) for entry in status], default=0)

    with start(path) as parent:    # SIGKILL to the experiment: its run lives on, and the next call follows it
        wait_for(lambda: step() > 0)
        parent.kill()
    run = Run(next(runs.glob("one*")))
    rank = run.alive()["rank0"].pid
    os.kill(rank, signal.SIGSTOP)    # so that it does not come to its end meanwhile
    with start(path) as parent:    # SIGKILL to the run
        assert b"1 runs to do  one-small-0: step" in parent.stdout.readline() and run.alive()["rank0"].pid == rank
        os.kill(rank, signal.SIGKILL)
        assert b"error: one-small-0: " in parent.communicate()[0] and parent.returncode == 1
    with start(path) as parent:    # an interrupt
        reached = step()
        wait_for(lambda: step() > reached)
        parent.send_signal(signal.SIGINT)
        assert b"interrupted" in parent.communicate()[0]
    assert not run.alive() and run.state == "stopped" and 0 < step() < 2900 and records(file) == []
    experiments.run(path)
    (killed,) = records(file)
    file.unlink()
    experiments.run(path)
    (straight,) = records(file)
    same = ("curve", "bits_per_byte", "interval", "steps", "data")
    assert {name: killed[name] for name in same} == {name: straight[name] for name in same}


@pytest.mark.slow
def test_a_run_that_fails_is_told_at_the_end_and_leaves_no_record(tiny):
    path = tiny((', "two", "more"', ', "two"'), ("{depth = 1}", "{depth = 1, matrix_lr = 1e38}"))
    with pytest.raises(Failed, match=r"(?s)one-small-0: .*FloatingPointError"):
        experiments.run(path)
    assert [record["arm"] for record in records(describe(path).records_file)] == ["two"]

"""The scaling law: it finds a law that it was given, its intervals hold, and it reads only runs of one recipe."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest

from tinylib import sizing
from tinylib.checks import UserError
from tinylib.cli import main
from tinylib.config import PRESETS, GPTConfig
from tinylib.course import panel
from tinylib.experiments import law

TRUE = np.array([0.7, 1.0, 0.3, 0.1, 0.6, -0.01, 0.01, 0.01, 0.008, -0.05])


def made(noise: float, seed: int = 0) -> pd.DataFrame:
    """Runs that follow the law with the coefficients TRUE, two seeds each."""
    rows = []
    for size in ("nano", "micro", "mini"):
        base = PRESETS[size]
        for factor, depth, tied in ((1, 4, False), (1.5, 4, False), (0.5, 4, False), (1, 2, False), (1, 8, False),
                                    (1, 16, False), (1, 4, True), (1, 8, True)):
            dim = round(base.dim * factor * (4 / depth) ** 0.4 / 16) * 16
            config = GPTConfig(depth, dim, round(base.vocab_size / factor), head_dim=16, seq_len=256, tied=tied)
            for flops in (1e13, 4e13, 2e14):
                sheet = sizing.sheet(config)
                tokens = flops / sheet["flops_per_token"]
                read = tokens * (0.6 * np.log(config.vocab_size) - 1.8)
                rows += [sheet | {"size": size, "arm": f"{factor}, {depth}, {tied}", "seed": number, "budget": flops,
                                  "tokens": tokens, "bytes": read} for number in (0, 1)]
    table = pd.DataFrame(rows)
    exact = law._bits_per_byte(TRUE, table)
    return table.assign(bits_per_byte=exact + noise * np.random.default_rng(seed).normal(size=len(table)), exact=exact)


def test_it_finds_the_law_that_made_the_runs():
    table = made(noise=1e-3)
    found = law.fit(table).at(table)
    assert np.abs(found["predicted"] - table["exact"]).max() < 2e-3
    goldilocks, extremist = (sizing.sheet(PRESETS[name]) for name in ("goldilocks", "extremist"))
    shapes = pd.DataFrame([goldilocks, extremist])
    far = law.fit(table).predict(shapes, 1.52e17)
    read = 1.52e17 / shapes["flops_per_token"] * (0.6 * np.log(shapes["vocab_size"]) - 1.8)
    exact = law._bits_per_byte(TRUE, shapes.assign(bytes=read))
    assert (np.abs(far["predicted"] - exact) < far["half"]).all()
    assert far["difference"][0] == far["difference_half"][0] == 0
    assert abs(far["difference"][1] - (exact[1] - exact[0])) < far["difference_half"][1]


def test_its_intervals_hold_for_shapes_that_it_has_not_seen():
    caught = []
    for seed in range(2):
        means = law.unseen(made(noise=0.01, seed=seed)).groupby(["size", "arm", "budget"]).mean(numeric_only=True)
        caught += list(np.abs(means["bits_per_byte"] - means["predicted"]) < means["half"])
    assert 0.88 < np.mean(caught) < 1    # 95% of means over two seeds, if all is right


def test_a_size_left_out_is_predicted_with_a_wider_interval():
    table = made(noise=0.005)
    near, far = law.unseen(table), law.unseen(table, by=["size"])
    assert list(near.index) == list(far.index) == list(table.index)
    assert far["half"].mean() > 1.5 * near["half"].mean()


def test_it_reads_runs_that_differ_in_shape_budget_and_seed_only():
    table = law.runs()
    arms = set(table["arm"])
    assert {"thirds", "width 96", "width 32"} <= arms
    assert not {arm for arm in arms if "rate" in arm or "std" in arm or "float" in arm or "then" in arm}
    assert not table.duplicated(["size", "arm", "seed", "budget"]).any()


def test_too_few_runs_are_no_law():
    with pytest.raises(UserError, match="too few for a law: run `tinylib experiment nano`"):
        law.fit(made(0.01).head(2))


def test_search_and_explorer_show_what_it_predicts(capsys):
    assert main(["search", "--json"]) == 0
    first, second = json.loads(capsys.readouterr().out)["candidates"][:2]
    assert first["difference"] == 0 and second["difference_half"] < second["half"]
    assert main(["search"]) == 0
    text = capsys.readouterr().out
    assert f"{second['predicted']:.3f} ± {second['half']:.3f}" in text and "Lowest of all" in text
    line = panel.predicted(PRESETS["extremist"])["bits per byte"]
    assert line.startswith("predicted ") and line.endswith("against goldilocks")
    assert "against" not in panel.predicted(PRESETS["goldilocks"])["bits per byte"]


def test_without_records_nothing_is_predicted(monkeypatch, capsys):
    monkeypatch.setattr(law, "fitted", lambda: None)
    assert panel.predicted(PRESETS["nano"]) == {}
    assert main(["search", "--json"]) == 0
    assert "predicted" not in json.loads(capsys.readouterr().out)["candidates"][0]

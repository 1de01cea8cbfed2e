"""Explorer: its panel equals sizing, its controls stay legal, it shows without widgets."""

from __future__ import annotations

import math
import os
import re
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from tinylib import sizing
from tinylib.config import PRESETS, ConfigError, GPTConfig, from_json
from tinylib.course import explore
from tinylib.course.panel import figures, nearest_preset, panel_html, panel_text
from tinylib.plots import PARTS

GOLDILOCKS = PRESETS["goldilocks"]


@pytest.fixture
def explorer():
    return explore()


def shown(explorer) -> str:
    """The text of the live panel."""
    return re.sub(r"<style>.*?</style>|<[^>]*>", " ", explorer._panel.value)


def test_the_panel_says_what_sizing_says(explorer):
    config = GPTConfig(depth=7, dim=480, vocab_size=20_000, head_dim=96, seq_len=1024)
    explorer.config = config
    count, lines = sizing.parameters(config), explorer.lines
    for part in ("wte", "blocks", "lm_head"):
        assert lines[part].startswith(f"{getattr(count, part):,} · {count.split[part]:.2f}%")
    assert lines["parameters"] == f"{count.total:,} · {count.total_tied:,} tied, {count.total_untied:,} untied"
    assert lines["KV cache"].startswith(f"{2 * 7 * 1024 * 480 * 4 / 1e6:.1f} MB")
    plan = sizing.plan(config, device="H100")
    for name in ("steps", "micro-batch", "training", "cost"):
        assert lines[name] == plan.table()[name]
    assert f"({plan.largest_batch} would fit)" in lines["micro-batch"]
    assert lines["tokens"].startswith(f"{20 * count.total:,}")
    assert lines["ability"] == sizing.tier(20 * count.total * sizing.flops_per_token(config))
    assert all(line.replace("&", "&amp;") in explorer._panel.value for line in lines.values())


def test_device_and_processes_reach_the_plan():
    eight = explore(PRESETS["nanochat-d32"], "H200", nproc_per_node=8).lines
    assert eight["devices"] == "8 × H200"
    assert eight["cost"] == sizing.plan(PRESETS["nanochat-d32"], device="H200", nproc_per_node=8).table()["cost"]


def test_every_slider_moves_the_configuration(explorer):
    moves = {"depth": 9, "dim": 640, "head_dim": 128, "vocab_size": 12_345, "tied": True, "seq_len": 512}
    for name, value in moves.items():
        explorer.controls[name].value = value
        assert getattr(explorer.config, name) == value
        assert explorer.config.dim % explorer.config.head_dim == 0
        assert f"{sizing.parameters(explorer.config).total:,}" in shown(explorer)
    assert explorer.config == replace(GOLDILOCKS, **moves)


def test_the_width_stays_a_multiple_of_the_head_dim_and_comes_back(explorer):
    width = explorer.controls["dim"]
    for head_dim in (80, 96, 112, 256, 16, 64):
        explorer.controls["head_dim"].value = head_dim
        assert width.value % head_dim == 0 and abs(width.value - 512) <= head_dim / 2
        assert {value % head_dim for _, value in width.options} == {0}
    assert explorer.config == GOLDILOCKS


def test_the_slider_of_the_vocabulary_follows_the_number_and_leads_it(explorer):
    slider, number = explorer.controls["vocabulary"], explorer.controls["vocab_size"]
    slider.value = 40 * 1024
    assert number.value == 40_960 == explorer.config.vocab_size
    number.value = 41_000
    assert (slider.value, explorer.config.vocab_size) == (40_960, 41_000)
    number.value = 500_000
    assert (slider.value, explorer.config.vocab_size) == (slider.max, 500_000)


def test_start_from_any_preset(explorer):
    for name, preset in PRESETS.items():
        explorer.controls["preset"].value = name
        assert explorer.config == preset and explorer.controls["preset"].value == name
        explorer.controls["preset"].value = ""
        assert explorer.controls["preset"].value == name, "a preset is not your own yet"
        assert explorer.lines["nearest preset"] == f"{name}: its depth, width and vocabulary"
    explorer.controls["depth"].value += 1
    assert explorer.controls["preset"].value == ""
    explorer.controls["depth"].value -= 1
    assert explorer.controls["preset"].value == name, "back at a preset, its name is back"


def test_a_shape_beyond_the_sliders_is_not_bent():
    odd = GPTConfig(depth=100, dim=5000, vocab_size=300_001, head_dim=50, seq_len=1000, softcap=None, rope_theta=5e5)
    assert explore(odd).config == odd
    wide = replace(odd, dim=8200, head_dim=100)
    assert explore(wide).config == wide


@pytest.mark.parametrize("tied", [False, True])
def test_balance(explorer, tied):
    explorer.controls["depth"].value, explorer.controls["tied"].value = 6, tied
    assert not explorer.lines["balance"].startswith("exact")
    explorer.controls["balance"].click()
    assert explorer.config.vocab_size == 12 * 6 * 512
    assert explorer.lines["balance"] == ("exact halves" if tied else "exact thirds")
    count = sizing.parameters(explorer.config)
    assert count.wte == count.blocks


def test_how_far_from_balance():
    for name in ("extremist", "conventional"):
        points = sizing.parameters(PRESETS[name]).split["blocks"] - 100 / 3
        side = "over" if points > 0 else "under"
        assert figures(PRESETS[name])["balance"] == f"blocks {abs(points):.2f} points {side} a third"


def test_nearest_preset_is_euclid_over_doublings():
    assert nearest_preset(replace(GOLDILOCKS, depth=5)) == (
        f"goldilocks, {math.log2(5 / 4):.2f} doublings off: depth × 1.25")
    off = GPTConfig(depth=32, dim=2048, vocab_size=131_072, head_dim=128)
    assert nearest_preset(off) == "nanochat-d32, 1.00 doublings off: vocabulary × 2.00"
    assert nearest_preset(GPTConfig(depth=1, dim=32, vocab_size=3072, head_dim=32)).startswith(
        f"nano, {math.hypot(2, 1):.2f} doublings off: depth × 0.25, width × 0.50")


def test_an_impossible_number_shows_the_errors_own_words(explorer):
    explorer.controls["vocab_size"].value = -3
    with pytest.raises(ConfigError) as error:
        GPTConfig(vocab_size=-3)
    assert shown(explorer).strip() == error.value.problems[0]
    assert repr(explorer) == str(error.value)
    with pytest.raises(ConfigError, match="vocab_size=-3"):
        _ = explorer.config
    explorer.controls["save"].click()
    assert "not saved" in explorer._note.value and error.value.problems[0] in explorer._note.value
    explorer.controls["preset"].value = "nano"
    assert explorer.config == PRESETS["nano"] and not explorer._note.value


def test_an_impossible_plan_says_why_beside_the_other_figures():
    explorer = explore(replace(PRESETS["nanochat-d32"], seq_len=1000), device="L4", nproc_per_node=3)
    with pytest.raises(ConfigError) as error:
        sizing.plan(explorer.config, device="L4", nproc_per_node=3)
    assert len(error.value.problems) == 2
    assert explorer.lines["plan"] == "; ".join(error.value.problems) and "cost" not in explorer.lines
    assert explorer.lines["wte"].startswith("134,217,728")


@pytest.mark.parametrize("wrong", [{"device": "H1000"}, {"nproc_per_node": 0}, {"config": "goldilocks"}])
def test_a_wrong_argument_is_said_at_once(wrong):
    name, value = next(iter(wrong.items()))
    with pytest.raises(ConfigError, match=f"{name}={value!r}"):
        explore(**wrong)


def test_save_as_my_design(explorer, tmp_path, monkeypatch):
    monkeypatch.setenv("TINYLIB_HOME", str(tmp_path))
    explorer.controls["save"].click()
    assert "not saved" in explorer._note.value and "total_batch_size=2048" in explorer._note.value
    assert "shorter context" in explorer._note.value
    explorer.controls["seq_len"].value = 128
    assert not explorer._note.value
    explorer.controls["save"].click()
    file = tmp_path / "data" / "smoke" / "design.json"
    assert f"saved in {file}" in explorer._note.value
    assert from_json(GPTConfig, file.read_text(encoding="utf-8")) == explorer.config
    monkeypatch.setenv("TINYLIB_PROFILE", "nonsense")
    explorer.controls["save"].click()
    assert "not saved" in explorer._note.value and "nonsense" in explorer._note.value


class Cells(HTMLParser):
    """The bar's cells (width and colour) and whether all tags are closed."""

    def __init__(self, text):
        super().__init__()
        self.open, self.bar = [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.open.append(tag)
        if "bgcolor" in dict(attributes):
            self.bar.append((dict(attributes)["width"], dict(attributes)["bgcolor"]))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


@pytest.mark.parametrize("tied", [False, True])
def test_the_bar_is_the_split_in_the_colours_of_the_figures(tied):
    config = replace(PRESETS["extremist"], tied=tied)
    cells, split = Cells(panel_html(config, figures(config))), sizing.parameters(config).split
    assert not cells.open
    assert cells.bar == [(f"{split[part]:.2f}%", PARTS[part]) for part in PARTS if split[part]]
    bar = panel_text(config, figures(config)).splitlines()[1].split("  ")[0]
    assert [bar.count(mark) for mark in "░█▒"] == [round(0.6 * share) for share in split.values()]


# Without widgets


def test_the_same_call_shows_a_static_panel(monkeypatch):
    monkeypatch.setenv("TINYLIB_WIDGETS", "off")
    explorer, lines = explore(), figures(GOLDILOCKS)
    assert not explorer.controls and explorer.config == GOLDILOCKS
    assert explorer._repr_mimebundle_() == {"text/html": panel_html(GOLDILOCKS, lines),
                                            "text/plain": panel_text(GOLDILOCKS, lines)}
    explorer.config = PRESETS["nano"]
    assert repr(explorer).startswith("4 layers × 64 wide, 1 head of 64, vocabulary 3,072")


@pytest.mark.parametrize("how", [["-c", "import sys\n{0}\nsys.displayhook(explore())"],
                                 ["-m", "IPython", "--quick", "--colors=NoColor", "-c", "{0}\nexplore()"]],
                         ids=["python", "ipython"])
def test_a_terminal_shows_text(how, tmp_path):
    command = [part.format("from tinylib.course import explore") for part in how]
    child = subprocess.run([sys.executable, *command], capture_output=True, encoding="utf-8", timeout=60,
                           env=os.environ | {"PYTHONIOENCODING": "utf-8", "IPYTHONDIR": str(tmp_path)})
    text = child.stdout.strip().removeprefix("Out[0]: ")    # IPython
    assert (text, child.stderr) == (panel_text(GOLDILOCKS, figures(GOLDILOCKS)), "")


def test_the_course_keeps_the_panel_and_no_widget(tmp_path):
    from tinylib.course import runner

    cells = [new_markdown_cell("# Explorer"), new_code_cell("from tinylib.course import explore\nexplore()")]
    nbformat.write(new_notebook(cells=cells), tmp_path / "one.ipynb")
    executed = runner.execute(tmp_path / "one.ipynb", tmp_path / "kept", os.environ)
    (output,) = executed.cells[1].outputs
    lines = figures(GOLDILOCKS)
    assert output.data == {"text/html": panel_html(GOLDILOCKS, lines), "text/plain": panel_text(GOLDILOCKS, lines)}
    assert "widgets" not in executed.metadata


LIVE = """
from tinylib.course import explore
explorer = explore()
explorer
explorer.controls["depth"].value = 8
"""


def test_in_a_kernel_the_panel_is_an_output_of_its_own_and_follows(tmp_path, monkeypatch):
    from nbclient import NotebookClient

    monkeypatch.delenv("TINYLIB_WIDGETS", raising=False)
    import_it, make, show, move = LIVE.strip().splitlines()
    cells = [new_code_cell(f"{import_it}\n{make}\n{show}"), new_code_cell(move)]
    notebook = new_notebook(cells=cells)
    NotebookClient(notebook, timeout=60, extra_arguments=["--log-level=ERROR"]).execute()
    panel, view = notebook.cells[0].outputs
    assert "application/vnd.jupyter.widget-view+json" in view.data and view.data["text/plain"].startswith("(sliders")
    assert "application/vnd.jupyter.widget-view+json" not in panel.data
    assert "8 layers × 512 wide" in panel.data["text/html"], "the stored panel is the last state"
    name = re.search(r'class="(tinylib-\w+)"', panel.data["text/html"]).group(1)
    states = notebook.metadata.widgets["application/vnd.jupyter.widget-state+json"]["state"].values()
    assert any(f"<style>.{name}" in str(state["state"].get("value")) for state in states), "the live face hides it"

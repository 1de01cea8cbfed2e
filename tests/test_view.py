"""The live view of runs: it shows what the files hold, its updates are bounded, its buttons act on the run."""

from __future__ import annotations

import base64
import html
import io
import itertools
import json
import math
import os
import random
from dataclasses import replace

import matplotlib
import numpy as np
import pandas as pd
import pytest
from nbformat.v4 import new_code_cell, new_notebook
from PIL import Image

from tinylib.config import ConfigError
from tinylib.files import lines_backwards
from tinylib.launch import Run, attach, launch, show
from tinylib.launch.stop import wait_until
from tinylib.launch.view import Controls, Snapshot
from tinylib.plots.training import LiveCurves
from tinylib.rundir import Eval, Header, Progress, Step, downsampled, progress_line
from tinylib.rundir.records import to_line

STEP_S = 0.25


def step(number: int, **changes) -> Step:
    return replace(Step(number, loss=10 / number, lr_multiplier=1.0, grad_norm=1.0, dt_s=STEP_S, data_s=0.0,
                        tokens=256 * number, tokens_per_s=256 / STEP_S, mfu=None), **changes)


@pytest.fixture
def run(tmp_path, tiny) -> Run:
    """A run that took 40 of its 100 steps, written by hand, whose processes are gone."""
    run = Run(tmp_path / "byhand")
    run.write_config(replace(tiny, steps=100), 2)
    run.append(Header(0, 2, 1, "an abacus", None, "float32", "", False, ""))
    for number in range(1, 41):
        run.append(step(number))
    run.append(Eval(40, val_bpb=2.5, val_loss=3.0))
    run.write_status("running", step=40, steps=100, world_size=2,
                     ranks=[{"compute_s": 0.2, "memory_bytes": 3e9}, {"compute_s": 0.1, "memory_bytes": 1e9}])
    return run


def snapshot(run: Run) -> Snapshot:
    return Snapshot.take(run, Progress(run))


# Progress

@pytest.mark.parametrize("count", [1, 7, 500, 501, 12_345])
def test_a_thin_curve_keeps_the_mean_and_the_ends(count):
    values = np.random.default_rng(0).normal(size=count)
    curve = downsampled(dict(enumerate(values, start=1)))
    ends = curve.index.astype(int)
    assert len(ends) <= 500 and ends[-1] == count and ends.is_monotonic_increasing
    for start, (end, mean) in zip([0, *ends], curve.items(), strict=False):
        assert mean == pytest.approx(values[start:int(end)].mean(), abs=1e-12)
    assert len(ends) == count if count <= 500 else len(ends) > 250


def test_a_value_that_is_no_number_leaves_no_trace():
    assert list(downsampled({1: 1.0, 2: math.nan, 3: math.inf, 4: 3.0})) == [1.0, 3.0]
    assert not len(downsampled({})) and not len(downsampled({1: math.nan}))


def test_reading_on_equals_reading_all(run):
    progress, again = Progress(run), Progress(run)
    for number in range(41, 60):
        run.append(step(number))
        again.read()
    progress.read()
    assert list(progress.curves()[0]) == list(again.curves()[0]) == list(run.metrics()["loss"])
    assert progress.recent == again.recent and progress.evaluation == run.last(Eval)
    assert progress.facts("running", 100) == again.facts("running", 100)


def test_a_line_that_is_being_written_waits(run):
    progress, line = Progress(run), to_line(step(41, loss=7.0))
    for part, last in ((line[:30], 40), (line[30:-1], 40), (line[-1:], 41)):
        with run.metrics_file.open("a") as file:
            file.write(part)
        progress.read()
        assert progress.recent[-1].step == last
    assert progress.recent[-1].loss == 7.0


@pytest.mark.parametrize("text", ["", "no end", "\n", "one\n", "one\ntwo\n\nfour ü\nbegun", "long " * 9 + "\nx\n"])
def test_lines_from_the_last_to_the_first(tmp_path, text):
    (tmp_path / "file").write_text(text, encoding="utf-8")
    for block_bytes in (1, 2, 3, 7, 64, 65_536):
        found = [line.decode() for line in lines_backwards(tmp_path / "file", block_bytes)]
        assert found == text.split("\n")[-2::-1]


def test_a_resumed_run_goes_on_from_its_checkpoint(run):
    progress = Progress(run)
    progress.read()
    run.truncate_metrics(20)
    run.append(step(21, loss=0.125))
    progress.read()
    assert list(progress.curves()[0].index) == list(range(1, 22)) and progress.recent[-1].loss == 0.125
    assert progress.evaluation is None, "the evaluation came after the checkpoint"
    run.truncate_metrics(10)
    for number in range(11, 61):
        run.append(step(number, loss=0.5))
    progress.read()
    assert list(progress.curves()[0].tail(50)) == [0.5] * 50, "also where the file is longer than before by now"
    run.metrics_file.unlink()
    progress.read()
    assert not len(progress.curves()[0])


def test_what_was_read_is_not_read_again(run):
    with run.metrics_file.open("a") as file:
        file.write(to_line(step(50_000)) * 1_000)
    progress = Progress(run)
    progress.read()
    with run.metrics_file.open("r+") as file:
        file.write("not JSON any more")
    run.append(step(100_001))
    progress.read()
    assert progress.recent[-1].step == 100_001 and len(progress.curves()[0]) <= 500


def test_the_line_says_what_the_files_say(run):
    progress = Progress(run)
    progress.read()
    line = progress_line("byhand", progress.facts("running", 100, run.status()["ranks"]))
    assert line == ("byhand: running  step 40 of 100 ████████░░░░░░░░░░░░  loss 0.250  2.500 bits per byte  "
                    "1,024 tokens/s  MFU n/a  3.00 GB  0:00:15 left")
    run.append(step(41, mfu=0.4567))
    progress.read()
    assert "MFU 45.7%" in progress.facts("stopped", 100)["MFU"] and "time left" not in progress.facts("stopped", 100)


# Curves

def curves(count, seed=0):
    steps = range(1, count + 1)
    loss = pd.Series(np.random.default_rng(seed).normal(5, 1, count), steps, dtype=float)
    return loss, loss[9::10] / 2


def test_the_figure_draws_what_it_is_given_and_follows():
    live = LiveCurves(["one", "a $\\two", "_three"])
    for count in (0, 1, 300, 40):
        runs = [curves(count), curves(count // 2, 1), curves(0)]
        image = Image.open(io.BytesIO(live.png(runs)))
        assert image.size == (770, 275)
        left, right = live.axes
        for place, (loss, score) in enumerate(runs):
            smooth = left.lines[place]
            assert list(smooth.get_xdata()) == list(loss.index)
            mean = loss.tail(max(1, len(loss) // 20)).mean()
            np.testing.assert_allclose(smooth.get_ydata()[-1:], [mean] * (len(loss) > 0))
            assert smooth.get_marker() == ("o" if len(loss) == 1 else ""), "one point is seen too"
            np.testing.assert_array_equal(right.lines[place].get_xydata(), np.column_stack([score.index, score]))
        assert right.get_visible() == (count >= 10)
        for axes in live.axes if count > 10 else ():
            low, high = axes.get_ylim()
            ys = np.concatenate([line.get_ydata() for line in axes.lines])
            assert low < ys.min() and ys.max() < high and axes.get_xlim()[1] >= count
    assert [text.get_text() for text in left.get_legend().get_texts()] == ["one", "a $\\two", "_three"]


def test_drawing_touches_nothing_global():
    """A thread draws while the notebook may change, or read, matplotlib's settings."""
    live = LiveCurves(["one"])
    first = live.png([curves(50)])
    with matplotlib.rc_context({"font.size": 30, "axes.grid": False, "ytick.labelsize": 30, "lines.linewidth": 9}):
        before = list(dict.items(matplotlib.rcParams))
        live.png([curves(5000)])
        again = live.png([curves(50)])
        assert list(dict.items(matplotlib.rcParams)) == before
    assert first == again


def test_a_full_picture_is_small():
    live = LiveCurves([f"run {number}" for number in range(4)])
    assert len(base64.b64encode(live.png([curves(500, seed) for seed in range(4)]))) < 40_000
    assert len(base64.b64encode(LiveCurves(["one"]).png([curves(500)]))) < 40_000


# Panel

def test_the_panel_shows_every_rank(run):
    run.write_pid("rank1")
    process = replace(run.processes()["rank1"], devices="cuda:1")
    run.write_pid("rank1", process)
    found = snapshot(run)
    lines = found.text().splitlines()
    assert lines[0].startswith("byhand: running  step 40 of 100") and "loss 0.250" in lines[0]
    assert lines[1].split() == ["rank", "0", "starting", "an", "abacus", "3.00", "GB", "busy", "0.200", "s",
                                "██████████"]
    assert f"alive     cuda:1     pid {os.getpid()}  1.00 GB  busy 0.100 s  █████" in lines[2] and found.alive
    assert found.html().count("●") == 2 and "<b>byhand: running</b>" in found.html()
    run.write_pid("rank1", replace(process, started_s=1.0))
    assert "rank 1  killed" in snapshot(run).text() and "byhand: lost" in snapshot(run).text()


def test_a_failure_says_why(run):
    run.write_error(1, "Traceback:\n" + "  somewhere\n" * 50 + "ValueError: 3 < 2")
    found = snapshot(run)
    assert "byhand: failed" in found.text() and "rank 1 of run byhand" in found.text()
    assert "ValueError: 3 < 2" in found.text() and "ValueError: 3 &lt; 2" in found.html()
    assert "somewhere" not in found.text() and "somewhere" in run.failure()


def test_names_are_no_html(run):
    odd = run.path.rename(run.path.with_name("<b>&"))
    assert "<b>&lt;b&gt;&amp;: lost</b>" in snapshot(Run(odd)).html()


def test_a_run_that_was_removed_is_said_to_be(run):
    run.remove()
    assert snapshot(run).text() == f"byhand: there is no run at {run.path}"


@pytest.mark.parametrize("wrong", ["runs/untied", None])
def test_what_is_no_run_is_refused(wrong, run):
    with pytest.raises(ConfigError, match=f"run={wrong!r} is not a Run: use launch"):
        show(run, wrong)
    with pytest.raises(ConfigError, match="no run was given"):
        show()


def test_without_a_notebook_runs_are_lines(run, capsys):
    run.write_status("finished", step=40, steps=100)
    attach(run.path).watch()
    assert capsys.readouterr().out.startswith("byhand: finished  step 40 of 100 ████████░░░░░░░░░░░░  loss 0.250")
    show(run, run)
    assert capsys.readouterr().out.count("byhand: finished") == 2


# Buttons

@pytest.fixture
def controls(run) -> Controls:
    return Controls(run, lambda: None)


@pytest.mark.parametrize(("state", "alive", "stop", "resume"), [
    ("running", True, True, False), ("finished", True, False, False), ("finished", False, False, False),
    ("stopped", False, False, True), ("failed", False, False, True), ("failed", True, True, False),
    ("lost", False, False, True), ("starting", True, True, False)])
def test_buttons_are_there_when_they_make_sense(run, controls, state, alive, stop, resume):
    run.write_status("running" if state == "lost" else state, step=40, steps=100)
    if alive:
        run.write_pid("rank0")
    assert controls.stop.disabled and controls.resume.disabled, "before the first snapshot"
    controls.follow(snapshot(run))
    assert (not controls.stop.disabled, not controls.resume.disabled) == (stop, resume)


def test_what_a_button_could_not_do_is_said(run, controls):
    config = json.loads(run.config_file.read_text())
    run.config_file.write_text(json.dumps(config | {"train": config["train"] | {"data": "nowhere"}}))
    controls.follow(snapshot(run))
    controls.resume.click()
    assert wait_until(lambda: not controls.doing, 20)
    assert "no token shards in" in controls.note.value and "nowhere" in controls.note.value
    controls.follow(snapshot(run))
    assert not controls.resume.disabled


def test_the_end_of_a_log(run, controls):
    controls.log.value, file = True, run.log_file(None)
    lines = [f"{number} " + "ü" * random.Random(number).randrange(300) for number in range(1000)]
    for written, shown in (("", "nothing was printed yet"), ("one\ntwo <b>\n", "one\ntwo <b>"),
                           ("\n".join(lines) + "\n", "\n".join(lines[-40:])[-8_000:])):
        file.write_text(written, encoding="utf-8")
        controls.follow(replace(snapshot(run), ranks=()))
        assert f">{html.escape(shown)}</pre>" in controls.text.value


def test_the_log_of_the_chosen_rank(run, controls):
    run.log_file(0).write_text("I am rank 0 & well\n")
    run.log_file(None).write_text("I am torchrun\n")
    controls.follow(snapshot(run))
    assert controls.rank.options == ("rank 0", "rank 1", "torchrun")
    assert not controls.text.value and controls.rank.layout.display == "none"
    controls.log.value = True
    assert "I am rank 0 &amp; well" in controls.text.value and controls.rank.layout.display == ""
    controls.rank.value = "torchrun"
    assert "I am torchrun" in controls.text.value
    controls.rank.value = "rank 1"
    assert "nothing was printed yet" in controls.text.value
    controls.log.value = False
    assert not controls.text.value


# In a kernel

LIVE = ["""
import html
from tinylib.launch import attach, show
from tinylib.launch.stop import wait_until
from tinylib.launch.view import SHOWN
run = attach({0!r})
run
""", """
view = SHOWN[run.path,]
(control,) = view.controls
assert wait_until(lambda: len(run.metrics()) > 5 and not control.stop.disabled, 60)
assert view.live and control.resume.disabled
control.log.value = True
control.stop.click()
assert control.doing and control.stop.disabled and control.resume.disabled
assert wait_until(lambda: run.state == "stopped" and not view.live, 60)
assert control.stop.disabled and not control.resume.disabled
assert "stopped" in html.unescape(control.text.value)
stopped_at = len(run.metrics())
""", """
control.resume.click()
assert wait_until(lambda: len(run.metrics()) > stopped_at, 60) and view.live
show(run)
""", """
again = SHOWN[run.path,]
assert wait_until(lambda: not view.live, 30) and again.live
again.close()
assert wait_until(lambda: not again.live, 30)
run.watch()
print(run.state, list(run.metrics().index) == list(range(1, 201)))
"""]


def executed(cells, **kwargs):
    """The notebook of these cells after its execution, and when which of its outputs was shown or replaced."""
    from nbclient import NotebookClient

    class Client(NotebookClient):
        def process_message(self, message, cell, index):
            if message["msg_type"] in ("display_data", "update_display_data"):
                name = message["content"].get("transient", {}).get("display_id")
                shown.append((message["header"]["date"].timestamp(), name, message["content"]["data"]))
            return super().process_message(message, cell, index)

    shown = []
    notebook = new_notebook(cells=[new_code_cell(cell.strip()) for cell in cells])
    Client(notebook, timeout=300, extra_arguments=["--log-level=ERROR"], **kwargs).execute()
    return notebook, [entry for entry in shown if entry[1]]


def test_a_run_of_seconds_in_a_notebook(tiny, monkeypatch):
    """Shown live, stopped, resumed, shown anew, watched to its end, all in one kernel."""
    monkeypatch.delenv("TINYLIB_WIDGETS", raising=False)
    run = launch(replace(tiny, steps=200, save_every=None, eval_every=50), 2)
    try:
        notebook, shown = executed([cell.format(tiny.run_dir) if "{0!r}" in cell else cell for cell in LIVE])
    finally:
        run.stop()
    first, _, second, watched = notebook.cells
    for cell in (first, second):
        panel, picture, buttons = cell.outputs
        assert "<b>run: " in panel.data["text/html"] and "step " in panel.data["text/plain"]
        assert "application/vnd.jupyter.widget-view+json" in buttons.data
    panel, picture, buttons, said = watched.outputs
    assert panel.data["text/plain"].startswith("run: finished  step 200 of 200")
    assert "●</span> rank 0  ended" in panel.data["text/html"]
    assert Image.open(io.BytesIO(base64.b64decode(picture.data["image/png"]))).size == (770, 275)
    assert said.text == "finished True\n"
    for cell in (first, second, watched):
        assert len(json.dumps(cell.outputs)) < 50_000
    assert len(json.dumps(notebook.metadata)) < 3 * 25_000, "the buttons' state of three views"
    assert len(shown) > 10 and not run.alive()
    for name in {name for _, name, _ in shown}:
        times = sorted(time_s for time_s, other, _ in shown if other == name)
        gaps_s = [later - earlier for earlier, later in itertools.pairwise(times[1:-1])]
        assert min(gaps_s, default=1.0) > 0.4, "at most two updates a second, but for the first and the last"


def test_several_runs_side_by_side_without_widgets(run, monkeypatch):
    """What the course keeps: panel and picture, no widget."""
    monkeypatch.setenv("TINYLIB_WIDGETS", "off")
    notebook, _ = executed([
        f"import threading\nfrom tinylib.launch import Run, show\nrun = Run({str(run.path)!r})\n"
        "show(run, run)\nassert 'tinylib view' not in [thread.name for thread in threading.enumerate()]", "run"])
    panel, picture = notebook.cells[0].outputs
    assert panel.data["text/html"].count("<b>byhand: lost") == 2 == panel.data["text/plain"].count("byhand: lost")
    assert "image/png" in picture.data and "widgets" not in notebook.metadata
    panel, picture = notebook.cells[1].outputs
    assert panel.data["text/plain"].count("byhand: lost") == 1 and "image/png" in picture.data
    assert len(json.dumps(notebook.cells[0].outputs)) < 50_000


def test_without_widgets_watch_keeps_up_to_the_end(tiny, monkeypatch):
    monkeypatch.setenv("TINYLIB_WIDGETS", "off")
    launch(replace(tiny, steps=150, save_every=None, eval_every=None), 2)
    notebook, _ = executed([f"from tinylib.launch import attach\nattach({tiny.run_dir!r}).watch()"])
    panel, picture = notebook.cells[0].outputs
    assert "run: finished  step 150 of 150" in panel.data["text/plain"] and "image/png" in picture.data

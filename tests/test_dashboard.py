"""Runs in view: what is shown is what the files say, at a bounded price, and the buttons do what they say."""

from __future__ import annotations

import base64
import io
import json
import math
import os
import random
import statistics
import threading
import time
from dataclasses import replace

import matplotlib
import nbformat
import numpy as np
import pandas as pd
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook
from PIL import Image

from tinylib import course, plots
from tinylib.config import ConfigError
from tinylib.files import lines_backwards
from tinylib.launch import Run, attach, launch
from tinylib.launch.progress import Curve, Picture, Progress, Slot, progress_line
from tinylib.launch.run import wait_until
from tinylib.rundir import RunDirectory, plain
from tinylib.widgets import dashboard
from tinylib.widgets.dashboard import LOG_BYTES, LOG_LINES, log_end

STEP_S = 0.25


def step(number, **more):
    return {"kind": "step", "step": number, "loss": 10 / number, "lr": 1.0, "grad_norm": 1.0, "dt_s": STEP_S,
            "data_s": 0.0, "tokens": 256 * number, "tokens_per_s": 256 / STEP_S, "mfu": None, "time_s": 0.0} | more


@pytest.fixture
def directory(tmp_path, tiny):
    """A run that took 40 of its 100 steps, written by hand, whose processes are gone."""
    directory = RunDirectory(tmp_path / "byhand")
    directory.create({"train": plain(replace(tiny, steps=100)), "world_size": 2})
    directory.append_metrics({"kind": "header", "device": "an abacus", "world_size": 2})
    for number in range(1, 41):
        directory.append_metrics(step(number))
    directory.append_metrics({"kind": "eval", "step": 40, "val_bpb": 2.5, "val_loss": 3.0})
    directory.write_status("running", step=40, steps=100, world_size=2,
                           ranks=[{"compute_s": 0.2, "memory_bytes": 3e9}, {"compute_s": 0.1, "memory_bytes": 1e9}])
    return directory


@pytest.fixture
def sent(monkeypatch):
    """What goes to the cell's outputs: time, slot, bundle."""
    sent = []
    monkeypatch.setattr(Slot, "show", lambda self, bundle: sent.append((time.monotonic(), id(self), bundle)))
    return sent


# What was read


@pytest.mark.parametrize("count", [1, 7, 500, 501, 12_345])
def test_a_thin_curve_keeps_the_mean_and_the_ends(count):
    values = np.random.default_rng(0).normal(size=count)
    curve = Curve(most=500)
    for number, value in enumerate(values, start=1):
        curve.add(number, float(value))
    ends, means, counts = (np.array(column) for column in zip(*curve.points, strict=True))
    assert len(ends) <= 500 and ends[-1] == count and list(ends) == list(np.cumsum(counts))
    for start, end, mean in zip([0, *ends], ends, means, strict=False):
        assert mean == pytest.approx(values[start:end].mean(), abs=1e-12)
    assert count <= 500 or len(ends) > 250


def test_a_value_that_is_no_number_leaves_no_trace():
    curve = Curve()
    for value in (1.0, math.nan, math.inf, 3.0):
        curve.add(1, value)
    assert list(curve.series()) == [1.0, 3.0]


def test_reading_on_equals_reading_all(directory):
    progress, again = Progress(directory), Progress(directory)
    for number in range(41, 60):
        directory.append_metrics(step(number))
        again.read()
    progress.read()
    assert list(progress.curves()[0]) == list(again.curves()[0]) == list(directory.metrics()["loss"])
    assert progress.recent == again.recent and progress.evaluation == directory.last("eval")
    assert progress.facts("running") == again.facts("running")


def test_a_line_that_is_being_written_waits(directory):
    progress, line = Progress(directory), json.dumps(step(41, loss=7.0)) + "\n"
    for part, last in ((line[:30], 40), (line[30:-1], 40), (line[-1:], 41)):
        with directory.metrics_file.open("a") as file:
            file.write(part)
        progress.read()
        assert progress.recent[-1]["step"] == last
    assert progress.recent[-1]["loss"] == 7.0


@pytest.mark.parametrize("text", ["", "no end", "\n", "one\n", "one\ntwo\n\nfour ü\nbegun", "long " * 9 + "\nx\n"])
def test_lines_from_the_last_to_the_first(tmp_path, text):
    (tmp_path / "file").write_text(text, encoding="utf-8")
    for block_bytes in (1, 2, 3, 7, 64, 65_536):
        found = [line.decode() for line in lines_backwards(tmp_path / "file", block_bytes)]
        assert found == text.split("\n")[-2::-1]


def test_the_newest_record_of_a_long_run_is_at_hand(directory):
    directory.metrics_file.write_text((json.dumps(step(7)) + "\n") * 200_000 + json.dumps(step(8)) + "\n")
    began = time.perf_counter()
    assert directory.last("step")["step"] == 8 and time.perf_counter() - began < 0.1
    assert directory.last("eval") is None


def test_a_resumed_run_goes_on_from_its_checkpoint(directory):
    progress = Progress(directory)
    progress.read()
    directory.truncate_metrics(20)
    directory.append_metrics(step(21, loss=0.125))
    progress.read()
    assert list(progress.curves()[0].index) == list(range(1, 22)) and progress.recent[-1]["loss"] == 0.125
    assert progress.evaluation is None, "the evaluation came after the checkpoint"
    directory.truncate_metrics(10)
    for number in range(11, 61):
        directory.append_metrics(step(number, loss=0.5))
    progress.read()
    assert list(progress.curves()[0].tail(50)) == [0.5] * 50, "also where the file is longer than before by now"
    directory.metrics_file.unlink()
    progress.read()
    assert not len(progress.curves()[0])


def test_what_was_read_is_not_read_again(directory):
    """At 100,000 steps a look costs what is new, and the picture some hundred points."""
    line = json.dumps(step(50_000)) + "\n"
    with directory.metrics_file.open("a") as file:
        file.write(line * 100_000)
    progress = Progress(directory)
    progress.read()
    with directory.metrics_file.open("r+") as file:
        file.write("not JSON any more")
    spent_s = []
    for number in range(100_001, 100_006):
        directory.append_metrics(step(number))
        began_s = time.perf_counter()
        progress.read()
        progress_line("run", progress.facts("running"))
        spent_s.append(time.perf_counter() - began_s)
    assert progress.recent[-1]["step"] == 100_005 and len(progress.curves()[0]) <= 500
    assert statistics.median(spent_s) < 0.02


def test_the_line_says_what_the_files_say(directory):
    progress = Progress(directory)
    progress.read()
    line = progress_line("byhand", progress.facts("running", directory.status()["ranks"]))
    assert line == ("byhand: running  step 40 of 100 ████████░░░░░░░░░░░░  loss 0.250  2.500 bits per byte  "
                    "1,024 tokens/s  MFU n/a  3.00 GB  0:15 left")
    directory.append_metrics(step(41, mfu=0.4567))
    progress.read()
    assert "MFU 45.7%" in progress.facts("stopped")["MFU"] and "time left" not in progress.facts("stopped")


def test_a_run_without_a_step_has_little_to_say(tmp_path, tiny):
    directory = RunDirectory(tmp_path / "new")
    directory.create({"train": plain(tiny), "world_size": 1})
    progress = Progress(directory)
    progress.read()
    assert progress_line("new", progress.facts("starting")) == "new: starting"
    assert Picture(["new"]).bundle([progress], now=True) is None


# What is drawn


def curves(count, seed=0):
    steps = range(1, count + 1)
    loss = pd.Series(np.random.default_rng(seed).normal(5, 1, count), steps, dtype=float)
    return loss, loss[9::10] / 2


def test_the_figure_draws_what_it_is_given_and_follows():
    live = plots.LiveCurves(["one", "a $\\two", "_three"])
    for count in (0, 1, 300, 40):
        runs = [curves(count), curves(count // 2, 1), curves(0)]
        image = Image.open(io.BytesIO(live.png(runs)))
        assert image.size == (770, 275)
        left, right = live.axes
        for place, (loss, score) in enumerate(runs):
            faint, smooth = left.lines[2 * place:2 * place + 2]
            assert list(smooth.get_xdata()) == list(loss.index) and not len(faint.get_xdata())
            mean = loss.tail(max(1, len(loss) // 20)).mean()
            np.testing.assert_allclose(smooth.get_ydata()[-1:], [mean] * (len(loss) > 0))
            assert smooth.get_marker() == ("o" if len(loss) == 1 else ""), "one point is seen too"
            np.testing.assert_array_equal(right.lines[place].get_xydata(), np.column_stack([score.index, score]))
        assert right.get_visible() == (count >= 10)
        for axes in live.axes if count > 10 else ():
            low, high = axes.get_ylim()
            ys = np.concatenate([line.get_ydata() for line in axes.lines])
            assert low < ys.min() and ys.max() < high and axes.get_xlim()[1] >= count
    single = plots.LiveCurves(["one"])
    single.png([curves(30)])
    np.testing.assert_array_equal(single.axes[0].lines[0].get_ydata(), curves(30)[0])
    assert [text.get_text() for text in left.get_legend().get_texts()] == ["one", "a $\\two", "_three"]


def test_drawing_touches_nothing_global():
    """A thread draws while the notebook may change, or read, matplotlib's settings."""
    live = plots.LiveCurves(["one"])
    first = live.png([curves(50)])
    with matplotlib.rc_context({"font.size": 30, "axes.grid": False, "ytick.labelsize": 30, "lines.linewidth": 9}):
        before = list(dict.items(matplotlib.rcParams))
        live.png([curves(5000)])
        again = live.png([curves(50)])
        assert list(dict.items(matplotlib.rcParams)) == before
    assert first == again


def test_a_picture_takes_a_tenth_of_the_time_at_most(directory, monkeypatch):
    progress = Progress(directory)
    progress.read()
    picture = Picture(["byhand"])
    assert set(picture.bundle([progress])) == {"image/png", "text/plain"}
    assert picture.bundle([progress], now=True) is None, "nothing new"
    directory.append_metrics(step(41))
    progress.read()
    assert picture.bundle([progress]) is None, "not yet"
    due_s = picture._due_s
    monkeypatch.setattr(time, "monotonic", lambda: due_s + 0.01)
    assert picture.bundle([progress])


def test_a_full_picture_is_small():
    live = plots.LiveCurves([f"run {number}" for number in range(4)])
    assert len(base64.b64encode(live.png([curves(500, seed) for seed in range(4)]))) < 40_000
    assert len(base64.b64encode(plots.LiveCurves(["one"]).png([curves(500)]))) < 40_000


# The dashboard


def test_the_panel_shows_every_rank(directory):
    directory.write_pid("rank1")
    view = dashboard(Run(directory.path))
    faces = view._repr_mimebundle_()
    lines = faces["text/plain"].splitlines()
    assert lines[0].startswith("byhand: running  step 40 of 100") and "loss 0.250" in lines[0]
    assert lines[1].split() == ["rank", "0", "starting", "an", "abacus", "3.00", "GB", "busy", "0.200", "s",
                                "██████████"]
    assert f"alive     an abacus  pid {os.getpid()}  1.00 GB  busy 0.100 s  █████" in lines[2]
    assert repr(view) == faces["text/plain"]
    assert faces["text/html"].count("●") == 2 and "<b>byhand</b>: running" in faces["text/html"]
    directory.write_pid("rank1", replace(directory.processes()["rank1"], started_s=1.0))
    assert "rank 1  gone" in repr(view) and "byhand: lost" in repr(view)


def test_a_failure_says_why(directory):
    directory.write_error(1, "Traceback:\n" + "  somewhere\n" * 50 + "ValueError: 3 < 2")
    faces = dashboard(Run(directory.path))._repr_mimebundle_()
    assert "byhand: failed" in faces["text/plain"] and "rank 1 of run byhand" in faces["text/plain"]
    assert "ValueError: 3 < 2" in faces["text/plain"] and "ValueError: 3 &lt; 2" in faces["text/html"]
    assert 5 < faces["text/plain"].count("somewhere") < 15


def test_names_are_no_html(directory):
    odd = directory.path.rename(directory.path.with_name("<b>&"))
    text = dashboard(Run(odd))._repr_mimebundle_()["text/html"]
    assert "<b>&lt;b&gt;&amp;</b>: lost" in text


def test_a_run_that_was_removed_is_said_to_be(directory):
    view = dashboard(Run(directory.path))
    Run(directory.path).remove()
    assert repr(view) == f"byhand: there is no run at {directory.path}"


@pytest.mark.parametrize("wrong", ["runs/untied", None])
def test_what_is_no_run_is_refused(wrong, directory):
    with pytest.raises(ConfigError, match=f"run={wrong!r} is not a Run: use launch"):
        dashboard(Run(directory.path), wrong)
    with pytest.raises(ConfigError, match="every_s=0"):
        dashboard(Run(directory.path), every_s=0)


@pytest.mark.parametrize(("state", "alive", "stop", "resume"), [
    ("running", True, True, False), ("finished", True, False, False), ("finished", False, False, False),
    ("stopped", False, False, True), ("failed", False, False, True), ("failed", True, True, False),
    ("lost", False, False, True), ("starting", True, True, False)])
def test_buttons_are_there_when_they_make_sense(directory, sent, state, alive, stop, resume):
    directory.write_status("running" if state == "lost" else state, step=40, steps=100)
    if alive:
        directory.write_pid("rank0")
    view = dashboard(Run(directory.path))
    (control,) = view.controls
    assert control.stop.disabled and control.resume.disabled, "nobody looked yet"
    view._show(view._look(), last=False)
    assert (not control.stop.disabled, not control.resume.disabled) == (stop, resume)


def test_the_end_of_a_run_is_drawn_at_once(directory, sent):
    """Else the last evaluation is missing from a notebook that is saved when it says "finished"."""
    directory.write_pid("rank0")
    view = dashboard(Run(directory.path))
    for state, pictures in (("running", 1), ("running", 1), ("finished", 2)):
        directory.append_metrics(step(41 + len(sent)))
        directory.write_status(state, step=41 + len(sent), steps=100)
        view._show(view._look(), last=False)
        assert sum("image/png" in bundle for _, _, bundle in sent) == pictures


def test_what_a_button_could_not_do_is_said(directory, sent):
    view = dashboard(Run(directory.path), every_s=0.5)
    (control,) = view.controls
    view._show(view._look(), last=False)
    config = json.loads(directory.config.read_text())
    directory.config.write_text(json.dumps(config | {"train": config["train"] | {"data": "nowhere"}}))
    control.resume.click()
    assert wait_until(lambda: not control.doing, 20)
    assert "no token shards in" in control.note.value and "nowhere" in control.note.value
    assert wait_until(lambda: not view.live, 10)
    assert not control.resume.disabled


def test_the_thread_ends_when_the_view_is_closed(directory, sent):
    directory.write_pid("rank0")    # this process: the run never ends
    for close in (lambda view: view.close(), lambda view: view.box.close()):
        view = dashboard(Run(directory.path), every_s=0.5)
        view.start()
        view.start()
        assert [thread.name for thread in threading.enumerate()].count("dashboard") == 1
        before = len(sent)
        assert wait_until(lambda: len(sent) > before, 10) and view.live    # noqa: B023 - called at once
        close(view)
        assert wait_until(lambda: not view.live, 5)    # noqa: B023
        assert wait_until(lambda: "dashboard" not in [thread.name for thread in threading.enumerate()], 5)


def test_the_end_of_a_log(tmp_path):
    file = tmp_path / "rank0.log"
    assert log_end(file) == "nothing was printed yet"
    file.write_text("")
    assert log_end(file) == "nothing was printed yet"
    file.write_text("one\ntwo <b>\n")
    assert log_end(file) == "one\ntwo <b>"
    lines = [f"{number} " + "ü" * random.Random(number).randrange(300) for number in range(1000)]
    file.write_text("\n".join(lines), encoding="utf-8")
    found = log_end(file).splitlines()
    assert found == lines[-len(found):] and 10 < len(found) <= LOG_LINES and len("\n".join(found)) <= LOG_BYTES


def test_the_log_of_the_chosen_rank(directory, sent):
    directory.log_file(0).write_text("I am rank 0 & well")
    directory.agent_log.write_text("I am torchrun")
    view = dashboard(Run(directory.path))
    (control,) = view.controls
    view._show(view._look(), last=False)
    assert control.rank.options == ("rank 0", "rank 1", "torchrun")
    assert not control.text.value and control.rank.layout.display == "none"
    control.log.value = True
    assert "I am rank 0 &amp; well" in control.text.value and control.rank.layout.display == ""
    control.rank.value = "torchrun"
    assert "I am torchrun" in control.text.value
    control.rank.value = "rank 1"
    assert "nothing was printed yet" in control.text.value
    control.log.value = False
    assert not control.text.value


# In a kernel


LIVE = ["""
import html
import time
from tinylib.launch import attach
from tinylib.launch.run import wait_until
from tinylib.widgets import dashboard
run = attach({0!r})
view = dashboard(run)
(control,) = view.controls
view
""", """
assert wait_until(lambda: len(run.metrics()) > 5 and not control.stop.disabled, 60)
assert view.live and control.resume.disabled
control.log.value = True
began_s = time.monotonic()
control.stop.click()
took_s = time.monotonic() - began_s
assert took_s < 0.2 and control.stop.disabled and control.resume.disabled, took_s
assert wait_until(lambda: run.state == "stopped" and not view.live, 20)
assert control.stop.disabled and not control.resume.disabled
assert '"state": "stopped"' in html.unescape(control.text.value)
stopped_at = len(run.metrics())
""", """
control.resume.click()
assert wait_until(lambda: len(run.metrics()) > stopped_at, 60) and view.live
again = dashboard(run)
again
""", """
assert wait_until(lambda: not view.live, 5) and again.live
run.watch()
assert wait_until(lambda: not again.live, 10)
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
    Client(notebook, timeout=120, extra_arguments=["--log-level=ERROR"], **kwargs).execute()
    return notebook, [entry for entry in shown if entry[1]]


def most_in_a_second(shown, kind):
    times = sorted(time_s for time_s, _, bundle in shown if kind in bundle)
    return max(sum(time_s <= other < time_s + 0.99 for other in times) for time_s in times)


def test_a_run_of_seconds_in_a_notebook(tiny, monkeypatch):
    """Seen live, stopped, resumed, seen anew, watched to its end, all in one kernel."""
    monkeypatch.delenv("TINYLIB_WIDGETS", raising=False)
    run = launch(replace(tiny, steps=200, save_every=None, eval_every=50), 2)
    try:
        notebook, shown = executed([cell.format(tiny.run_dir) if "{0!r}" in cell else cell for cell in LIVE])
    finally:
        run.stop()
    work = [rank["compute_s"] for rank in run.status()["ranks"]]
    memory = [rank["memory_bytes"] for rank in run.status()["ranks"]]
    assert len(work) == 2 and 0 < min(work) <= max(work) <= run.metrics()["dt_s"].iloc[-1] + 1e-4
    assert 0.9 * run.wait()["peak_memory_bytes"] < memory[0] <= run.wait()["peak_memory_bytes"]
    first, _, second, watched = notebook.cells
    panel, picture, buttons = second.outputs
    assert "<b>run</b>: finished" in panel.data["text/html"] and "step 200 of 200" in panel.data["text/plain"]
    assert "●</span> rank 0  ended" in panel.data["text/html"]
    assert Image.open(io.BytesIO(base64.b64decode(picture.data["image/png"]))).size == (770, 275)
    assert "application/vnd.jupyter.widget-view+json" in buttons.data
    line, curve, said = watched.outputs
    assert line.data["text/plain"].startswith("run: finished  step 200 of 200")
    assert curve.data["image/png"] == picture.data["image/png"], "both have drawn the whole run"
    assert said.text == "finished True\n"
    for cell in (first, second, watched):
        assert len(json.dumps(cell.outputs)) < 50_000
    assert len(json.dumps(notebook.metadata)) < 50_000, "the buttons' state, where a front end stores it"
    for name in {name for _, name, _ in shown}:
        own = [entry for entry in shown if entry[1] == name]
        assert most_in_a_second(own, "text/plain") <= 2, f"{len(own)} updates of {own[-1][2].keys()}"
    assert len(shown) > 10 and not run.directory.alive()


def test_several_runs_side_by_side_without_widgets(directory, tmp_path):
    """What the course keeps: panel and picture, no widget."""
    cells = [new_markdown_cell("# Runs"), new_code_cell(
        f"from tinylib.launch import Run\nfrom tinylib.widgets import dashboard\nrun = Run({str(directory.path)!r})\n"
        "view = dashboard(run, run)\nassert not view.controls and not view.live\nview"), new_code_cell("view")]
    nbformat.write(new_notebook(cells=cells), tmp_path / "one.ipynb")
    notebook = course.execute(tmp_path / "one.ipynb", tmp_path / "kept", os.environ)
    panel, picture = notebook.cells[1].outputs
    assert panel.data["text/html"].count("<b>byhand</b>: lost") == 2 == panel.data["text/plain"].count("byhand: lost")
    assert "image/png" in picture.data and "widgets" not in notebook.metadata
    assert len(json.dumps(notebook.cells[1].outputs)) < 50_000
    assert notebook.cells[2].outputs == notebook.cells[1].outputs, "the same view can be shown twice"


def test_without_widgets_a_view_keeps_up_to_the_end(tiny, tmp_path):
    cells = [new_markdown_cell("# Live"), new_code_cell(
        f"from tinylib.launch import attach\nfrom tinylib.widgets import dashboard\nrun = attach({tiny.run_dir!r})\n"
        "view = dashboard(run)\nassert not view.controls\nview"), new_code_cell(
        "import time\nrun.wait()\nassert view.live\nwhile view.live:\n    time.sleep(0.1)")]
    nbformat.write(new_notebook(cells=cells), tmp_path / "one.ipynb")
    launch(replace(tiny, steps=150, save_every=None, eval_every=None), 2)
    panel, picture = course.execute(tmp_path / "one.ipynb", tmp_path / "kept", os.environ).cells[1].outputs
    assert "run: finished  step 150 of 150" in panel.data["text/plain"] and "image/png" in picture.data


def test_a_terminal_prints_lines(directory, capsys):
    directory.write_status("finished", step=40, steps=100)
    attach(directory.path).watch()
    assert capsys.readouterr().out.startswith("byhand: finished  step 40 of 100 ████████░░░░░░░░░░░░  loss 0.250")

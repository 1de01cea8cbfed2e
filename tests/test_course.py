"""The course: notebooks are executed in order and kept, a failure names the place, the report is one file."""

from __future__ import annotations

import os
import re
from dataclasses import replace
from pathlib import Path

import nbformat
import pandas as pd
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from tinylib import profiles
from tinylib.config import GPTConfig, TrainConfig
from tinylib.course import CourseFailed, runner
from tinylib.shards import build
from tinylib.tokenizer import Tokenizer
from tinylib.train import train


def write(path, *sources, title="How big?"):
    nbformat.write(new_notebook(cells=[new_markdown_cell(f"# {title}"), *map(new_code_cell, sources)]), path)
    return path


def test_a_notebook_is_executed_in_its_folder_and_kept(tmp_path, capsys):
    notebook = write(tmp_path / "one.ipynb", "import os\nhere = os.getcwd()", "print(os.environ['MARK'], here)")
    executed = runner.execute(notebook, tmp_path / "kept", {**os.environ, "MARK": "seen"})
    assert executed.cells[2].outputs[0].text == f"seen {tmp_path}\n"
    assert nbformat.read(tmp_path / "kept" / "one.ipynb", 4).cells[2].outputs[0].text == f"seen {tmp_path}\n"
    assert not nbformat.read(notebook, 4).cells[2].outputs, "the notebook itself is left alone"
    assert re.search(r"one +: 100%.* 2/2 ", capsys.readouterr().err)


def test_a_failure_names_notebook_cell_and_traceback(tmp_path):
    notebook = write(tmp_path / "two.ipynb", "1", "count = 6\nassert count == 7, 'not seven'", "print('never')")
    with pytest.raises(CourseFailed, match=r"(?s)two.ipynb, cell 2 of 3:.*AssertionError: not seven"):
        runner.execute(notebook, tmp_path / "kept", os.environ)
    kept = nbformat.read(tmp_path / "kept" / "two.ipynb", 4)
    assert [len(cell.outputs) for cell in kept.cells[1:]] == [1, 1, 0]


def test_a_missing_notebook_or_kernel_is_named(tmp_path):
    with pytest.raises(CourseFailed, match=r"gone.ipynb is missing"):
        runner.execute(tmp_path / "gone.ipynb", tmp_path, os.environ)
    notebook = nbformat.read(write(tmp_path / "three.ipynb", "1"), 4)
    notebook.metadata["kernelspec"] = {"name": "no-such", "display_name": "x"}
    nbformat.write(notebook, tmp_path / "three.ipynb")
    with pytest.raises(CourseFailed, match="no-such"):
        runner.execute(tmp_path / "three.ipynb", tmp_path, os.environ)


def test_the_report_is_one_file_that_needs_no_network(tmp_path):
    figure = "from IPython.display import Image, display\nx = 1"
    notebooks = {f"0{n}_part": nbformat.read(write(tmp_path / f"{n}.ipynb", figure, title=f"Part <{n}>"), 4)
                 for n in (1, 2)}
    for notebook in notebooks.values():
        notebook.cells.append(nbformat.v4.new_markdown_cell("## Summary"))
        notebook.cells.append(nbformat.v4.new_code_cell("plumbing = 1", metadata={"tags": ["hide-input"]}))
    report = runner.write_report(notebooks, pd.DataFrame({"untied": {"parameters": "2,359,296"}}),
                                 {"Return ": "the <b>"}, tmp_path / "report.html")
    text = report.read_text(encoding="utf-8")
    assert not re.search(r"(?:src|href)=[\"']?(?:https?:)?//|@import|url\(", text)
    assert "2,359,296" in text and "the &lt;b&gt;" in text
    for name in notebooks:
        for part in (name, f"{name}-Summary"):
            assert text.count(f'href="#{part}"') >= 1 and text.count(f'id="{part}"') == 1
    assert "plumbing" not in text and "x = 1" in re.sub("<.*?>", "", text)
    assert text.index("Part &lt;1&gt;") < text.index("Part &lt;2&gt;")


@pytest.fixture
def trained(tmp_path, monkeypatch):
    """A profile with the runs of the course, small enough for a test."""
    monkeypatch.setenv("TINYLIB_HOME", str(tmp_path))
    profile = profiles.profile("smoke")
    texts = [f"Number {n} has the square {n * n}, and after it comes {n + 1}." for n in range(200)]
    build({"train": texts[:180], "val": texts[180:]}, Tokenizer.train(texts, 300), profile.shards)
    model = GPTConfig(depth=1, dim=64, vocab_size=300, seq_len=32)
    for name in runner.RUNS:
        train(TrainConfig(model=replace(model, tied=name == "tied"), data=str(profile.shards), steps=2,
                          run_dir=str(profile.runs / name), total_batch_size=64, device_batch_size=2, compile="off",
                          device="cpu"))
    return profile


def test_the_closing_table_is_read_from_the_runs(trained):
    table = runner.closing_table(trained)
    assert list(table.columns) == ["untied", "tied", "chat"]
    assert list(table.loc["parameters"]) == [f"{12 * 64**2 + tables * 300 * 64:,}" for tables in (2, 1, 2)]
    assert all(float(value) > 0 for value in table.loc["validation bits per byte"])
    samples = runner.write_samples(trained, max_tokens=5)
    assert list(samples) == list(runner.PROMPTS) and all(samples.values())
    runner.remove_earlier(trained, trained.runs.parent / "course")
    assert not any((trained.runs / name).exists() for name in runner.RUNS)
    with pytest.raises(CourseFailed, match="has not finished"):
        runner.closing_table(trained)


def test_the_notebooks_of_the_course_are_there():
    folder = Path(runner.__file__).parents[2] / "notebooks"
    assert [name for name in runner.NOTEBOOKS if not (folder / f"{name}.ipynb").is_file()] == []


@pytest.mark.slow
@pytest.mark.timeout(1_200)
def test_a_reader_s_own_design_goes_through_the_whole_course(tmp_path, monkeypatch):
    """Nothing about it is like the presets: depth, width, heads, split, softcap."""
    monkeypatch.setenv("TINYLIB_HOME", str(tmp_path))
    design = GPTConfig(depth=5, dim=96, vocab_size=2000, head_dim=48, seq_len=128, softcap=None)
    profiles.save_design(design, "smoke")
    table = runner.run("smoke")["table"]
    assert table["untied"]["parameters"] == f"{12 * 5 * 96**2 + 2 * 2000 * 96:,}"
    assert table["tied"]["parameters"] == f"{12 * 5 * 96**2 + 2000 * 96:,}"

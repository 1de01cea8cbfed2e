"""`make test` goes red when a launched run fails, when an assert in a notebook fails, and when a marked output differs.

nbval by itself lets much through.  So `make test` runs on notebooks of one cell, sound ones and broken ones.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import nbformat
from nbformat.v4 import new_code_cell, new_notebook, new_output

ROOT = Path(__file__).resolve().parent.parent

LAUNCH = """
from tinylib.config import GPTConfig, TrainConfig
from tinylib.launch import launch
from tinylib.shards import build
from tinylib.tokenizer import Tokenizer

texts = [f"Number {n} and after it {n + 1}." for n in range(300)]
build({"train": texts[:250], "val": texts[250:]}, Tokenizer.train(texts, 280), "shards")
config = TrainConfig(model=GPTConfig(depth=1, dim=64, vocab_size=280, seq_len=32), data="shards", run_dir="run",
                     steps=3, total_batch_size=64, device_batch_size=1, compile="off", device="cpu", grad_clip=None,
                     embedding_lr=1e38, matrix_lr=1e38)
launch(config, nproc_per_node=2).watch()
"""
ASSERT = "values = [1, 2, 3]\nassert sum(values) == {total}"
MARKED = "# NBVAL_CHECK_OUTPUT\nprint(6 * 7)"


def cell(source: str, printed: str | None = None) -> nbformat.NotebookNode:
    outputs = [] if printed is None else [new_output("stream", name="stdout", text=printed)]
    return new_code_cell(source.strip(), execution_count=1, outputs=outputs)


SOUND = {"asserted": cell(ASSERT.format(total=6)), "marked": cell(MARKED, "42\n"),
         "unmarked": cell("print(6 * 7)", "41\n")}
BROKEN = {"asserted": cell(ASSERT.format(total=7)), "marked": cell(MARKED, "41\n"), "launched": cell(LAUNCH)}


def make_test(folder: Path, cells: dict[str, nbformat.NotebookNode]) -> subprocess.CompletedProcess[str]:
    """Run `make test` with this Python, on notebooks of one cell each in place of the project's folders."""
    for name, only in cells.items():
        nbformat.write(new_notebook(cells=[only]), folder / f"{name}.ipynb")
    ready = folder / "ready"
    ready.touch()    # newer than pyproject.toml, so that make installs nothing
    command = ["make", "test", "--assume-old=lint", f"BIN={Path(sys.executable).parent}", f"READY={ready}",
               f"CHECKED={folder}"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "PYTEST"))}
    environment["PYTEST_ADDOPTS"] = f"-p no:cacheprovider -c {ROOT / 'pyproject.toml'} --rootdir {folder}"
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=240)


def test_make_test_runs_tests_doctests_and_notebooks() -> None:
    plan = subprocess.run(["make", "--dry-run", "test"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    (command,) = (line.split() for line in plan.splitlines() if "pytest" in line)
    assert {"tests", "tinylib", "notebooks"} <= set(command)


def test_sound_notebooks_are_green_and_broken_ones_red(tmp_path: Path) -> None:
    verdict = make_test(tmp_path, SOUND | {f"broken_{name}": cell for name, cell in BROKEN.items()})
    assert verdict.returncode != 0, verdict.stdout + verdict.stderr
    assert "3 failed, 3 passed" in verdict.stdout
    assert all(f"broken_{name}.ipynb::Cell 0" in verdict.stdout for name in BROKEN)
    for reason in ("FloatingPointError", "AssertionError", "mismatch 'stdout'"):
        assert reason in verdict.stdout

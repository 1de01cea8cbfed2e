"""CI goes red when a launched run fails, when an assert in a notebook fails, and when a marked output differs.

nbval by itself lets much through, so each kind of breakage is tried on a notebook made for it, beside its sound twin.
"""

from __future__ import annotations

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
texts = [f"Number {{n}} and after it {{n + 1}}." for n in range(300)]
build({{"train": texts[:250], "val": texts[250:]}}, Tokenizer.train(texts, 280), "shards")
config = TrainConfig(model=GPTConfig(depth=1, dim=64, vocab_size=280, seq_len=32), data="shards", run="run", steps=3,
                     total_batch_size=64, device_batch_size=1, compile="off", device="cpu", grad_clip=None,
                     embedding_lr={lr}, matrix_lr={lr})
launch(config, nproc_per_node=2).watch()
"""
ASSERT = "values = [1, 2, 3]\nassert sum(values) == {total}"
MARKED = "# NBVAL_CHECK_OUTPUT\nprint(6 * 7)"


def cell(source: str, printed: str | None = None) -> nbformat.NotebookNode:
    outputs = [] if printed is None else [new_output("stream", name="stdout", text=printed)]
    return new_code_cell(source, execution_count=1, outputs=outputs)


SOUND = {"launched": cell(LAUNCH.format(lr="0.02")), "asserted": cell(ASSERT.format(total=6)),
         "marked": cell(MARKED, "42\n"), "unmarked": cell("print(6 * 7)", "41\n")}
BROKEN = {"launched": cell(LAUNCH.format(lr="1e38")), "asserted": cell(ASSERT.format(total=7)),
          "marked": cell(MARKED, "41\n")}


def judge(folder: Path, cells: dict[str, nbformat.NotebookNode]) -> subprocess.CompletedProcess[str]:
    """What the pytest of `make test` says of notebooks with one cell each."""
    for name, only in cells.items():
        nbformat.write(new_notebook(cells=[only]), folder / f"{name}.ipynb")
    command = [sys.executable, "-m", "pytest", "-q", "--nbval-lax", "--nbval-current-env", "-p", "no:cacheprovider",
               "-c", str(ROOT / "pyproject.toml"), "--rootdir", str(folder), str(folder)]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120)


def test_this_is_how_make_calls_pytest():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert "pytest -q --nbval-lax --nbval-current-env" in makefile
    assert "$(PYTEST)" in makefile and "notebooks" in makefile
    assert not any(line.startswith("\t-") or "|| true" in line for line in makefile.splitlines()), "errors are ignored"
    assert "make test" in (ROOT / ".ci" / "run").read_text(encoding="utf-8")


def test_sound_notebooks_are_green(tmp_path):
    verdict = judge(tmp_path, SOUND)
    assert verdict.returncode == 0, verdict.stdout + verdict.stderr
    assert "4 passed" in verdict.stdout


def test_each_broken_twin_is_red(tmp_path):
    verdict = judge(tmp_path, BROKEN)
    assert verdict.returncode == 1, verdict.stdout + verdict.stderr
    assert "3 failed" in verdict.stdout and "passed" not in verdict.stdout
    for reason in ("FloatingPointError: loss=", "AssertionError", "mismatch 'stdout'"):
        assert reason in verdict.stdout

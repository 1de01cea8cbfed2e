"""The README is true: its commands work, its files are there, its course is the course."""

from __future__ import annotations

import ast
import json
import re
import shlex
from pathlib import Path

import pytest

from tinylib import __main__ as cli
from tinylib.config import PRESETS
from tinylib.course import NOTEBOOKS
from tinylib.flags import train_config
from tinylib.hardware import profile

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
COMMANDS = [line.split("#")[0].strip() for block in re.findall(r"```bash\n(.*?)```", README, re.DOTALL)
            for line in block.splitlines()]
QUICK = ("size", "search", "plan")


@pytest.mark.parametrize("command", [command for command in COMMANDS if command.startswith("python -m tinylib")])
def test_its_verbs_work(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    verb, *arguments = shlex.split(command)[3:]
    assert verb in cli.VERBS
    if verb in QUICK:
        assert cli.main([verb, *arguments]) == 0
        assert json.loads(capsys.readouterr().out.splitlines()[-1])
    else:
        with pytest.raises(SystemExit) as leaving:    # the flags are known: help is reached
            cli.main([verb, *arguments[:1], "--help"])
        assert leaving.value.code == 0
        shown = capsys.readouterr().out
        assert all(word in shown for word in arguments if word.startswith("--"))


@pytest.mark.parametrize("command", [command for command in COMMANDS if command.startswith("torchrun")])
def test_its_training_commands_are_whole_configurations(command: str) -> None:
    words = shlex.split(command)
    config = train_config(words[words.index("train") + 1:])
    assert config.model in PRESETS.values() and config.device_batch_size == 32


@pytest.mark.parametrize("command", [command for command in COMMANDS if command.startswith("make")])
def test_its_targets_exist(command: str) -> None:
    assert f"\n{command.split()[1]}:" in (ROOT / "Makefile").read_text(encoding="utf-8")


def test_its_python_is_python_with_our_names() -> None:
    for block in re.findall(r"```python\n(.*?)```", README, re.DOTALL):
        lines = [ast.unparse(node) for node in ast.parse(block).body if isinstance(node, ast.ImportFrom)]
        exec("\n".join(lines), {})


def test_its_links_lead_somewhere_and_its_course_is_the_course() -> None:
    links = re.findall(r"\]\(([^)#]+)\)", README)
    assert links and all((ROOT / link).exists() for link in links)
    assert [Path(link).stem for link in links if link.endswith(".ipynb")] == list(NOTEBOOKS)
    rooms = {path.stem for path in (ROOT / "tinylib").iterdir()} - {"__init__", "__main__", "__pycache__", "flags"}
    listed = set(re.findall(r"\w+", README.split("tinylib/       ")[1].split("tests/  ")[0]))
    assert rooms <= listed


def test_its_figures_are_those_of_the_course() -> None:
    model = profile("cpu").train.model
    assert sum(spec.size for spec in model.tensors()) == 2_359_296 and "2.4 million parameters" in README
    assert sum(spec.size for spec in PRESETS["goldilocks"].tensors()) == 37_748_736


def test_its_results_are_those_stored_in_the_notebooks() -> None:
    """The tables' and sentences' measured figures, each as an output of a notebook shows it."""
    outputs = " ".join(json.dumps(cell["outputs"]) for name in NOTEBOOKS for cell in
                       json.loads((ROOT / f"notebooks/{name}.ipynb").read_text(encoding="utf-8"))["cells"]
                       if cell["cell_type"] == "code")
    seen = README.split("## What you will see")[1].split("## The course")[0]
    rows = [line for line in seen.splitlines() if line.startswith("| ") and "Xeon" not in line and "---" not in line]
    figures = re.findall(r"\d[\d,]*\.?\d+", " ".join(rows)) + re.findall(r"\d\.\d{3}", seen)
    assert len(figures) > 10 and all(figure in outputs for figure in figures)

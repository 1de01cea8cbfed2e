"""The README is true: its commands work, its files are there, its course is the course.

Every command that README, notebooks, `plan`, batch files and messages print is run, small, with torchrun's own parser.
"""

from __future__ import annotations

import ast
import functools
import importlib
import inspect
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from torch.distributed.run import get_args_parser

from tinylib.cli import main
from tinylib.config import PRESETS
from tinylib.course.runner import NOTEBOOKS
from tinylib.profiles import profile
from tinylib.rundir import find_run

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
COMMANDS = [line.split("#")[0].strip() for block in re.findall(r"```bash\n(.*?)```", README, re.DOTALL)
            for line in block.splitlines()]
COMMAND = re.compile(r"(?:tinylib|python -m tinylib|torchrun) .+")
TINY = shlex.split("--depth 1 --dim 32 --head-dim 16 --vocab-size 300 --seq-len 16 --steps 2 --total-batch-size 1024 "
                   "--device-batch-size 2 --eval-every None --compile off --device cpu")


def words_of(command: str) -> list[str]:
    """What a command of the shell passes to tinylib; torchrun's own parser takes off its own flags."""
    words = shlex.split(os.path.expandvars(command), comments=True)
    if words[0] == "torchrun" or "torch.distributed.run" in words:
        first = 1 if words[0] == "torchrun" else words.index("torch.distributed.run") + 1
        found = get_args_parser().parse_args(words[first:])
        assert found.module and found.training_script == "tinylib"
        return list(found.training_script_args)
    return words[3:] if words[:3] == ["python", "-m", "tinylib"] else words[1:]


def shrunk(words: list[str], text: Path) -> list[str]:
    """The same command for a tiny model and a small text; the last of two equal flags counts."""
    small = {"fineweb-edu": str(text), "pyqa": str(text.with_name("talks.jsonl"))}
    words = [small.get(word, word.replace("step_001440", "step_000002")) for word in words]
    if words[:2] == ["tokenize", "conversations"]:
        return [*words, "--corpus", small["pyqa"], "--seq-len", "16"]
    if words[:2] == ["tokenize", "train"]:
        return [*words, "--vocab-size", "300"]
    return [*words, *TINY, "--data", "data/smoke/shards"] if words[0] == "train" else words


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a small text, to run commands in."""
    folder = tmp_path_factory.mktemp("home")
    lines = [f"Line {n} says {n * n}, and {n + 1} comes next.\n" for n in range(2000)]
    documents = ("\n".join(lines[start:start + 10]) for start in range(0, 2000, 10))
    (folder / "text.txt").write_text("\n<|endoftext|>\n".join(documents))
    talks = ([{"role": "user", "content": "Say"}, {"role": "assistant", "content": str(n)}] for n in range(200))
    (folder / "talks.jsonl").write_text("".join(json.dumps({"messages": talk}) + "\n" for talk in talks))
    return folder


@pytest.fixture
def inside(home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """`home` as the working directory and as tinylib's home."""
    monkeypatch.chdir(home)
    monkeypatch.setenv("TINYLIB_HOME", str(home))
    return home


def test_its_commands_work_in_their_order(inside: Path, capfd: pytest.CaptureFixture[str]) -> None:
    commands = [command for command in COMMANDS if COMMAND.fullmatch(command)]
    assert len(commands) > 8
    for command in commands:
        words = shrunk(words_of(command), inside / "text.txt")
        if command.startswith("torchrun"):
            agent = re.sub("--nproc-per-node=[0-9]+", "--nproc-per-node=2", command).split(" -m tinylib ")[0].split()
            done = subprocess.run([sys.executable, "-m", "torch.distributed.run", *agent[1:], "-m", "tinylib", *words],
                                  capture_output=True, text=True, timeout=240)
            assert done.returncode == 0, done.stderr
            assert done.stdout.count("finished") == 1    # rank 0 alone reports
        elif words[0] in ("chat", "serve"):    # they go on until somebody ends them; test_chat, test_serve
            assert find_run(words[1]).saved_steps() == [2] and main([*words, "--help"]) == 0
        else:
            assert main(words) == 0, (command, capfd.readouterr().err)
    assert find_run("gpu/untied").saved_steps() == [2]


def test_the_command_of_a_plan_trains(inside: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for name, nodes in (("alone", "1"), ("together", "2")):
        assert main(["plan", "--model", "nano", "--nproc-per-node", "2", "--nnodes", nodes]) == 0
        command = next(line for line in capfd.readouterr().out.splitlines() if line.startswith("torchrun"))
        words = [*shrunk(words_of(command), inside / "text.txt"), "--run-dir", name]
        assert main(words) == 0, capfd.readouterr().err


def test_the_command_of_a_batch_file_trains(inside: Path, capfd: pytest.CaptureFixture[str],
                                            monkeypatch: pytest.MonkeyPatch) -> None:
    words = shrunk(["train", "--slurm", "job", "--nnodes", "2", "--nproc-per-node", "2", "--run-dir", "batch"],
                   inside / "text.txt")
    assert main(words) == 0, capfd.readouterr().err
    for name, value in {"SLURM_JOB_NUM_NODES": "2", "SLURM_JOB_ID": "7", "first": "node1", "port": "20007"}.items():
        monkeypatch.setenv(name, value)
    text = (inside / "job").read_text().replace("\\\n", "")
    command = next(line for line in text.splitlines() if line.startswith("srun"))
    assert main(words_of(command)) == 0, capfd.readouterr().err


def test_commands_in_notebooks_and_messages_exist(capsys: pytest.CaptureFixture[str]) -> None:
    cells = [cell for name in NOTEBOOKS for cell in
             json.loads((ROOT / f"notebooks/{name}.ipynb").read_text(encoding="utf-8"))["cells"]]
    texts = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown"]
    texts += [file.read_text(encoding="utf-8") for file in (ROOT / "tinylib").rglob("*.py")]
    texts += [(ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "data/README.md", "environment.yml")]
    commands = {found.strip() for text in texts for found in
                re.findall(r"python -m tinylib((?: [a-z]+)+(?: --[a-z-]+)*)", text)}
    assert {"tokenize shards", "doctor"} <= commands
    for command in sorted(commands):
        flags = [word for word in command.split() if word.startswith("--")]
        verb = [word for word in command.split() if word not in flags]
        assert main([*verb[:2 if verb[0] in ("corpus", "tokenize", "runs") else 1], "--help"]) == 0, command
        assert all(flag in capsys.readouterr().out for flag in flags)


@pytest.mark.parametrize("command", [command for command in COMMANDS if command.startswith("make")])
def test_its_targets_exist(command: str) -> None:
    subprocess.run([*command.split(), "--dry-run"], cwd=ROOT, check=True, capture_output=True)


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
    seen = README.split("## What you will see")[1].split("\n## ")[0]
    rows = [line for line in seen.splitlines() if line.startswith("| ") and "2 cores" not in line and "---" not in line]
    figures = re.findall(r"\d[\d,]*\.?\d+", " ".join(rows)) + re.findall(r"\d\.\d{3}", seen)
    figures += re.findall(r"(\d+) seconds", seen) + re.findall(r"of (\d+), none", seen)
    assert len(figures) > 12 and all(figure in outputs for figure in figures)


def test_its_ten_functions_are_there_and_short() -> None:
    path = README.split("## Reading the library")[1].split("\n## ")[0]
    assert len(re.findall(r"^\d+\. ", path, re.MULTILINE)) == 10
    for name in re.findall(r"`(tinylib\.[\w.]+)`", path):
        module, found = name, None
        while found is None:
            module = module.rpartition(".")[0]
            try:
                found = functools.reduce(getattr, name.removeprefix(f"{module}.").split("."),
                                         importlib.import_module(module))
            except ModuleNotFoundError:
                continue
        assert len(inspect.getsource(found).splitlines()) <= 40, name

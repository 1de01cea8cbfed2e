"""The rules of the house: data flows one way, nothing happens at import, notebooks are clean, sizes are human."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "tinylib"
ORDER = ("rules", "config", "hardware", "allocator", "rundir", "events", "sizing", "plots", "corpus", "tokenizer",
         "shards", "model", "optim", "checkpoint", "generate", "evaluate", "tasks", "world", "train", "launch",
         "experiments", "chat", "export", "serve", "course", "exercises", "widgets", "flags", "verbs", "__main__")
TORCH_FREE = ("rules", "config", "hardware", "allocator", "rundir", "events", "sizing", "plots", "corpus", "tokenizer",
              "launch", "experiments", "course", "exercises", "widgets", "flags", "verbs", "__main__")
FILES = sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")
MODULES = [room for room in ORDER if (PACKAGE / f"{room}.py").is_file() or (PACKAGE / room).is_dir()]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


def room_of(path: Path) -> str:
    """The room that a file belongs to; a package is one room."""
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def imported_rooms(source: str, package: str = "tinylib") -> set[str]:
    """Every room that is imported anywhere in `source`, also inside functions."""
    rooms: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            rooms |= {name.name.split(".")[1] for name in node.names if name.name.startswith(f"{package}.")}
        elif isinstance(node, ast.ImportFrom) and node.module == package:
            rooms |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level:
            rooms.add("relative import")
        elif isinstance(node, ast.ImportFrom) and str(node.module).startswith(f"{package}."):
            rooms.add(str(node.module).split(".")[1])
    return rooms


def test_imports_inside_functions_are_seen():
    source = ("import os\ndef f():\n    from tinylib.launch import launch\n    import tinylib.train as t\n"
              "    from tinylib import sizing")
    assert imported_rooms(source) == {"launch", "train", "sizing"}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_room_imports_only_from_those_before_it(path):
    room = room_of(path)
    assert room in ORDER, f"{room} has no place in the order of the house"
    allowed = {*ORDER[:ORDER.index(room)], *([room] if path.parent != PACKAGE else []), "__version__"}
    assert imported_rooms(path.read_text(encoding="utf-8")) <= allowed


def python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, timeout=120)


def test_works_without_torch():
    rooms = [room for room in TORCH_FREE if room in MODULES]
    child = python("import sys, importlib\nsys.modules['torch'] = None\n"
                   f"[importlib.import_module('tinylib.' + room) for room in {rooms}]\n"
                   "from tinylib import sizing\nfrom tinylib.config import PRESETS\n"
                   "print(sizing.parameters(PRESETS['goldilocks']).total)")
    assert (child.stdout, child.stderr) == ("37748736\n", "")


def test_nothing_happens_at_import():
    """No file but modules is opened; no process, socket, thread or log begun; no variable read; no device probed."""
    outside = sorted({node.names[0].name if isinstance(node, ast.Import) else str(node.module)
                      for path in FILES for node in ast.parse(path.read_text(encoding="utf-8")).body
                      if isinstance(node, ast.Import | ast.ImportFrom)
                      and not str(getattr(node, "module", node.names[0].name)).startswith(("tinylib", "__future__"))})
    code = f"""
import importlib, logging, os, sys, threading
for name in {outside}: importlib.import_module(name)
import torch
seen, armed = [], True
class Watched(type(os.environ)):
    def __getitem__(self, key):
        if armed: seen.append("reads the variable " + str(key))
        return super().__getitem__(key)
os.environ.__class__ = Watched
def hook(event, args):
    if armed and (event.startswith(("socket", "subprocess", "os.system", "os.fork", "os.mkdir")) or event == "open"
                  and not str(args[0]).endswith((".py", ".pyc")) and not isinstance(args[0], int)):
        seen.append(event + " " + str(args[0]))
sys.addaudithook(hook)
torch.cuda.is_available = torch.cuda.device_count = lambda: seen.append("probes the device")
handlers, threads, level = len(logging.root.handlers), threading.active_count(), logging.root.level
for room in {MODULES}: importlib.import_module("tinylib." + room)
armed = False
assert (handlers, threads, level) == (len(logging.root.handlers), threading.active_count(), logging.root.level)
print(seen)
"""
    child = python(code)
    assert (child.stdout, child.stderr) == ("[]\n", "")


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_rooms_and_functions_stay_small(path):
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 360, "a file of over 360 lines wants to be two"
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            lines = (node.end_lineno or 0) - node.lineno + 1
            assert lines <= 40, f"{node.name} has {lines} lines"


def test_public_functions_say_what_they_do():
    for path in FILES:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        assert ast.get_docstring(tree), f"{path.name} has no docstring"
        for node in tree.body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
                assert ast.get_docstring(node), f"{node.name} in {path.name} has no docstring"


# Notebooks

ABSOLUTE = re.compile(r"(?<![\w.~/:])/(?:home|root|Users|work|tmp|opt|var|mnt)/\w")


@pytest.fixture(params=NOTEBOOKS, ids=lambda path: path.stem)
def notebook(request):
    return json.loads(request.param.read_text(encoding="utf-8")), request.param


def outputs_of(cell):
    for output in cell.get("outputs", []):
        yield output, "".join(output.get("text", "")) + "".join("".join(value) for kind, value in
                                                             output.get("data", {}).items() if kind.startswith("text/"))


def code_cells(notebook):
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


def test_notebooks_are_python_and_say_what_they_ask(notebook):
    cells = notebook[0]["cells"]
    assert notebook[0]["metadata"]["kernelspec"]["name"] == "python3"
    assert cells[0]["cell_type"] == "markdown" and "".join(cells[0]["source"]).startswith("# ")
    assert len(cells) - len(code_cells(notebook[0])) >= len(code_cells(notebook[0])), "more code than words"
    assert len({cell["id"] for cell in cells}) == len(cells)


def test_notebooks_have_no_magic_no_path_and_no_install(notebook):
    for cell in code_cells(notebook[0]):
        source = "".join(cell["source"])
        assert not re.search(r"^\s*[!%]", source, re.MULTILINE), f"a shell or magic line in {cell['id']}"
        assert not re.search(r"pip3? install|https?://|get_ipython", source), f"pip or network in {cell['id']}"
        assert not ABSOLUTE.search(source), f"an absolute path in {cell['id']}"
        assert len(source.splitlines()) <= 24, f"{cell['id']} has {len(source.splitlines())} lines"
        ast.parse(source)


def test_notebooks_keep_real_clean_outputs(notebook):
    stored, path = notebook
    assert path.stat().st_size < 500_000
    counts = [cell["execution_count"] for cell in code_cells(stored)]
    assert counts == list(range(1, len(counts) + 1)), "outputs are not those of one run from top to bottom"
    for cell in code_cells(stored):
        for output, text in outputs_of(cell):
            assert output["output_type"] != "error", f"a stored error in {cell['id']}"
            assert output.get("name") != "stderr", f"stored stderr in {cell['id']}: {text[:200]}"
            assert "application/vnd.jupyter.widget-view+json" not in output.get("data", {}), f"a widget in {cell['id']}"
            assert not ABSOLUTE.search(text), f"an absolute path in the output of {cell['id']}"
            assert len(text) < 100_000

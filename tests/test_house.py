"""Rules of the house: data flows one way, nothing happens at import, files are small, notebooks are clean."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

import tinylib
from tinylib import HOUSE

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "tinylib"
ORDER = [*HOUSE, "__main__"]
TORCH_FREE = {*ORDER[:ORDER.index("distributed")], "launch", "experiments", "course", "cli", "__main__"}
FILES = sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


def room_of(path: Path) -> str:
    """Module of the house that a file belongs to; a subpackage is one module."""
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def dotted(path: Path) -> str:
    """Name under which a file is imported."""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def tree(path: Path) -> ast.Module:
    """Parsed source of a file."""
    return ast.parse(path.read_text(encoding="utf-8"))


each_file = pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))


# The order of the house

def test_the_house_lists_the_modules_that_exist():
    assert {room_of(path) for path in FILES} == set(ORDER)


def test_the_package_points_to_the_house_and_the_readme_draws_it():
    assert "HOUSE" in str(tinylib.__doc__)
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    drawn = readme.split("\ntinylib/ ")[1].split("\ntests/ ")[0].splitlines()[1:]
    assert [tuple(line.split(maxsplit=1)) for line in drawn] == list(HOUSE.items())


def imported_rooms(module: ast.Module) -> set[str]:
    """Every module of the house that is imported, also inside functions."""
    rooms: set[str] = set()
    for node in ast.walk(module):
        if isinstance(node, ast.Import):
            rooms |= {name.name.split(".")[1] for name in node.names if name.name.startswith("tinylib.")}
        elif isinstance(node, ast.ImportFrom) and node.module == "tinylib":
            rooms |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level:
            rooms.add("relative import")
        elif isinstance(node, ast.ImportFrom) and str(node.module).startswith("tinylib."):
            rooms.add(str(node.module).split(".")[1])
    return rooms


def test_imports_inside_functions_are_seen():
    source = ("import os\ndef f():\n    from tinylib.launch import launch\n    import tinylib.train as t\n"
              "    from tinylib import sizing")
    assert imported_rooms(ast.parse(source)) == {"launch", "train", "sizing"}


@each_file
def test_a_module_imports_only_from_those_before_it(path):
    room = room_of(path)
    allowed = {*ORDER[:ORDER.index(room)], *([room] if path.parent != PACKAGE else []), "__version__", "HOUSE"}
    assert imported_rooms(tree(path)) <= allowed


# Imports

def python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, timeout=120)


def test_torch_free_modules_import_without_torch():
    checkers = PACKAGE / "course" / "exercises"    # those of a notebook are imported by the first check of an exercise
    names = [dotted(path) for path in FILES if room_of(path) in TORCH_FREE
             and (path.parent != checkers or path.name in ("__init__.py", "registry.py"))]
    child = python("import sys, importlib\nsys.modules['torch'] = None\n"
                   f"[importlib.import_module(name) for name in {names}]\n"
                   "from tinylib import sizing\nfrom tinylib.config import PRESETS\n"
                   "print(sizing.parameters(PRESETS['goldilocks']).total)")
    assert (child.stdout, child.stderr) == ("37748736\n", "")


def test_nothing_happens_at_import():
    """No file but modules is opened, no process, socket, thread or log begun, no variable read, no device probed.

    One exception: pydantic asks for its plugins when a class of requests is made, and FastAPI needs it made at once.
    """
    outside = sorted({node.names[0].name if isinstance(node, ast.Import) else str(node.module)
                      for path in FILES for node in tree(path).body
                      if isinstance(node, ast.Import | ast.ImportFrom)
                      and not str(getattr(node, "module", node.names[0].name)).startswith(("tinylib", "__future__"))})
    code = f"""
import importlib, logging, os, sys, threading
for name in {outside}: importlib.import_module(name)
import torch
seen, armed = [], True
class Watched(type(os.environ)):
    def __getitem__(self, key):
        if armed and key != "PYDANTIC_DISABLE_PLUGINS": seen.append("reads the variable " + str(key))
        return super().__getitem__(key)
os.environ.__class__ = Watched
def hook(event, args):
    if armed and (event.startswith(("socket", "subprocess", "os.system", "os.fork", "os.mkdir")) or event == "open"
                  and not str(args[0]).endswith((".py", ".pyc")) and not isinstance(args[0], int)):
        seen.append(event + " " + str(args[0]))
sys.addaudithook(hook)
torch.cuda.is_available = torch.cuda.device_count = lambda: seen.append("probes the device")
handlers, threads, level = len(logging.root.handlers), threading.active_count(), logging.root.level
for name in {list(map(dotted, FILES))}: importlib.import_module(name)
armed = False
assert (handlers, threads, level) == (len(logging.root.handlers), threading.active_count(), logging.root.level)
print(seen)
"""
    child = python(code)
    assert (child.stdout, child.stderr) == ("[]\n", "")


# Files

@each_file
def test_files_and_functions_stay_small(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 320
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = (node.end_lineno or 0) - node.lineno + 1
            assert lines <= 40, f"{node.name} has {lines} lines"


def public(module: ast.Module) -> list[tuple[str, str | None]]:
    """Name and docstring of the module, its public functions and classes, and their public methods if documented."""
    found = [("module", ast.get_docstring(module))]
    for node in module.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            found.append((node.name, ast.get_docstring(node)))
            found += [(f"{node.name}.{part.name}", ast.get_docstring(part)) for part in ast.walk(node)
                      if part is not node and isinstance(part, ast.FunctionDef) and not part.name.startswith("_")
                      and ast.get_docstring(part)]
    return found


@each_file
def test_public_docstrings_exist_and_begin_with_a_term(path):
    """A relative clause as a title ("What becomes of …") hides the standard term by which a reader would search."""
    for name, text in public(tree(path)):
        assert text, f"{name} has no docstring"
        first = text.splitlines()[0]
        assert not re.match(r"(What|Who|Whom|Whose|Which|Where|When|Why|How)\b", first), f"{name}: {first}"


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


def test_notebooks_are_python_and_begin_with_a_title(notebook):
    cells = notebook[0]["cells"]
    assert notebook[0]["metadata"]["kernelspec"]["name"] == "python3"
    assert cells[0]["cell_type"] == "markdown" and "".join(cells[0]["source"]).startswith("# ")
    shown = [cell for cell in code_cells(notebook[0]) if "hide-input" not in cell["metadata"].get("tags", [])]
    assert len(cells) - len(code_cells(notebook[0])) >= len(shown), "more code than words"
    assert len({cell["id"] for cell in cells}) == len(cells)


def test_bold_numbers_stand_in_an_output_above(notebook):
    outputs = ""
    for cell in notebook[0]["cells"]:
        for number in re.findall(r"\*\*(?!0\d\.\d\b)([+−-]?\d[\d,.]*?)(?: ?%)?\*\*", "".join(cell["source"])):
            shown = number.replace("−", "-").lstrip("+")
            assert re.search(rf"(?<![\d.,]){re.escape(shown)}(?![\d]|[.,]\d)", outputs), f"{cell['id']}: {number}"
        outputs += "".join(text for _, text in outputs_of(cell))


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

"""The run of notebook 04 and the chat of notebook 07 in JupyterLab in a real Chromium.

The kernel of the first is restarted while it trains, and the run is found again.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import nbformat
import psutil
import pytest
from nbformat.v4 import new_code_cell, new_notebook
from ranks import free_port

from tinylib import profiles
from tinylib.config import GPTConfig
from tinylib.launch import Run, runs
from tinylib.launch.stop import wait_until
from tinylib.shards import build
from tinylib.tokenizer import Tokenizer

sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright: pip install -e '.[dev]'")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = [pytest.mark.skipif(CHROMIUM is None, reason="needs a Chromium, such as apt-get install chromium"),
              pytest.mark.skipif(sys.platform != "linux", reason="looks for processes as Linux shows them")]

NOTEBOOK = Path(__file__).parent.parent / "notebooks" / "04_distributed_training.ipynb"
KEPT = ("# 04", "profiles.profile()", "run = launch(config", "run.watch()")
"""Parts of the cells that a reader needs to get to a run: the title, the set-up, the launch and its view."""
AGAIN = "from tinylib.launch import attach\n\nattach()"
CHAT = """
from tinylib import profiles
from tinylib.chat import Chat
from tinylib.config import GPTConfig
from tinylib.course.talk import Talk
from tinylib.model import GPT
from tinylib.tokenizer import Tokenizer

model = GPT(GPTConfig(depth=1, dim=32, vocab_size=320, head_dim=16, seq_len=64))
Talk(Chat(model, Tokenizer.load(profiles.profile("smoke").shards / "tokenizer")))
"""
MODEL = GPTConfig(depth=6, dim=256, vocab_size=320, head_dim=64, seq_len=128)
"""Large enough for its 40 steps to last while a kernel starts anew."""
SETTINGS = {"notebook-extension/tracker": {"windowingMode": "none"},    # every cell is in the page, also out of sight
            "apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False}}


class Lab:
    """A JupyterLab on loopback, with settings and a home of its own, that shows one notebook."""

    def __init__(self, folder: Path, environment: dict[str, str]) -> None:
        port = free_port()
        self.address = f"http://127.0.0.1:{port}"
        command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--ip=127.0.0.1", f"--port={port}",
                   "--allow-root", "--ServerApp.port_retries=0", "--IdentityProvider.token=test",
                   f"--notebook-dir={folder}"]
        with (folder / "lab.log").open("wb") as log:
            self.process = subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT)

    def ask(self, path: str, method: str = "GET") -> object:
        """The server's answer; None for nothing."""
        request = urllib.request.Request(self.address + path, method=method, headers={"Authorization": "token test"})
        with urllib.request.urlopen(request, timeout=10) as answer:
            text = answer.read()
        return json.loads(text) if text else None

    def is_up(self) -> bool:
        """Whether it answers."""
        try:
            return bool(self.ask("/api"))
        except OSError:
            return False

    def end(self) -> None:
        """End the server, and with it its kernels; by force where it waits for a busy one."""
        children = psutil.Process(self.process.pid).children(recursive=True) if self.process.poll() is None else []
        self.process.terminate()
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            for process in (self.process, *children):
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
            self.process.wait()

    def end_kernels(self) -> None:
        """As when the machine is restarted."""
        for session in self.ask("/api/sessions"):
            self.ask(f"/api/sessions/{session['id']}", "DELETE")


@pytest.fixture
def lab(tmp_path, monkeypatch) -> Iterator[Lab]:
    """Notebook 04 up to its run, then what a reader types after a restart; shards and design are of a test's size."""
    monkeypatch.setenv("TINYLIB_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("TINYLIB_WIDGETS", raising=False)
    for kind in ("CONFIG_DIR", "DATA_DIR", "RUNTIME_DIR"):
        monkeypatch.setenv(f"JUPYTER_{kind}", str(tmp_path / "jupyter" / kind.lower()))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    for name, settings in SETTINGS.items():
        file = tmp_path / "jupyter/config_dir/lab/user-settings/@jupyterlab" / f"{name}.jupyterlab-settings"
        file.parent.mkdir(parents=True)
        file.write_text(json.dumps(settings))
    texts = [f"Number {n} has the square {n * n}, and after it comes {n + 1}, but not {n / 2}." for n in range(4000)]
    profiles.save_design(MODEL, "smoke")
    build({"train": texts[:3600], "val": texts[3600:]}, Tokenizer.train(texts, MODEL.vocab_size),
          profiles.profile("smoke").shards)
    notebook = nbformat.read(NOTEBOOK, 4)
    notebook.cells = [cell for cell in notebook.cells if any(part in cell.source for part in KEPT)]
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    notebook.cells.insert(2, new_code_cell("config = profile.train"))
    notebook.cells.append(new_code_cell(AGAIN))
    nbformat.write(notebook, tmp_path / "04.ipynb")
    nbformat.write(new_notebook(cells=[new_code_cell(CHAT)], metadata=notebook.metadata), tmp_path / "07.ipynb")
    lab = Lab(tmp_path, dict(os.environ))
    try:
        assert wait_until(lab.is_up, 60), (tmp_path / "lab.log").read_text()
        yield lab
    finally:
        for run in runs(tmp_path / "home" / "runs"):
            run.stop(timeout_s=1)
        lab.end()


@pytest.fixture
def page(lab) -> Iterator[sync_api.Page]:
    """The notebook in Chromium."""
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=[
            "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"])
        page = browser.new_page(viewport={"width": 1400, "height": 1000})
        page.set_default_timeout(60_000)
        open_notebook(page, lab)
        yield page
        browser.close()


def open_notebook(page: sync_api.Page, lab: Lab, name: str = "04") -> None:
    page.goto(f"{lab.address}/lab/tree/{name}.ipynb?token=test&reset")
    page.locator(".jp-Notebook-ExecutionIndicator[data-status=idle]").wait_for(state="attached")


def run_all(page: sync_api.Page) -> None:
    page.locator(".jp-Notebook .jp-MarkdownCell").first.click()
    choose(page, "Run", "Run All Cells")


def run_last(page: sync_api.Page) -> None:
    page.locator(".jp-Notebook .jp-CodeCell").last.locator(".cm-content").click()
    page.keyboard.press("Control+Enter")


def begin(page: sync_api.Page, cell: sync_api.Locator, run: Callable[[sync_api.Page], None]) -> None:
    """Have `cell` run; JupyterLab drops what comes before it has taken in the kernel, so then it is asked again."""
    begun = cell.locator(".jp-InputPrompt").filter(has_text=re.compile(r"\[[*\d]"))
    for _ in range(12):
        run(page)
        try:
            begun.wait_for(timeout=5_000)
            return
        except sync_api.TimeoutError:
            page.keyboard.press("Escape")
    raise AssertionError("JupyterLab does not run the cell")


def choose(page: sync_api.Page, menu: str, entry: str) -> None:
    page.get_by_role("menuitem", name=menu, exact=True).click()
    page.get_by_role("menuitem", name=re.compile(rf"^{entry}")).first.click()


def shown(cell: sync_api.Locator, pattern: str, timeout_s: float = 60) -> re.Match[str]:
    """What the outputs of a cell show as soon as they show it."""
    deadline_s = time.monotonic() + timeout_s
    while not (found := re.search(pattern, text := cell.locator(".jp-Cell-outputArea").inner_text())):
        assert time.monotonic() < deadline_s, f"no {pattern!r} in: {text}"
        time.sleep(0.1)
    return found


def pressed(button: sync_api.Locator, done: Callable[[], bool]) -> bool:
    """Click the button and wait for what it does; a view that is drawn anew at that moment can lose a click."""
    button.click()
    return wait_until(done, 15)


def pythons(home: Path) -> list[str]:
    """The command lines of all Pythons whose artefacts lie in `home`: server, kernels, torchrun, ranks."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.cmdline()[:1] == [sys.executable] and process.environ().get("TINYLIB_HOME") == str(home):
                found.append(" ".join(process.cmdline()))
        except psutil.Error:
            continue
    return found


def test_a_run_outlives_its_kernel_and_obeys_its_buttons(lab, page, tmp_path):
    cells = page.locator(".jp-Notebook .jp-CodeCell")
    watching, last = cells.filter(has_text="run.watch()").first, cells.last
    begin(page, cells.filter(has_text="config = profile.train").first, run_all)    # the set-up's prompt is hidden
    first = int(shown(watching, r"running\s+step (\d+) of 40", 120)[1])
    assert wait_until(lambda: int(shown(watching, r"step (\d+) of 40")[1]) > first, 60), "the panel moves"
    assert watching.locator(".jp-Cell-outputArea img").count() == 1, "one picture"

    choose(page, "Kernel", "Restart Kernel…")
    page.locator(".jp-Dialog button").filter(has_text="Restart").click()
    run = Run(profiles.profile("smoke").runs / "untied")
    assert len(ranks := run.alive()) == 3
    assert len(pythons(tmp_path / "home")) >= 5, "the server, a kernel, torchrun and two ranks are seen"
    before = run.status()["step"]
    assert wait_until(lambda: run.status()["step"] > before, 30) and run.alive() == ranks, "it trains on"

    begin(page, last, run_last)
    shown(last, r"untied: running\s+step \d+ of 40")
    assert shown(last, r"rank 0 +alive .*pid (\d+)")[1] == str(ranks["rank0"].pid), "the same processes"
    last.get_by_role("button", name="Stop", exact=True).click()
    assert wait_until(lambda: run.state == "stopped" and not run.alive(), 15), repr(run)
    shown(last, r"untied: stopped\s+step \d+ of 40")
    stopped_at = run.status()["step"]
    assert before < stopped_at < 40 and run.saved_steps()[-1] == stopped_at
    assert not [line for line in pythons(tmp_path / "home") if "torch" in line or "tinylib" in line]

    resume = last.get_by_role("button", name="Resume", exact=True)
    sync_api.expect(resume).to_be_enabled()
    assert any(pressed(resume, lambda: run.state != "stopped") for _ in range(4)), repr(run)
    shown(last, r"untied: (running|finished)\s+step \d+ of 40")
    shown(last, r"untied: finished\s+step 40 of 40", 120)
    assert list(run.metrics().index) == list(range(1, 41)) and run.metrics("eval").index[-1] == 40
    page.screenshot(path=tmp_path / "finished.png")

    page.keyboard.press("Escape")
    page.keyboard.press("Control+s")
    assert wait_until(lambda: "untied: finished" in (tmp_path / "04.ipynb").read_text(), 30)
    saved = nbformat.read(tmp_path / "04.ipynb", 4)
    sizes = {cell.source: len(json.dumps(cell.outputs)) for cell in saved.cells if cell.cell_type == "code"}
    assert 5_000 < sizes["run.watch()"] < 50_000 and 5_000 < sizes[AGAIN] < 50_000
    assert len(json.dumps(saved.metadata)) < 50_000

    lab.end_kernels()
    open_notebook(page, lab)
    shown(cells.filter(has_text="run.watch()").first, r"running\s+step \d+ of 40")
    shown(cells.last, r"untied: finished\s+step 40 of 40")
    assert cells.last.locator(".jp-Cell-outputArea img").count() == 1
    cells.last.scroll_into_view_if_needed()
    page.screenshot(path=tmp_path / "reopened.png")
    lab.end()
    assert wait_until(lambda: not pythons(tmp_path / "home"), 10), pythons(tmp_path / "home")


def test_a_chat_in_a_notebook(lab, page):
    open_notebook(page, lab, "07")
    cell = page.locator(".jp-Notebook .jp-CodeCell").last
    begin(page, cell, run_last)
    question = cell.get_by_placeholder("ask, then Enter")
    question.fill("the <b>cat</b>")
    question.press("Enter")
    turns = cell.locator(".widget-html-content div div")
    sync_api.expect(turns).to_have_count(2)
    sync_api.expect(turns.first).to_have_text("the <b>cat</b>")
    sync_api.expect(question).to_have_value("")
    cell.get_by_role("button", name="new chat").click()
    sync_api.expect(turns).to_have_count(0)

"""Environment of every test: smoke profile, a temporary home, no network; an error for processes left behind.

It is set when this file is imported, before pytest collects anything, so the kernels of notebooks inherit it.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tinylib.config import GPTConfig, TrainConfig

ROOT = Path(__file__).resolve().parent.parent
OFFLINE = ROOT / "tests" / "offline"
HOME = Path(tempfile.mkdtemp(prefix="tinylib-test-"))

LEFT = pytest.StashKey[int]()
_spent_s: Counter[str] = Counter()

sys.path.insert(0, str(OFFLINE))
import sitecustomize as offline  # noqa: E402 - blocks the network in this process too

if not hasattr(offline, "NetworkBlocked"):  # the interpreter has loaded another sitecustomize
    del sys.modules["sitecustomize"]
    import sitecustomize as offline

os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (str(OFFLINE), os.environ.get("PYTHONPATH"))))
os.environ.update(TINYLIB_HOME=str(HOME), TINYLIB_PROFILE="smoke", HF_HUB_OFFLINE="1",
                  OMP_NUM_THREADS="1")    # the models are tiny, and threads that share a core wait for each other


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip, visibly, tests that need a GPU where there is none."""
    on_gpu = [item for item in items if item.get_closest_marker("gpu")]
    if on_gpu:
        import torch

        if not torch.cuda.is_available():
            for item in on_gpu:
                item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


class Clock:
    """Sums the seconds of each file; a plugin, because hooks of a conftest only see the files below it."""

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Called by pytest after set-up, call and tear-down of each test."""
        _spent_s[report.nodeid.split("::")[0]] += report.duration


def pytest_configure(config: pytest.Config) -> None:
    """Register the clock."""
    config.pluginmanager.register(Clock())


@pytest.hookimpl(tryfirst=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """Fail the session if processes of runs were left behind, and kill them; the workers of pytest-xdist tell it."""
    config = session.config
    if config.pluginmanager.has_plugin("dsession"):    # it runs no test itself, and the workers are its processes
        if config.stash.get(LEFT, 0):
            session.exitstatus = pytest.ExitCode.TESTS_FAILED
        return
    left = list(survivors())
    for process in left:
        process.kill()
    if left:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
    config.stash[LEFT] = len(left)
    if hasattr(config, "workeroutput"):
        config.workeroutput["left"] = len(left)
    shutil.rmtree(HOME, ignore_errors=True)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Keep the tests of a file in one process, and all notebooks, each of which reads what those before it wrote."""
    from xdist.scheduler import LoadFileScheduling

    class Files(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return "notebooks" if nodeid.startswith("notebooks/") else super()._split_scope(nodeid)

    return Files(config, log)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Count the processes that a worker of pytest-xdist found left behind."""
    node.config.stash[LEFT] = node.config.stash.get(LEFT, 0) + getattr(node, "workeroutput", {}).get("left", 0)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Print the seconds of each file, as information, and the number of processes left behind."""
    terminalreporter.section("seconds by file")
    for name, spent_s in _spent_s.most_common():
        if spent_s >= 1:
            terminalreporter.line(f"{spent_s:7.1f}  {name}")
    if config.stash.get(LEFT, 0):
        terminalreporter.line(f"ERROR: {config.stash[LEFT]} processes of launched runs were left behind; killed now")


def survivors() -> Iterator[psutil.Process]:
    """Living processes that were started by tests, known by their TINYLIB_HOME."""
    for process in psutil.process_iter():
        try:
            ours = process.pid != os.getpid() and process.environ().get("TINYLIB_HOME") == str(HOME)
            if ours and "resource_tracker" not in " ".join(process.cmdline()):
                yield process
        except psutil.Error:
            continue


@pytest.fixture(scope="session")
def tiny_shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of shards: some thousand tokens, vocabulary of 320."""
    from tinylib.shards import build
    from tinylib.tokenizer import Tokenizer

    texts = [f"Return the {name} of number {index} as a list of {index % 7} strings, else raise ValueError. " * 3
             for index in range(120) for name in ("sum", "name", "type", "größe")]
    tokenizer = Tokenizer.train(texts, 320)
    folder = tmp_path_factory.mktemp("data") / "shards"
    build({"train": texts[:-20], "val": texts[-20:]}, tokenizer, folder)
    return folder


@pytest.fixture
def tiny(tiny_shards: Path, tmp_path: Path) -> TrainConfig:
    """Configuration of a run of six steps that takes a fraction of a second."""
    model = GPTConfig(depth=2, dim=32, vocab_size=320, head_dim=16, seq_len=32)
    return TrainConfig(model=model, data=str(tiny_shards), run_dir=str(tmp_path / "run"), steps=6, total_batch_size=256,
                       device_batch_size=2, eval_every=2, save_every=2, keep=10, compile="off", device="cpu",
                       dtype="float32")

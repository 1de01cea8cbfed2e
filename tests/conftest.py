"""The conditions of every test: the smoke profile, artefacts in a folder of their own, no network; and time budgets.

They are set when this file is imported, before pytest collects anything, so the notebooks' kernels inherit them.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tinylib.config import GPTConfig, TrainConfig

ROOT = Path(__file__).resolve().parent.parent
OFFLINE = ROOT / "tests" / "offline"
HOME = Path(tempfile.mkdtemp(prefix="tinylib-test-"))

BUDGET_S = defaultdict(lambda: 10.0, {
    "tests/test_ci_red.py": 60.0, "tests/test_cli.py": 30.0, "tests/test_course.py": 30.0,
    "tests/test_house.py": 20.0, "tests/test_launch.py": 45.0, "tests/test_nodes.py": 20.0, "tests/test_train.py": 25.0,
    "tests/test_safety.py": 60.0, "tests/test_exact.py": 40.0, "tests/test_parity.py": 15.0,
    "tests/test_model.py": 20.0, "tests/test_memory.py": 40.0, "tests/test_search.py": 15.0,
    "tests/test_corpus.py": 20.0, "tests/test_exercises.py": 30.0, "tests/test_widgets.py": 12.0,
    "tests/test_dashboard.py": 30.0, "tests/test_browser.py": 60.0,
    "tests/test_hub.py": 20.0, "tests/test_tokenizer_ids.py": 15.0,
    "notebooks/01_architecture_math.ipynb": 20.0, "notebooks/02_tokenizer.ipynb": 40.0,
    "notebooks/03_model.ipynb": 40.0, "notebooks/04_distributed_training.ipynb": 75.0,
    "notebooks/05_evaluation.ipynb": 40.0, "notebooks/06_weight_tying.ipynb": 60.0,
})
"""Seconds that each file may take on two idle cores; a run fails where one takes over three times that."""
SLACK = 3.0

LEFT = pytest.StashKey[int]()
_spent: dict[str, float] = defaultdict(float)

sys.path.insert(0, str(OFFLINE))
import sitecustomize as offline  # noqa: E402 - the block for this very process

if not hasattr(offline, "NetworkBlocked"):  # the interpreter already has a sitecustomize of its own
    del sys.modules["sitecustomize"]
    import sitecustomize as offline

os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (str(OFFLINE), os.environ.get("PYTHONPATH"))))
os.environ.update(TINYLIB_HOME=str(HOME), TINYLIB_PROFILE="smoke", HF_HUB_OFFLINE="1",
                  OMP_NUM_THREADS="1")    # the models are tiny, and threads that share a core only wait for each other


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What needs a GPU is skipped, visibly, where there is none."""
    if any("gpu" in item.keywords for item in items):
        import torch

        if not torch.cuda.is_available():
            for item in items:
                if "gpu" in item.keywords:
                    item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


class Clock:
    """Adds up what each file takes; a plugin of its own, for hooks of a conftest only see the files below it."""

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """A hook of pytest; what is slow by nature has no budget."""
        if "slow" not in report.keywords:
            _spent[report.nodeid.split("::")[0]] += report.duration


def pytest_configure(config: pytest.Config) -> None:
    """A hook of pytest."""
    config.pluginmanager.register(Clock())


@pytest.hookimpl(tryfirst=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """A process left behind, or a file far over its budget, makes the run fail."""
    left = list(survivors())
    for process in left:
        process.kill()
    if left or over_budget():
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
    session.config.stash[LEFT] = len(left)
    shutil.rmtree(HOME, ignore_errors=True)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """One line a file: seconds spent and allowed."""
    terminalreporter.section("seconds spent (budget)")
    for name, spent_s in sorted(_spent.items(), key=lambda item: -item[1]):
        mark = "  OVER BUDGET" if name in over_budget() else ""
        if spent_s >= 1 or mark:
            terminalreporter.line(f"{spent_s:7.1f} ({BUDGET_S[name]:.0f})  {name}{mark}")
    if config.stash.get(LEFT, 0):
        terminalreporter.line(f"{config.stash[LEFT]} processes of launched runs were left behind and are killed now")


def over_budget() -> list[str]:
    """The files that took more than SLACK times their budget."""
    return [name for name, spent_s in _spent.items() if spent_s > SLACK * BUDGET_S[name]]


def survivors() -> Iterator[psutil.Process]:
    """The processes of runs in the tests' own folder that still live."""
    for process in psutil.process_iter():
        try:
            ours = process.pid != os.getpid() and process.environ().get("TINYLIB_HOME") == str(HOME)
            if ours and "resource_tracker" not in " ".join(process.cmdline()):
                yield process
        except psutil.Error:
            continue


@pytest.fixture(scope="session")
def tiny_shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards of some thousand tokens, with a vocabulary of 320."""
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
    """A run of six steps that takes a fraction of a second."""
    model = GPTConfig(depth=2, dim=32, vocab_size=320, head_dim=16, seq_len=32)
    return TrainConfig(model=model, data=str(tiny_shards), run_dir=str(tmp_path / "run"), steps=6, total_batch_size=256,
                       device_batch_size=2, eval_every=2, save_every=2, keep=10, compile="off", device="cpu",
                       dtype="float32")

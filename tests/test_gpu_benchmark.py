"""The benchmark for the first hour on a GPU runs to its end on a CPU, and a part that fails doesn't end it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).parent.parent / "benchmarks" / "gpu.py"


def benchmark(out: Path, *arguments: str) -> tuple[int, dict[str, Any]]:
    done = subprocess.run([sys.executable, str(SCRIPT), "--tiny", "--out", str(out), *arguments], text=True,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    print(done.stdout)
    return done.returncode, json.loads(out.read_text())


@pytest.mark.slow
def test_every_part_runs_to_its_end(tmp_path: Path) -> None:
    code, found = benchmark(tmp_path / "gpu.json")
    assert code == 0 and [part for part in found if "error" in found[part]] == []
    assert "skipped" in found["tests"]["summary"] and "passed" not in found["tests"]["summary"]
    assert [(row["context"], row["tied"]) for row in found["step"]["rows"]] == [
        (32, False), (32, True), (64, False), (64, True)]
    shares = {row["class"]: row["share"] for row in found["kernels"]["rows"]}
    assert sum(shares.values()) == pytest.approx(1)
    assert {"matrix products", "attention", "optimizer", "loss"} <= set(shares)
    assert found["run"]["states"] == ["stopped", "finished"] and found["run"]["val_bpb"] > 0
    assert found["nanochat"]["skipped"]    # it needs a checkout
    assert {row["dtype"] for row in found["evaluate"]["rows"]} == {"float32", "bfloat16"}
    assert [row["batch"] for row in found["decode"]["rows"]] == [1, 1, 64]


def test_a_part_that_fails_is_recorded_and_the_next_one_runs(tmp_path: Path) -> None:
    code, found = benchmark(tmp_path / "gpu.json", "--parts", "nanochat", "decode", "--nanochat", str(tmp_path))
    assert code == 1 and "no nanochat/gpt.py" in found["nanochat"]["error"] and found["nanochat"]["traceback"]
    assert len(found["decode"]["rows"]) == 3

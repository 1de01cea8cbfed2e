"""Training: one global batch however it is split, exact resume, safe ends, clear errors."""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from tinylib import checkpoint, rundir
from tinylib.config import ConfigError, TrainConfig
from tinylib.evaluate import bits_per_byte
from tinylib.rundir import RunDirectory
from tinylib.shards import Shards
from tinylib.train import train


def losses(run: str) -> list[float]:
    return RunDirectory(run).metrics()["loss"].tolist()


def weights(run: str, step: int | None = None) -> dict[str, torch.Tensor]:
    folder = RunDirectory(run).checkpoint(step)
    return {**load_file(folder / checkpoint.WEIGHTS), **load_file(folder / checkpoint.OPTIMIZER)}


def torchrun(config: TrainConfig, processes: int, resume: bool = False) -> subprocess.CompletedProcess[str]:
    """The same `train` under torchrun, as a script rather than a verb, which also looks for threads left behind."""
    directory = RunDirectory(config.run)
    directory.create({})
    script = directory.path / "script.py"
    script.write_text("import json, sys\nfrom tinylib.config import TrainConfig, from_dict\n"
                      "from tinylib.train import train\n"
                      "train(from_dict(TrainConfig, json.loads(sys.argv[1])), resume=sys.argv[2] == 'True')\n"
                      "import glob\n"
                      "names = [open(f).read().strip() for f in glob.glob('/proc/self/task/*/comm')]\n"
                      "assert not [name for name in names if 'gloo' in name], names\n")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}",
               str(script), json.dumps(rundir.plain(config)), str(resume)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


@pytest.mark.parametrize("tied", [False, True])
def test_training_learns_and_records(tiny, tied) -> None:
    tiny = replace(tiny, model=replace(tiny.model, tied=tied), steps=40, eval_every=10, save_every=20, keep=1)
    summary = train(tiny)
    directory = RunDirectory(tiny.run)
    steps, evals = directory.metrics(), directory.metrics("eval")
    assert steps.index.tolist() == list(range(1, 41)) and evals.index.tolist() == [10, 20, 30, 40]
    assert steps["loss"].iloc[0] == pytest.approx(math.log(320), rel=0.01)
    assert summary.train_loss < 0.6 * math.log(320) and evals["val_bpb"][40] < evals["val_bpb"][10]
    assert summary.state == directory.status()["state"] == "finished"
    assert directory.saved_steps() == [40] and directory.summary()["val_bpb"] == summary.val_bpb
    model = checkpoint.load_model(directory.checkpoint())
    assert bits_per_byte(model, Shards(tiny.data, "val")) == pytest.approx(summary.val_bpb, rel=1e-6)
    assert directory.read_config()["train"] == rundir.plain(tiny)


def test_recomputing_changes_nothing(tiny, tmp_path) -> None:
    train(tiny)
    again = replace(tiny, run=str(tmp_path / "again"), recompute=True)
    train(again)
    assert losses(again.run) == losses(tiny.run)


@pytest.mark.parametrize("device_batch_size", [1, 4, 8])
def test_micro_batches_change_nothing(tiny, device_batch_size, tmp_path) -> None:
    train(tiny)
    other = replace(tiny, device_batch_size=device_batch_size, run=str(tmp_path / "other"))
    train(other)
    assert losses(other.run) == pytest.approx(losses(tiny.run), rel=1e-5)


def test_resume_is_the_uninterrupted_run_bit_for_bit(tiny, tmp_path) -> None:
    train(tiny)
    whole, part = RunDirectory(tiny.run), RunDirectory(tmp_path / "part")
    part.create({})
    part.checkpoint_path(4).parent.mkdir(exist_ok=True)
    whole.checkpoint(4).rename(part.checkpoint_path(4))
    part.metrics_file.write_text(whole.metrics_file.read_text())
    train(replace(tiny, run=str(part.path)), resume=True)
    assert losses(str(part.path)) == losses(tiny.run)
    first, second = weights(tiny.run), weights(str(part.path))
    assert first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def test_processes_change_nothing_and_resume_on_another_number(tiny, tmp_path) -> None:
    train(tiny)
    two = replace(tiny, run=str(tmp_path / "two"))
    done = torchrun(two, 2)
    assert done.returncode == 0, done.stderr
    assert losses(two.run) == pytest.approx(losses(tiny.run), rel=1e-5)
    assert RunDirectory(two.run).summary()["val_bpb"] == pytest.approx(RunDirectory(tiny.run).summary()["val_bpb"],
                                                                       rel=1e-4)
    shutil.rmtree(RunDirectory(two.run).checkpoint(6))
    train(two, resume=True)
    assert losses(two.run) == pytest.approx(losses(tiny.run), rel=1e-5)


def test_a_failing_rank_leaves_its_traceback_and_a_status(tiny) -> None:
    done = torchrun(replace(tiny, embedding_lr=1e39), 2)
    directory = RunDirectory(tiny.run)
    assert done.returncode != 0
    assert "FloatingPointError" in directory.errors()[0]["traceback"]
    resumed = train(tiny, resume=True)
    assert resumed.step == 6 and not directory.errors(), "what went wrong once is not held against a run that went on"


def test_a_failing_rank_leaves_a_status(tiny) -> None:
    assert torchrun(replace(tiny, embedding_lr=1e39), 2).returncode != 0
    directory = RunDirectory(tiny.run)
    assert directory.status()["state"] == "failed" and "lower the learning rates" in directory.status()["error"]


def test_a_signal_saves_and_stops_and_resume_goes_on(tiny, tmp_path) -> None:
    tiny = replace(tiny, steps=400, eval_every=None, save_every=None)

    signal.set_wakeup_fd(-1)    # or the event loop of an earlier test hears of the signal, and ends a later one

    def interrupt() -> None:
        while not RunDirectory(tiny.run).last("step"):
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=interrupt, daemon=True).start()
    summary = train(tiny)
    assert summary.state == "stopped" and summary.val_bpb is None and 0 < summary.step < 400
    assert RunDirectory(tiny.run).saved_steps() == [summary.step]
    with pytest.raises(ValueError, match="already holds a run: resume it"):
        train(tiny)
    assert train(tiny, resume=True).step == 400
    assert RunDirectory(tiny.run).metrics().index.tolist() == list(range(1, 401))


def test_resuming_another_run_is_refused_with_both_values(tiny) -> None:
    train(replace(tiny, steps=2))
    with pytest.raises(ConfigError, match=r"steps was 2 and is 6.*matrix_lr was 0.02 and is 0.5"):
        train(replace(tiny, matrix_lr=0.5), resume=True)
    assert len(losses(tiny.run)) == 2


def test_bad_input_is_refused_before_any_step(tiny) -> None:
    for change, message in (({"data": "nowhere"}, "nowhere"), ({"device": "cuda"}, "not on this machine"),
                            ({"model": replace(tiny.model, vocab_size=300)}, "use vocab_size=320")):
        if change.get("device") == "cuda" and torch.cuda.is_available():
            continue
        with pytest.raises((ValueError, FileNotFoundError), match=message):
            train(replace(tiny, **change, run=tiny.run + message[:3]))
    with pytest.raises(ConfigError, match="total_batch_size=100 is not a multiple"):
        replace(tiny, total_batch_size=100)


def test_compiled_training_follows_the_eager_one(tiny, tmp_path) -> None:
    train(tiny)
    compiled = replace(tiny, run=str(tmp_path / "compiled"), compile="on")
    train(compiled)
    assert losses(compiled.run) == pytest.approx(losses(tiny.run), rel=1e-4)
    header = next(RunDirectory(compiled.run).records())
    assert header["compiled"] is True


def test_bfloat16_follows_float32(tiny, tmp_path) -> None:
    train(tiny)
    half = replace(tiny, run=str(tmp_path / "half"), dtype="bfloat16")
    train(half)
    assert losses(half.run) == pytest.approx(losses(tiny.run), rel=0.02)
    assert losses(half.run) != losses(tiny.run)


@pytest.mark.gpu
@pytest.mark.parametrize(("dtype", "rel"), [("float32", 1e-3), ("bfloat16", 0.02)])
def test_a_gpu_follows_the_cpu(tiny, tmp_path, dtype, rel) -> None:
    train(tiny)
    there = replace(tiny, run=str(tmp_path / "gpu"), device="cuda", dtype=dtype)
    assert train(there).peak_memory_bytes > 0
    assert losses(there.run) == pytest.approx(losses(tiny.run), rel=rel)

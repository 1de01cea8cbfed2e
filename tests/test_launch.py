"""Launched runs: they start at once, outlive nothing they shouldn't, fail loudly, stop cleanly and go on."""

from __future__ import annotations

import os
import re
import shutil
import signal
import stat
import subprocess
import sys
import time
from dataclasses import replace

import psutil
import pytest

from tinylib import hardware
from tinylib.config import ConfigError, GPTConfig, TrainConfig, to_json
from tinylib.launch import Run, RunFailed, RunStopped, attach, launch, runs, start
from tinylib.launch.stop import wait_until
from tinylib.rundir import RunDirectory
from tinylib.shards import build
from tinylib.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    """A run of seconds on shards of a few hundred sentences."""
    folder = tmp_path_factory.mktemp("launch")
    texts = [f"Number {n} has the square {n * n}, and after it comes {n + 1}." for n in range(400)]
    build({"train": texts[:360], "val": texts[360:]}, Tokenizer.train(texts, 300), folder / "shards")
    return TrainConfig(model=GPTConfig(depth=1, dim=64, vocab_size=300, seq_len=32), data=str(folder / "shards"),
                       run_dir=str(folder / "run"), steps=12, total_batch_size=256, device_batch_size=4, eval_every=6,
                       save_every=6, compile="off", device="cpu")


@pytest.fixture(scope="module")
def finished(config):
    """A run of two processes, launched from a process that looks like a rank of another torchrun."""
    leaked = {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "5", "MASTER_ADDR": "203.0.113.1", "MASTER_PORT": "1",
              "TORCHELASTIC_RUN_ID": "another", "GROUP_RANK": "3"}
    before = {name: os.environ.get(name) for name in leaked}
    descriptors = psutil.Process().num_fds()
    os.environ.update(leaked)
    try:
        run = launch(config, nproc_per_node=2)
        with pytest.raises(ValueError, match="still runs"):
            launch(config, nproc_per_node=2)
        run.wait(timeout_s=60)
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.__setitem__(name, value)
    return run, psutil.Process().num_fds() - descriptors


def zombies():
    return [child for child in psutil.Process().children() if child.status() == psutil.STATUS_ZOMBIE]


def test_a_finished_run_is_read_from_its_files(finished, config):
    run = attach(finished[0].path)
    assert run.state == "finished"
    assert list(run.metrics().index) == list(range(1, config.steps + 1))
    assert run.metrics()["loss"].iloc[-1] < run.metrics()["loss"].iloc[0]
    summary = run.wait()
    assert summary.val_bpb == run.metrics("eval")["val_bpb"].iloc[-1]
    assert run.read_config()["world_size"] == 2
    assert sum(weight.numel() for weight in run.model().parameters()) == summary.parameters
    assert re.search(r"^state +finished$", run.log(0), re.MULTILINE)
    assert "finished" in repr(run)


def test_nothing_is_left_behind(finished):
    run, descriptors = finished
    assert not run.alive()
    assert not zombies()
    assert descriptors == 0


def test_a_taken_directory_is_refused(finished, config):
    before = finished[0].metrics_file.read_bytes()
    with pytest.raises(FileExistsError, match="is taken: choose another run directory"):
        launch(config)
    with pytest.raises(ValueError, match="has taken all its steps"):
        finished[0].resume()
    assert finished[0].metrics_file.read_bytes() == before


def test_watch_prints_where_there_is_no_notebook(finished, capsys):
    finished[0].watch()
    line = capsys.readouterr().out
    assert "finished" in line and "step 12 of 12" in line and "bits per byte" in line and "tokens/s" in line


def test_stop_then_resume(config, tmp_path):
    run = launch(replace(config, run_dir=str(tmp_path / "run"), steps=2_000, save_every=None, eval_every=None), 2)
    wait_until(lambda: len(run.metrics()) > 5, 60)
    with pytest.raises(TimeoutError, match="has not ended"):
        run.wait(timeout_s=0.1)
    run.stop()
    assert "detail" not in run.status(), "it stopped by itself"
    assert run.state == "stopped" and not run.alive() and not zombies()
    stopped_at = run.saved_steps()[-1]
    assert stopped_at == run.status()["step"] == run.metrics().index[-1] > 5
    with pytest.raises(RunStopped, match="resume"):
        run.wait()
    again = run.resume(nproc_per_node=1)
    wait_until(lambda: again.metrics().index[-1] > stopped_at, 60)
    again.stop()
    assert list(again.metrics().index) == list(range(1, again.status()["step"] + 1))
    assert again.read_config()["world_size"] == 1


def test_stop_does_not_wait_for_the_step(config, tmp_path):
    """A step of thousands of micro-batches, a minute long: nothing of it is kept, and nothing is waited for."""
    long = replace(config, run_dir=str(tmp_path / "run"), steps=2, device_batch_size=1, total_batch_size=2**19)
    run = launch(long, 2)
    assert wait_until(lambda: run.status()["state"] == "running", 60)
    time.sleep(1)
    run.stop()
    assert run.state == "stopped" and run.status()["step"] == 0 and not run.alive()
    assert not run.saved_steps() and "detail" not in run.status(), "it stopped by itself"


def test_stop_while_starting_leaves_nothing(config, tmp_path):
    run = launch(replace(config, run_dir=str(tmp_path / "run"), steps=2_000), 2)
    run.stop()
    assert run.state == "stopped" and not run.alive() and not zombies()
    run.remove()
    assert not run.path.exists()


def test_a_failure_shows_the_traceback_of_the_rank(config, tmp_path):
    run = launch(replace(config, run_dir=str(tmp_path / "run"), matrix_lr=1e38, embedding_lr=1e38, grad_clip=None), 2)
    with pytest.raises(RunFailed, match=r"(?s)rank \d of run run:\nTraceback.*FloatingPointError: loss=") as failure:
        run.watch()
    assert "FloatingPointError" in failure.value._render_traceback_()[-1]
    assert run.state == "failed" and wait_until(lambda: not run.alive(), 30)
    with pytest.raises(RunFailed, match="FloatingPointError"):
        attach(run.path).wait()


def test_a_torchrun_that_dies_gives_its_last_words(config, tmp_path, monkeypatch):
    broken = tmp_path / "python"
    broken.write_text("#!/bin/sh\necho No space in this house >&2\nexit 3\n")
    broken.chmod(broken.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setattr(sys, "executable", str(broken))
    run = launch(replace(config, run_dir=str(tmp_path / "run")))
    with pytest.raises(RunFailed, match="No space in this house"):
        run.wait(timeout_s=10)


@pytest.mark.slow
def test_a_killed_rank_is_a_failure(config, tmp_path):
    run = launch(replace(config, run_dir=str(tmp_path / "run"), steps=5_000), 2)
    wait_until(lambda: len(run.metrics()) > 2, 60)
    os.kill(run.processes()["rank1"].pid, signal.SIGKILL)
    with pytest.raises(RunFailed, match=r"(?s)rank1 \(pid \d+\) was killed from outside.*hint: .*kill -9"):
        run.wait(timeout_s=45)
    run.stop()
    assert not run.alive()


@pytest.mark.slow
def test_the_run_outlives_the_process_that_launched_it(config, tmp_path):
    code = ("import os, signal\nfrom tinylib.launch import launch\nfrom tinylib.config import TrainConfig, from_json\n"
            f"launch(from_json(TrainConfig, open({str(tmp_path / 'c.json')!r}).read()), 2)\n"
            "os.killpg(os.getpgrp(), signal.SIGKILL)")
    (tmp_path / "c.json").write_text(to_json(replace(config, run_dir=str(tmp_path / "run"))))
    subprocess.run([sys.executable, "-c", code], start_new_session=True, check=False)
    assert attach(tmp_path / "run").wait(timeout_s=60).step == config.steps


@pytest.mark.slow
def test_the_run_outlives_its_kernel(config, tmp_path):
    """Interrupted, restarted and shut down, a live kernel doesn't touch the training it launched."""
    from jupyter_client.manager import KernelManager

    (tmp_path / "c.json").write_text(to_json(replace(config, run_dir=str(tmp_path / "run"), steps=100_000)))
    run, manager = Run(tmp_path / "run"), KernelManager(kernel_name="python3")
    manager.start_kernel(env=dict(os.environ))
    client = manager.client()
    try:
        client.start_channels()
        client.wait_for_ready(timeout=60)
        client.execute_interactive("from tinylib.launch import launch\n"
                                   "from tinylib.config import TrainConfig, from_json\n"
                                   f"launch(from_json(TrainConfig, open({str(tmp_path / 'c.json')!r}).read()), 2)",
                                   timeout=60, output_hook=lambda message: None)
        for disturb in (manager.interrupt_kernel, lambda: manager.restart_kernel(now=True),
                        lambda: manager.shutdown_kernel(now=True)):
            steps = len(run.metrics())
            disturb()
            assert wait_until(lambda before=steps: len(run.metrics()) > before + 50, 60) and run.state == "running"
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True) if manager.has_kernel else None
        run.stop()
    assert run.state == "stopped" and not run.alive()


@pytest.mark.slow
@pytest.mark.timeout(3_600)
def test_a_hundred_launches_leave_nothing(config, tmp_path, monkeypatch):
    """No process, no file or socket, no thread, no temporary file; every fourth is stopped while it starts."""
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setenv("TMPDIR", str(temporary))
    this = psutil.Process()
    threads, descriptors, sockets = this.num_threads(), this.num_fds(), len(this.net_connections())
    for number in range(100):
        run = launch(replace(config, run_dir=str(tmp_path / "run"), steps=1), 1 + number % 2, replace_ended=True)
        family = [this, *this.children(recursive=True)][1:]
        if number % 4 == 3:
            run.stop()
        else:
            assert run.wait(timeout_s=120).step == 1
        assert not run.alive() and wait_until(lambda gone=family: not any(p.is_running() for p in gone), 10)
    assert wait_until(lambda: this.num_threads() == threads, 5)
    # Fewer where an earlier test's files are closed in the meantime.
    assert this.num_fds() <= descriptors and len(this.net_connections()) <= sockets
    assert not this.children() and not list(temporary.iterdir())


# What is refused before anything is written

@pytest.mark.parametrize(("change", "processes", "error", "message"), [
    ({"total_batch_size": 384}, 2, ConfigError, "total_batch_size=384 is not a multiple"),
    ({"data": "nowhere"}, 2, FileNotFoundError, "no token shards in .*nowhere"),
    ({"model": GPTConfig(depth=1, dim=64, vocab_size=256, seq_len=32)}, 2, ConfigError,
     "vocab_size=256 is smaller than the 300 ids"),
    ({}, 0, ConfigError, "nproc_per_node=0 is not a whole number of at least 1"),
    ({}, "two", ConfigError, "nproc_per_node='two'"),
])
def test_bad_input_writes_nothing(config, tmp_path, change, processes, error, message):
    with pytest.raises(error, match=message):
        launch(replace(config, run_dir=str(tmp_path / "run"), **change), processes)
    assert not list(tmp_path.iterdir())


def test_a_folder_of_something_else_is_not_removed(config, tmp_path):
    (tmp_path / "thesis.txt").write_text("five years of work")
    with pytest.raises(FileExistsError):
        launch(replace(config, run_dir=str(tmp_path)), 1, replace_ended=True)
    assert (tmp_path / "thesis.txt").exists()


def test_auto_is_one_process_a_gpu_and_one_without(config, monkeypatch):
    assert hardware.visible_devices("cpu") == ["cpu"]
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 4)
    assert hardware.visible_devices("auto") == ["cuda:0", "cuda:1", "cuda:2", "cuda:3"]
    with pytest.raises(ConfigError, match="nproc_per_node=8 is more than the GPUs that are visible: use 4 or fewer"):
        launch(replace(config, device="auto"), 8)


def test_the_environment_is_clean(monkeypatch):
    for name in (*start.TORCHRUN_VARIABLES, "TORCHELASTIC_RESTART_COUNT", "PET_NNODES"):
        monkeypatch.setenv(name, "7")
    monkeypatch.setenv("MY_OWN", "kept")
    monkeypatch.setattr("tinylib.hardware.cores", lambda: 8)
    monkeypatch.delenv("OMP_NUM_THREADS")
    found = start._environment(start.LaunchSettings(4))
    assert not {*start.TORCHRUN_VARIABLES, "TORCHELASTIC_RESTART_COUNT", "PET_NNODES"} & set(found)
    assert (found["MY_OWN"], found["OMP_NUM_THREADS"]) == ("kept", "2")
    rehearsal = start.LaunchSettings(2, nnodes=2, rdzv_endpoint="127.0.0.1:29400")
    assert start._environment(rehearsal)["OMP_NUM_THREADS"] == "2", "both machines are this one"
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert start._environment(rehearsal)["OMP_NUM_THREADS"] == "3"
    assert start._environment(start.LaunchSettings(4, threads=1))["OMP_NUM_THREADS"] == "1"


def test_attach_finds_the_latest(finished, config, tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match="is neither a run directory nor"):
        attach(tmp_path)
    monkeypatch.setenv("TINYLIB_HOME", str(tmp_path))
    with pytest.raises(FileNotFoundError, match="launch one"):
        attach()
    folder = tmp_path / "runs" / "smoke"
    for name in ("old", "new"):
        RunDirectory(folder / name).write_config(config, 1)
        os.utime(folder / name / "config.json", (0, 0) if name == "old" else None)
    assert attach().name == "new"
    assert attach("old").name == attach("smoke/old").name == "old"
    for profile in ("one", "two"):
        for name in ("old", "twice"):
            RunDirectory(tmp_path / "runs" / profile / name).write_config(config, 1)
    assert attach("old").path == folder / "old", "the profile's own"
    with pytest.raises(ValueError, match=r"'twice' is the name of several runs: use (one|two)/twice or"):
        attach("twice")
    for profile in ("one", "two"):
        shutil.rmtree(tmp_path / "runs" / profile)
    assert [run.name for run in runs(tmp_path / "runs")] == ["old", "new"]
    assert attach().state == "lost"

"""Launches beside each other and on several machines: devices, rendezvous, failures and hints, Slurm."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path

import psutil
import pytest
import torch
from ranks import free_port

from tinylib import hardware
from tinylib.checks import UserError
from tinylib.config import ConfigError
from tinylib.launch import Run, RunFailed, launch, write_slurm
from tinylib.launch.devices import raise_if_busy
from tinylib.launch.hints import HINTS, KILLED, PEER_GONE, hint
from tinylib.launch.start import LaunchSettings
from tinylib.launch.stop import wait_until
from tinylib.rundir import Header, Process, RunDirectory
from tinylib.shards import open_splits


@pytest.fixture
def started() -> Iterator[list[Run]]:
    """Runs that are stopped at the end of the test."""
    runs: list[Run] = []
    yield runs
    for run in runs:
        run.stop(timeout_s=1)


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    """A process that lives until the end of the test."""
    with subprocess.Popen(["sleep", "600"]) as process:
        yield process
        process.kill()


def held(config, process: subprocess.Popen[bytes], devices: str, role: str = "rank0") -> RunDirectory:
    """A run begun by hand, whose one process holds `devices`."""
    directory = RunDirectory(config.run_dir)
    directory.write_config(config, 1)
    directory.write_pid(role, replace(Process.of(process.pid), devices=devices))
    return directory


def agent_environment(run: Run) -> dict[str, str]:
    agent = psutil.Process(run.processes()["agent"].pid)
    assert wait_until(agent.environ, 10)    # the system shows none in the middle of exec
    return agent.environ()


# One device, several runs

def test_a_second_run_on_a_cpu_is_refused_with_the_ways_out(tiny, tmp_path, started, sleeper):
    first = held(replace(tiny, run_dir=str(tmp_path / "first")), sleeper, "cpu")
    with pytest.raises(ConfigError, match=r"needs cpu of this machine, which the run .*first' holds") as refusal:
        launch(replace(tiny, run_dir=str(tmp_path / "second")))
    for way in (".wait()", ".stop()", "share=True", str(first.path)):
        assert way in str(refusal.value)
    assert not (tmp_path / "second").exists()
    started.append(launch(replace(tiny, run_dir=str(tmp_path / "second")), share=True))
    sleeper.kill()
    assert wait_until(lambda: not first.alive(), 10)
    with pytest.raises(ConfigError, match="second"):    # a run that shares counts for later ones
        launch(replace(tiny, run_dir=str(tmp_path / "first")), replace_ended=True)
    assert first.exists(), "what could not be replaced is untouched"
    started.pop().stop()
    assert first.exists() and not first.alive()


def test_runs_of_this_home_count_wherever_the_new_one_is(tiny, tmp_path, sleeper):
    there = replace(tiny, run_dir=str(Path(os.environ["TINYLIB_HOME"]) / "runs" / "smoke" / "third"))
    directory = held(there, sleeper, "cpu", role="agent")
    with pytest.raises(ConfigError, match="third"):
        launch(replace(tiny, run_dir=str(tmp_path / "elsewhere" / "fourth")))
    sleeper.kill()
    assert wait_until(lambda: not directory.alive(), 10)
    Run(there.run_dir).remove()


def test_of_many_launches_in_one_moment_one_gets_the_cpu(tiny, tmp_path, started):
    refused = []

    def try_one(number):
        try:
            started.append(launch(replace(tiny, run_dir=str(tmp_path / str(number)))))
        except ConfigError as error:
            refused.append(error)

    threads = [threading.Thread(target=try_one, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(started), len(refused)) == (1, 7)


def test_launches_leave_nothing_behind(tiny):
    this = psutil.Process()
    threads, descriptors, children = this.num_threads(), this.num_fds(), this.children()
    for _ in range(3):
        run = launch(tiny, replace_ended=True)
        run.stop()
        assert not run.alive()
    assert wait_until(lambda: this.num_threads() == threads and this.children() == children, 10)
    assert this.num_fds() == descriptors


def test_a_killed_torchrun_whose_ranks_live_on_still_holds_its_device(tiny, tmp_path, sleeper):
    run = launch(replace(tiny, run_dir=str(tmp_path / "first")))
    run.write_pid("rank0", replace(Process.of(sleeper.pid), devices="cpu"))
    agent = psutil.Process(run.processes()["agent"].pid)
    for process in [agent, *agent.children(recursive=True)]:
        process.kill()
    assert wait_until(lambda: list(run.alive()) == ["rank0"], 10)
    with pytest.raises(ConfigError, match="first"):
        launch(tiny)
    sleeper.kill()
    assert wait_until(lambda: not run.alive(), 10)
    launch(tiny).stop()


def test_a_run_takes_the_first_gpus_that_are_visible(tiny, tmp_path, started, monkeypatch):
    """GPUs that are only counted: there are none here, so the ranks fail if they come that far."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 4)
    config = replace(tiny, device="cuda")
    started.append(launch(replace(config, run_dir=str(tmp_path / "a")), 2))
    assert agent_environment(started[0])["CUDA_VISIBLE_DEVICES"] == "0,1"
    assert started[0].processes()["agent"].devices == "cuda:0,cuda:1"
    with pytest.raises(ConfigError, match=r"needs cuda:0 of this machine, which the run .*/a' holds"):
        launch(replace(config, run_dir=str(tmp_path / "b")), 1)
    started.append(launch(replace(tiny, run_dir=str(tmp_path / "on the cpu"))))
    started.append(launch(replace(config, run_dir=str(tmp_path / "shared")), 1, share=True))
    assert agent_environment(started[-1])["CUDA_VISIBLE_DEVICES"] == "0"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2, 3")
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    assert hardware.visible_devices("auto") == ["cuda:2", "cuda:3"]
    started.append(launch(replace(config, run_dir=str(tmp_path / "b"))))    # "auto": a process for each
    assert started[-1].read_config()["world_size"] == 2
    assert agent_environment(started[-1])["CUDA_VISIBLE_DEVICES"] == "2,3"


def test_a_second_torchrun_of_one_run_needs_gpus_of_its_own(tiny, sleeper):
    directory = held(tiny, sleeper, "cuda:0", role="agent")
    raise_if_busy(directory, ["cuda:1"], joins=True)
    raise_if_busy(directory, ["cpu"], joins=True)
    with pytest.raises(ConfigError, match="needs cuda:0"):
        raise_if_busy(directory, ["cuda:0"], joins=True)


@pytest.mark.skipif(torch.cuda.is_available() or torch.backends.mps.is_available(), reason="there is such a device")
@pytest.mark.parametrize("kind", ["cuda", "mps"])
def test_a_device_that_is_not_here_is_refused_at_once(tiny, kind):
    with pytest.raises(UserError, match=f"device='{kind}' is not on this machine"):
        launch(replace(tiny, device=kind))


@pytest.mark.parametrize(("options", "message"), [
    ({"max_restarts": -1}, "max_restarts=-1 is not a whole number of at least 0"),
    ({"nnodes": 0}, "nnodes=0 is not a whole number of at least 1"),
    ({"nnodes": "1:2"}, "nnodes='1:2' is not a whole number"),
    ({"nnodes": 2}, "rdzv_endpoint=None is not an address for 2 machines to meet at: use host:port"),
    ({"nnodes": 2, "rdzv_endpoint": "node1:0"}, "rdzv_endpoint='node1:0' is not"),
    ({"nnodes": 2, "rdzv_endpoint": "node1:65536"}, "rdzv_endpoint='node1:65536' is not"),
    ({"rdzv_endpoint": "node1:29400"}, "rdzv_endpoint='node1:29400' is for several machines"),
    ({"nnodes": 3, "rdzv_endpoint": "node1:29400"},
     "total_batch_size=256 is not a multiple of device_batch_size × seq_len × processes = 2 × 32 × 3 = 192"),
])
def test_what_cannot_be_launched_is_said_before_anything_is_written(tiny, tmp_path, options, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        launch(tiny, 1, **options)
    assert not list(tmp_path.iterdir())


# What a failed run says

def failing(call) -> str:
    with pytest.raises(BaseException) as caught:    # whatever the library says is what is looked at
        call()
    return f"{type(caught.value).__name__}: {caught.value}"


def take_a_port_twice() -> None:
    with socket.socket() as first, socket.socket() as second:
        first.bind(("127.0.0.1", 0))
        first.listen()
        second.bind(first.getsockname())


def fill_a_disk() -> None:
    with Path("/dev/full").open("w") as file:
        file.write("x" * 100_000)


@pytest.mark.parametrize(("call", "says"), [
    (lambda: torch.empty(1 << 50), "memory is full"),
    (lambda: bytearray(1 << 60), "memory is full"),
    (take_a_port_twice, "another port in rdzv_endpoint"),
    (lambda: torch.nn.functional.embedding(torch.tensor([9]), torch.zeros(3, 2)), "vocabulary lacks"),
    (lambda: open_splits("nowhere", 300), "the data is missing"),
    pytest.param(lambda: torch.zeros(1, device="cuda"), "lacks that device",
                 marks=pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")),
    pytest.param(fill_a_disk, "free some space and resume",
                 marks=pytest.mark.skipif(not Path("/dev/full").exists(), reason="Linux has a full disk at hand")),
])
def test_hints_know_what_systems_and_libraries_really_say(call, says):
    assert says in hint(failing(call))


@pytest.mark.parametrize(("said", "says"), [    # as a GPU's driver, or a machine under pressure, puts it
    ("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has a total", "the GPU's memory"),
    ("RuntimeError: CUDA error: device-side assert triggered", "vocabulary lacks"),
    ("  exitcode  : -9 (pid: 123)", "ended by force"),
    ("[rank1]:[E] [PG ID 0 PG GUID 0 Rank 1] Watchdog caught collective operation timeout: WorkNCCL(SeqNum=7, "
     "OpType=ALLREDUCE) ran for 600000 milliseconds\nexitcode  : -6\nexitcode  : -9", "did not come to an all-reduce"),
    ("torch.distributed.DistBackendError: NCCL error in: ProcessGroupNCCL.cpp:77, unhandled system error (run with "
     "NCCL_DEBUG=INFO for details)", "NCCL_DEBUG=INFO"),
    ("RuntimeError: CUDA error: an illegal memory access was encountered", "CUDA_LAUNCH_BLOCKING=1"),
    ("NotImplementedError: \"addmm_impl_cpu_\" not implemented for 'Half'", "lacks that device or precision"),
])
def test_hints_for_what_cannot_be_provoked_here(said, says):
    assert says in hint(said)


def test_no_hint_where_the_cause_is_another():
    for said in ("FloatingPointError: loss=nan, gradient norm=1.0 at step 3", "KeyError: 'text'", ""):
        assert hint(said) is None
    assert len({advice for _, advice in HINTS}) == len(HINTS)


def test_a_mismatched_vocabulary_is_refused_with_the_same_hint(tiny):
    small = replace(tiny, model=replace(tiny.model, vocab_size=300))
    assert "vocabulary lacks" in hint(failing(lambda: open_splits(small.data, 300)))


def test_a_killed_rank_explains_a_lost_peer_and_nothing_else():
    assert hint("") is None and hint("", killed=True) == KILLED
    lost = "RuntimeError: Connection closed by peer"
    assert (hint(lost), hint(lost, killed=True)) == (PEER_GONE, KILLED)
    assert "vocabulary lacks" in hint("IndexError: index out of range in self", killed=True), "torchrun kills the rest"


def test_killed_processes_are_named(tiny, sleeper):
    directory = RunDirectory(tiny.run_dir)
    directory.write_config(tiny, 2)
    directory.write_status("running", step=3)
    directory.write_pid("rank1", Process.of(sleeper.pid))
    run = Run(directory.path)
    assert run.state == "running" and run.failure() is None
    sleeper.kill()
    with pytest.raises(RunFailed) as failure:
        run.wait(timeout_s=20)
    assert f"run run: rank1 (pid {sleeper.pid}) was killed from outside" in str(failure.value)
    assert str(failure.value).splitlines()[-1] == f"hint: {KILLED}"
    directory.write_error(0, "Traceback …\nRuntimeError: Connection closed by peer")
    assert run.failure().startswith("rank 0 of run run:\nTraceback") and run.failure().endswith(KILLED)


# Processes that may start again, processes on other machines

def test_a_failure_that_torchrun_may_mend_is_not_the_end(tiny, tmp_path, sleeper):
    directory = RunDirectory(tmp_path / "run")
    directory.write_config(tiny, 2, launch=asdict(LaunchSettings(2, max_restarts=1)))
    directory.write_pid("agent", Process.of(sleeper.pid))
    directory.write_status("failed", step=3)
    directory.write_error(0, "Traceback …")
    run = Run(directory.path)
    assert run.state == "restarting" and run.failure() is None
    with pytest.raises(TimeoutError):
        run.wait(timeout_s=0.5)
    sleeper.kill()
    assert wait_until(lambda: run.state == "failed", 10) and "Traceback" in run.failure()


@pytest.mark.skipif(sys.platform != "linux", reason="other systems don't add the boot time")
def test_a_process_is_known_again_when_the_clock_has_been_set(sleeper, monkeypatch):
    process, booted, started = Process.of(sleeper.pid), psutil.boot_time(), psutil.Process(sleeper.pid).create_time()
    monkeypatch.setattr(psutil._psplatform, "boot_time", lambda: booted + 60)    # as after a pause of a virtual machine
    assert psutil.Process(sleeper.pid).create_time() == pytest.approx(started + 60)
    assert process.alive()


def test_processes_of_another_machine_are_believed_while_the_status_is_fresh(tiny, tmp_path):
    directory = RunDirectory(tmp_path / "run")
    directory.write_config(tiny, 2)
    directory.write_pid("rank0", replace(Process.of(), host="elsewhere"))
    directory.write_status("running", step=3)
    run = Run(directory.path)
    assert not directory.alive() and list(directory.remote_processes()) == ["rank0"] and run.state == "running"
    with pytest.raises(ValueError, match=r"still runs \(rank0 \d+ on elsewhere"):
        run.remove()
    with pytest.raises(ValueError, match="no process on this machine: stop it on elsewhere"):
        run.stop()
    directory.remove_stale()
    assert list(directory.processes()) == ["rank0"] and not directory.killed_ranks()
    os.utime(directory.status_file, (time.time() - 301, time.time() - 301))
    assert run.state == "lost" and not directory.remote_processes()
    run.remove()


def check_no_seam(run: Run) -> None:
    steps = list(run.metrics().index)
    assert steps == list(range(1, len(steps) + 1))


@pytest.mark.slow    # notebook 04 does the same
def test_two_machines_train_one_run(tiny, capsys):
    """Two torchruns on loopback: one launched, one by the command that the first one prints."""
    endpoint = f"127.0.0.1:{free_port()}"
    config = replace(tiny, steps=12, eval_every=6)
    run = launch(config, 1, nnodes=2, rdzv_endpoint=endpoint)
    assert f"on each further machine: {run.join_command}" in capsys.readouterr().out
    with pytest.raises(ConfigError, match="steps is 12 on the machine that began this run, and 13 here"):
        launch(replace(config, steps=13), 1, nnodes=2, rdzv_endpoint=endpoint)
    with pytest.raises(ValueError, match="still runs"):
        launch(config, 1)
    second = subprocess.run(shlex.split(run.join_command), capture_output=True, text=True, timeout=120)
    summary = run.wait(timeout_s=60)
    assert second.returncode == 0 and summary.step == 12
    assert run.read_config()["world_size"] == 2 and len(run.status()["ranks"]) == 2
    assert run.log(0) and run.log_file(1).exists()
    assert not run.alive()
    check_no_seam(run)


@pytest.mark.slow
@pytest.mark.timeout(1_200)
def test_a_machine_that_is_lost_ends_the_run_which_resumes_on_both(tiny):
    config = replace(tiny, steps=100_000, save_every=20, eval_every=None, keep=2)
    options = {"nnodes": 2, "rdzv_endpoint": f"127.0.0.1:{free_port()}"}
    run = launch(config, 1, **options)
    try:
        assert launch(config, 1, **options).path == run.path
        assert wait_until(lambda: run.saved_steps(), 300), run.log(None)
        agent = psutil.Process(run.processes()["agent2"].pid)
        for process in [agent, *agent.children(recursive=True)]:    # as when a machine loses power
            process.send_signal(signal.SIGKILL)
        with pytest.raises(RunFailed, match=r"hint: (another process, or another machine|a process was ended by)"):
            run.wait(timeout_s=120)
        assert run.state == "failed" and wait_until(lambda: not run.alive(), 60)
        saved = run.saved_steps()[-1]
        run.resume()
        launch(config, 1, **options)
        assert wait_until(lambda: run.status().get("step", 0) > saved and run.state == "running", 300), run.log(None)
        assert run.last(Header).step == saved and run.status()["world_size"] == 2
    finally:
        run.stop()
    assert run.state == "stopped" and not run.alive()
    check_no_seam(run)


@pytest.mark.slow
@pytest.mark.timeout(1_200)
def test_a_rank_that_is_killed_comes_back_with_max_restarts(tiny, tmp_path):
    run = launch(replace(tiny, steps=500, save_every=20, eval_every=None), 2, max_restarts=1)
    try:
        assert wait_until(lambda: len(run.saved_steps()) > 0, 300)
        os.kill(run.processes()["rank1"].pid, signal.SIGKILL)
        assert run.wait(timeout_s=600).step == 500
    finally:
        run.stop()
    assert len([record for record in run.records() if isinstance(record, Header)]) == 2
    check_no_seam(run)


# Slurm

SRUN = """#!{python}
import json, os, subprocess, sys
while sys.argv[1].startswith("--"):
    del sys.argv[1]
with open({log!r}, "w") as file:
    json.dump([sys.argv[1:], dict(os.environ)], file)
nodes = int(os.environ["SLURM_JOB_NUM_NODES"]) if {really} else 0
sys.exit(max([task.wait() for task in [subprocess.Popen(sys.argv[1:]) for _ in range(nodes)]], default=0))
"""


def submit(file: Path, nodes: int, really: bool) -> tuple[subprocess.CompletedProcess[str], list[str], dict[str, str]]:
    """Run a batch file as Slurm would, with `srun` and `scontrol` that stay on this machine."""
    for name, text in (("srun", SRUN.format(python=sys.executable, log=str(file.parent / "log"), really=really)),
                       ("scontrol", "#!/bin/sh\necho 127.0.0.1\necho another\n")):
        (file.parent / name).write_text(text)
        (file.parent / name).chmod(0o755)
    variables = {"SLURM_JOB_ID": str(free_port()), "SLURM_JOB_NODELIST": "node[1-2]", "SLURM_JOB_NUM_NODES": str(nodes),
                 "PATH": f"{file.parent}:{os.environ['PATH']}"}
    done = subprocess.run(["bash", str(file)], env={**os.environ, **variables}, capture_output=True, text=True,
                          timeout=200)
    return done, *json.loads((file.parent / "log").read_text())


def test_a_batch_file_runs_torchrun_on_every_machine(tiny, tmp_path):
    file = tmp_path / "a job.sbatch"
    tiny = replace(tiny, run_dir=str(tmp_path / "runs" / "it's one"), device="auto")
    text = write_slurm(tiny, file, 2, 2)
    assert file.read_text() == text and subprocess.run(["bash", "-n", str(file)]).returncode == 0
    ask = dict(re.findall(r"^#SBATCH --(\S+)=(.+)$", text, re.MULTILINE))
    assert (ask["nodes"], ask["ntasks-per-node"], ask["gpus-per-node"]) == ("2", "1", "2")
    done, words, variables = submit(file, nodes=2, really=False)
    assert done.returncode == 0, done.stderr
    from torch.distributed.run import get_args_parser

    asked = get_args_parser().parse_args(words[3:])
    assert words[:3] == [sys.executable, "-m", "torch.distributed.run"]
    assert (asked.nnodes, asked.nproc_per_node, asked.rdzv_backend, asked.max_restarts) == ("2", "2", "c10d", 0)
    assert re.fullmatch(r"127\.0\.0\.1:2\d{4}", asked.rdzv_endpoint) and asked.rdzv_id == variables["SLURM_JOB_ID"]
    assert (asked.module, asked.training_script) == (True, "tinylib")
    assert asked.training_script_args == ["train", "--config", f"{tiny.run_dir}/config.json", "--resume"]
    assert variables["TINYLIB_LAUNCHED"] == variables["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] == "1"
    assert Run(tiny.run_dir).state == "stopped" and "sbatch" in Run(tiny.run_dir).status()["detail"]
    with pytest.raises(FileExistsError, match="is taken"):
        write_slurm(tiny, file, 2)
    with pytest.raises(ConfigError, match="total_batch_size=256 is not a multiple"):
        write_slurm(replace(tiny, run_dir=str(tmp_path / "two")), file, 1, 3)


@pytest.mark.slow
def test_a_batch_file_trains(tiny, tmp_path):
    file = tmp_path / "job.sbatch"
    write_slurm(tiny, file, 1, 2)
    done, _, _ = submit(file, nodes=2, really=True)
    run = Run(tiny.run_dir)
    assert done.returncode == 0, done.stderr
    assert run.state == "finished" and run.read_config()["world_size"] == 2 and not run.alive()

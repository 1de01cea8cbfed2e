"""Launches beside each other and on several machines: who gets which device, who meets whom, what the dead leave."""

from __future__ import annotations

import contextlib
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
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import torch
from ranks import free_port

from tinylib.config import ConfigError, TrainConfig
from tinylib.launch import Run, RunFailed, launch, write_slurm
from tinylib.launch.devices import Neighbour, choose, machine
from tinylib.launch.hints import HINTS, hint
from tinylib.launch.nodes import Spread
from tinylib.launch.run import wait_until
from tinylib.launch.waiting import take
from tinylib.rundir import Process, RunDirectory, plain
from tinylib.shards import open_splits

CHILD = """
import os, sys, time
path = sys.argv[1]
with open(path + "/began", "w") as file: file.write(f"{time.time()} {os.environ.get('CUDA_VISIBLE_DEVICES')}")
while not os.path.exists(path + "/end"): time.sleep(0.01)
with open(path + "/status.json", "w") as file: file.write('{"state": "finished"}')
with open(path + "/ended", "w") as file: file.write(str(time.time()))
"""


@pytest.fixture
def cheap(monkeypatch: pytest.MonkeyPatch) -> None:
    """In place of torchrun a process that says when it began and on which GPUs, and ends when a file says so."""
    monkeypatch.setattr(Spread, "torchrun", lambda spread, directory, resume:
                        [sys.executable, "-S", "-c", CHILD, str(directory.path)])


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


def end(run: Run) -> None:
    """Have the child of a cheap run end, and wait for that."""
    (run.directory.path / "end").touch()
    assert wait_until(lambda: (run.directory.path / "ended").exists() and not run.directory.alive(), 20)


def began(run: Run) -> list[str]:
    """When the child of a cheap run began, and the GPUs it sees."""
    file = run.directory.path / "began"
    assert wait_until(lambda: file.exists() and file.read_text(), 20)
    return file.read_text().split()


def listening(endpoint: str) -> bool:
    host, port = endpoint.split(":")
    with contextlib.suppress(OSError):
        socket.create_connection((host, int(port)), 1).close()
        return True
    return False


def kill_family(process: Process) -> None:
    """What becomes of a machine that loses power, of all it runs for a torchrun."""
    parent = psutil.Process(process.pid)
    for member in [parent, *parent.children(recursive=True)]:
        member.send_signal(signal.SIGKILL)


# One device, several runs

def test_a_second_run_on_a_cpu_is_refused_with_the_ways_out(tiny, tmp_path, cheap, started):
    started.append(launch(replace(tiny, run_dir=str(tmp_path / "first"))))
    with pytest.raises(ConfigError, match=r"a CPU of this machine that other runs have: first \(starting\)") as refusal:
        launch(replace(tiny, run_dir=str(tmp_path / "second")))
    for way in (".wait()", ".stop()", 'if_busy="queue"', 'if_busy="share"', str(tmp_path / "first")):
        assert way in str(refusal.value)
    assert not (tmp_path / "second").exists()
    home = Path(os.environ["TINYLIB_HOME"])
    started.append(launch(replace(tiny, run_dir=str(home / "runs" / "smoke" / "third"))))    # `first` is not in this home
    with pytest.raises(ConfigError, match="other runs have: third"):
        launch(replace(tiny, run_dir=str(tmp_path / "elsewhere" / "fourth")))
    started.append(launch(replace(tiny, run_dir=str(tmp_path / "second")), if_busy="share"))
    end(started[0])
    with pytest.raises(ConfigError, match="second"):    # who shares is there for those who come later
        launch(replace(tiny, run_dir=str(tmp_path / "first")), replace_ended=True)
    assert (tmp_path / "first" / "ended").exists(), "what could not be replaced is untouched"


def test_a_run_in_this_very_process_holds_the_cpu_too(tiny, tmp_path, cheap):
    directory = RunDirectory(tmp_path / "by hand")
    directory.create({"train": plain(tiny), "world_size": 1})
    directory.write_pid("rank0")
    with pytest.raises(ConfigError, match="by hand"):
        launch(tiny)
    directory.forget_pid("rank0")
    launch(tiny).stop()


def test_queued_runs_start_one_after_the_other_in_order(tiny, tmp_path, cheap, started):
    first = launch(replace(tiny, run_dir=str(tmp_path / "first")))
    started.append(first)
    asked = time.monotonic()
    queued = [launch(replace(tiny, run_dir=str(tmp_path / name)), if_busy="queue") for name in ("a", "b", "c")]
    started += queued
    assert time.monotonic() - asked < 6 and {run.state for run in queued} == {"queued"}
    with pytest.raises(ConfigError, match=r"a \(queued\)"):
        launch(replace(tiny, run_dir=str(tmp_path / "d")))
    queued[1].stop()
    assert queued[1].state == "stopped" and not queued[1].directory.alive()
    assert not any((run.directory.path / "began").exists() for run in queued)
    end(first)
    began(queued[0])
    time.sleep(1)
    assert queued[2].state == "queued" and not (queued[2].directory.path / "began").exists()
    end(queued[0])
    assert float(began(queued[2])[0]) > float((queued[0].directory.path / "ended").read_text())
    end(queued[2])
    assert queued[2].state == "finished" and not (queued[1].directory.path / "began").exists()


def test_of_many_launches_in_one_moment_one_gets_the_cpu(tiny, tmp_path, cheap, started):
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


def test_launches_leave_nothing_behind(tiny, cheap):
    this = psutil.Process()
    threads, descriptors = this.num_threads(), this.num_fds()
    for number in range(3):
        run = launch(tiny, replace_ended=True)
        run.stop() if number == 1 else end(run)
        assert not run.directory.alive()
    assert wait_until(lambda: this.num_threads() == threads and not this.children(), 10)
    assert this.num_fds() == descriptors


def test_a_killed_agent_whose_ranks_live_on_still_holds_its_device(tiny, tmp_path, cheap, sleeper):
    run = launch(replace(tiny, run_dir=str(tmp_path / "first")))
    run.directory.write_pid("rank0", Process.of(sleeper.pid))
    kill_family(run.directory.processes()["agent"])
    assert wait_until(lambda: list(run.directory.alive()) == ["rank0"], 10)
    with pytest.raises(ConfigError, match="first"):
        launch(tiny)
    sleeper.kill()
    assert wait_until(lambda: not run.directory.alive(), 10)
    launch(tiny).stop()


def test_gpus_are_given_out_while_there_are_enough(tiny, tmp_path, cheap, started, monkeypatch):
    """On GPUs that are only counted: there are none here."""
    monkeypatch.setattr("torch.cuda.device_count", lambda: 4)
    config = replace(tiny, device="cuda")
    for name, processes, visible in (("a", 2, "0,1"), ("b", 1, "2")):
        started.append(launch(replace(config, run_dir=str(tmp_path / name)), processes))
        assert began(started[-1])[1] == visible
    with pytest.raises(ConfigError, match=r"needs 2 GPUs of this machine that other runs have: a .*b "):
        launch(replace(config, run_dir=str(tmp_path / "c")), 2)
    started.append(launch(replace(tiny, run_dir=str(tmp_path / "on the cpu"))))
    shared = launch(replace(config, run_dir=str(tmp_path / "c")), 2, if_busy="share")
    started.append(shared)
    assert began(shared)[1] == "3,0"
    end(shared)
    directory = RunDirectory(tmp_path / "queued")
    directory.create({"train": plain(config)})
    directory.write_pid("agent")
    directory.write_status("queued")
    assert take(directory, 2) == [] and directory.status()["state"] == "queued"
    end(started[0])
    assert take(directory, 2) == ["cuda:0", "cuda:1"] and directory.status()["state"] == "starting"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "6, 7")
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    assert machine("auto") == ["cuda:6", "cuda:7"]
    directory.forget_pid("agent")


def test_who_waits_longer_goes_first():
    run, gpus = Run("other"), ["cuda:0", "cuda:1"]
    waiting = Neighbour(run, frozenset(gpus), queued=True, since_s=5.0)
    assert choose(gpus, 1, [waiting]) == ([], [waiting])
    assert choose(gpus, 1, [waiting], since_s=6.0) == ([], [waiting])
    assert choose(gpus, 1, [waiting], since_s=4.0) == (["cuda:0"], [])


@pytest.mark.skipif(torch.cuda.is_available() or torch.backends.mps.is_available(), reason="there is such a device")
@pytest.mark.parametrize("kind", ["cuda", "mps"])
def test_a_device_that_is_not_here_is_refused_at_once(tiny, kind):
    with pytest.raises(ConfigError, match=f"device='{kind}' is not on this machine"):
        launch(replace(tiny, device=kind))


@pytest.mark.parametrize(("options", "message"), [
    ({"if_busy": "wait"}, "if_busy='wait' is not a choice: use refuse, queue or share"),
    ({"max_restarts": -1}, "max_restarts=-1 is not a whole number of at least 0"),
    ({"nnodes": 0}, "nnodes=0 is not a number of machines"),
    ({"nnodes": "2:1"}, "nnodes='2:1' is not a number of machines"),
    ({"nnodes": 2}, "rdzv_endpoint=None is not where 2 machines can meet: use host:port"),
    ({"nnodes": 2, "rdzv_endpoint": "node1:0"}, "rdzv_endpoint='node1:0' is not where"),
    ({"rdzv_endpoint": "node1:29400"}, "rdzv_endpoint='node1:29400' is for several machines"),
    ({"nnodes": "1:2", "rdzv_endpoint": "node1:29400", "max_restarts": 0}, "nnodes=1:2 would mean nothing"),
    ({"nnodes": 2, "rdzv_endpoint": "node1:29400", "if_busy": "queue"}, 'if_busy="queue" is for one machine'),
    ({"nnodes": (1, 3), "rdzv_endpoint": "node1:29400"},
     "total_batch_size=256 doesn't divide among each of 1, 2 or 3 processes, as nnodes=1:3 may make it: use a multiple "
     "of 384, such as 384"),
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


def test_killed_processes_are_named(tiny, tmp_path, sleeper):
    directory = RunDirectory(tmp_path / "run")
    directory.create({"train": plain(tiny), "world_size": 2})
    directory.write_status("running", step=3)
    directory.write_pid("rank1", Process.of(sleeper.pid))
    run = Run(directory.path)
    assert run.state == "running" and run.failure() is None
    sleeper.kill()
    with pytest.raises(RunFailed) as failure:
        run.wait(timeout_s=20)
    assert f"run run: rank1 (pid {sleeper.pid}) ended without a word, killed from outside" in str(failure.value)
    assert "hint: a process was ended by force (kill -9)" in str(failure.value).splitlines()[-1]
    directory.write_error(0, "Traceback …\nRuntimeError: Connection closed by peer\nrank1 is gone without a word")
    assert run.failure().startswith("rank 0 of run run:\nTraceback") and "ended by force" in run.failure()


# Processes that may start again, processes on other machines

def test_a_failure_that_torchrun_may_mend_is_not_the_end(tiny, tmp_path, sleeper):
    directory = RunDirectory(tmp_path / "run")
    directory.create({"train": plain(tiny), "world_size": 2, "launch": Spread(2, max_restarts=1).facts()})
    directory.write_pid("agent", Process.of(sleeper.pid))
    directory.write_status("failed", step=3)
    directory.write_error(0, "Traceback …")
    run = Run(directory.path)
    assert run.state == "restarting" and run.failure() is None
    with pytest.raises(TimeoutError):
        run.wait(timeout_s=0.5)
    sleeper.kill()
    assert wait_until(lambda: run.state == "failed", 10) and "Traceback" in run.failure()


def test_processes_of_another_machine_are_believed_while_the_status_is_fresh(tiny, tmp_path):
    directory = RunDirectory(tmp_path / "run")
    directory.create({"train": plain(tiny), "world_size": 2})
    directory.write_pid("rank0", Process(os.getpid(), psutil.Process().create_time(), host="elsewhere"))
    directory.write_status("running", step=3)
    run = Run(directory.path)
    assert not directory.alive() and list(directory.remote_processes()) == ["rank0"] and run.state == "running"
    with pytest.raises(ValueError, match=r"still runs \(rank0 \d+ on elsewhere"):
        run.remove()
    with pytest.raises(ValueError, match="no process on this machine: stop it on elsewhere"):
        run.stop()
    directory.sweep()
    assert list(directory.processes()) == ["rank0"] and not directory.killed_ranks()
    os.utime(directory.status_file, (time.time() - 301, time.time() - 301))
    assert run.state == "lost" and not directory.remote_processes()
    run.remove()


@pytest.fixture
def pair(tiny: TrainConfig, tmp_path: Path):
    """A long run that two machines may share, and where they meet."""
    endpoint = f"127.0.0.1:{free_port()}"
    return replace(tiny, run_dir=str(tmp_path / "run"), steps=100_000, save_every=20, eval_every=None, keep=2), endpoint


def world(run: Run) -> tuple[str, int]:
    status = run.status()
    return run.state, status.get("world_size", 0)


def steps_go_on(run: Run, state: tuple[str, int], timeout_s: float = 300) -> bool:
    """Whether the run gets to `state`, and takes some steps there."""
    if not wait_until(lambda: world(run) == state and run.status()["state"] == "running", timeout_s):
        return False
    first = run.status().get("step", 0)
    return wait_until(lambda: world(run) == state and run.status().get("step", 0) > first + 10, timeout_s)


def check_no_seam(run: Run) -> None:
    steps = list(run.metrics().index)
    assert steps == list(range(1, len(steps) + 1))


def test_two_machines_train_one_run(pair, capsys):
    """As two torchruns on loopback: one launched, one by the command that the first one prints."""
    config, endpoint = pair
    config = replace(config, steps=12, eval_every=6)
    run = launch(config, 1, nnodes=2, rdzv_endpoint=endpoint)
    assert f"on each further machine: {run.join_command}" in capsys.readouterr().out
    with pytest.raises(ConfigError, match="steps is 12 on the machine that began this run, and 13 here"):
        launch(replace(config, steps=13), 1, nnodes=2, rdzv_endpoint=endpoint)
    with pytest.raises(ValueError, match="still runs"):
        launch(config, 1)
    second = subprocess.run(shlex.split(run.join_command), capture_output=True, text=True, timeout=120)
    summary = run.wait(timeout_s=60)
    assert second.returncode == 0 and summary["step"] == 12
    assert run.directory.read_config()["world_size"] == 2 and len(run.status()["ranks"]) == 2
    assert run.log(0) and (run.directory.log_file(1)).exists()
    assert not run.directory.alive()
    check_no_seam(run)


@pytest.mark.slow
@pytest.mark.timeout(1_200)
def test_a_machine_goes_and_comes_back(pair):
    config, endpoint = pair
    options = {"nnodes": "1:2", "rdzv_endpoint": endpoint}
    run = launch(config, 1, **options)
    try:
        assert wait_until(lambda: listening(endpoint), 120)
        assert launch(config, 1, **options).directory.path == run.directory.path
        assert steps_go_on(run, ("running", 2)), run.log(None)
        kill_family(run.directory.processes()["agent2"])
        assert steps_go_on(run, ("running", 1)), run.log(None)
        launch(config, 1, **options)
        assert steps_go_on(run, ("running", 2)), run.log(None)
        assert set(run.directory.alive()) == {"agent", "agent2", "rank0", "rank1"}
    finally:
        run.stop()
    assert run.state == "stopped" and not run.directory.alive()
    assert run.directory.saved_steps()[-1] == run.metrics().index[-1]
    check_no_seam(run)


@pytest.mark.slow
@pytest.mark.timeout(1_200)
def test_without_the_machine_where_all_meet_the_run_ends_says_so_and_goes_on_when_started_again(pair):
    config, endpoint = pair
    run = launch(config, 1, nnodes="1:2", rdzv_endpoint=endpoint)
    try:
        assert wait_until(lambda: listening(endpoint), 120)
        launch(config, 1, nnodes="1:2", rdzv_endpoint=endpoint)
        assert wait_until(lambda: world(run) == ("running", 2) and len(run.directory.saved_steps()) > 0, 300)
        kill_family(run.directory.processes()["agent"])
        with pytest.raises(RunFailed, match=r"hint: (another process, or another machine|a process was ended by)"):
            run.wait(timeout_s=60)
        assert run.state == "failed" and not run.directory.alive()
        saved = run.directory.saved_steps()[-1]
        assert steps_go_on(run.resume(), ("running", 1)), run.log(None)
        assert [record["step"] for record in run.directory.records() if record["kind"] == "header"][-1] == saved
    finally:
        run.stop()
    assert run.state == "stopped" and not run.directory.alive()
    check_no_seam(run)


@pytest.mark.slow
@pytest.mark.timeout(1_200)
def test_a_rank_that_is_killed_comes_back_with_max_restarts(tiny, tmp_path):
    run = launch(replace(tiny, steps=500, save_every=20, eval_every=None), 2, max_restarts=1)
    try:
        assert wait_until(lambda: len(run.directory.saved_steps()) > 0, 300)
        os.kill(run.directory.processes()["rank1"].pid, signal.SIGKILL)
        assert run.wait(timeout_s=600)["step"] == 500
    finally:
        run.stop()
    assert len([record for record in run.directory.records() if record["kind"] == "header"]) == 2
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
    text = write_slurm(tiny, file, 2, "1:2")
    assert file.read_text() == text and subprocess.run(["bash", "-n", str(file)]).returncode == 0
    ask = dict(re.findall(r"^#SBATCH --(\S+)=(.+)$", text, re.MULTILINE))
    assert (ask["nodes"], ask["ntasks-per-node"], ask["gpus-per-node"]) == ("1-2", "1", "2")
    done, words, variables = submit(file, nodes=2, really=False)
    assert done.returncode == 0, done.stderr
    from torch.distributed.run import get_args_parser

    asked = get_args_parser().parse_args(words[3:])
    assert words[:3] == [sys.executable, "-m", "torch.distributed.run"]
    assert (asked.nnodes, asked.nproc_per_node, asked.rdzv_backend, asked.max_restarts) == ("2", "2", "c10d", 3)
    assert re.fullmatch(r"127\.0\.0\.1:2\d{4}", asked.rdzv_endpoint) and asked.rdzv_id == variables["SLURM_JOB_ID"]
    assert (asked.module, asked.training_script) == (True, "tinylib")
    assert asked.training_script_args == ["train", "--config", f"{tiny.run_dir}/config.json", "--resume"]
    assert Run(tiny.run_dir).state == "stopped" and "sbatch" in Run(tiny.run_dir).status()["detail"]
    with pytest.raises(FileExistsError, match="is taken"):
        write_slurm(tiny, file, 2)
    with pytest.raises(ConfigError, match="of 1, 2 or 3 processes"):
        write_slurm(replace(tiny, run_dir=str(tmp_path / "two")), file, 1, "1:3")


@pytest.mark.slow
def test_a_batch_file_trains(tiny, tmp_path):
    file = tmp_path / "job.sbatch"
    write_slurm(tiny, file, 1, 2)
    done, _, _ = submit(file, nodes=2, really=True)
    run = Run(tiny.run_dir)
    assert done.returncode == 0, done.stderr
    assert run.state == "finished" and run.directory.read_config()["world_size"] == 2 and not run.directory.alive()

"""Runs that are killed, interrupted, starved of disk or robbed of a rank: whatever happens, they say so and go on.

Most runs here are forked from one process that has imported torch, the nursery: so a run starts in a moment, and what
is to go wrong in it is a few lines of code that it runs first.
"""

from __future__ import annotations

import json
import math
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from hashlib import sha256
from pathlib import Path

import pytest
import torch
from ranks import free_port
from safetensors.torch import load_file

from tinylib import checkpoint, train
from tinylib.config import TrainConfig
from tinylib.files import replace_folder, write_folder
from tinylib.optim import GradScaler, Optimizer
from tinylib.rundir import Eval, Header, RunDirectory, Step, plain
from tinylib.shards import build
from tinylib.tokenizer import Tokenizer

pytestmark = pytest.mark.skipif(os.name != "posix", reason="signals and forks are POSIX's")

NURSERY = """
import json, os, sys, traceback
import torch._dynamo
from tinylib.config import TrainConfig, from_dict
from tinylib.train import train
outputs = {}
for line in sys.stdin:
    order = json.loads(line)
    if "wait" in order:
        with open(outputs.pop(order["wait"])) as output:
            said = output.read()
        print(json.dumps([os.waitstatus_to_exitcode(os.waitpid(order["wait"], 0)[1]), said]), flush=True)
        continue
    read, write = os.pipe()
    pid = os.fork()
    if pid:
        os.close(write)
        outputs[pid] = read
        print(pid, flush=True)
        continue
    os.dup2(write, 1)
    os.dup2(write, 2)
    os.close(write)
    os.environ.update(order["environment"])
    code = 1
    try:
        exec(order["code"])
        train(from_dict(TrainConfig, order["config"]), resume=order["resume"], callback=globals().get("callback"))
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(code)    # to take torch apart takes longer than such a run
"""

AFTER_STEP = """
import os, resource, signal
from tinylib.rundir import Step
rank = int(os.environ.get("RANK", "0"))
def callback(record):
    if isinstance(record, Step) and record.step == {step} and rank in {ranks}:
        {action}
"""
"""Code that has some ranks of a run do something once a step is recorded."""

BEFORE_CHANGE = """
import os, signal, sys
left = {count}
def hook(event, args):
    global left
    if event in ("os.rename", "os.remove", "os.rmdir", "os.mkdir") or event == "open" and (args[1] or "r")[0] in "wa":
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
sys.addaudithook(hook)
"""
"""Code that kills its process just before it changes the files for the `count`-th time."""

IN_MICRO_BATCH = """
import os, signal, tinylib.train as t
forward, calls = t.GPT.forward, 0
def _forward(self, *args, **settings):
    global calls
    calls += 1
    if calls == {call}:
        os.kill(os.getpid(), signal.SIGTERM)
    return forward(self, *args, **settings)
t.GPT.forward = _forward
"""
"""Code that has a run signalled in the `call`-th forward pass."""

LAST_STEP = """
from tinylib.rundir import Header, Step
done = 0
def callback(record):
    global done
    if isinstance(record, Header | Step):
        done = record.step
"""
"""Code that counts the steps of a run."""

IN_EVALUATION = LAST_STEP + """
import os, signal, tinylib.train as t
score = t.score
def _score(*args, **options):
    if done == {step}:
        os.kill(os.getpid(), signal.{number})
    return score(*args, **options)
t.score = _score
"""
"""Code that has a run signalled as the evaluation after a step begins."""

NO_DISK = "resource.setrlimit(resource.RLIMIT_FSIZE, ({bytes}, {bytes}))"
"""Code after which no file can grow beyond some bytes; Python ignores the signal that would say so."""


class Nursery:
    """A process whose children are runs."""

    def __init__(self) -> None:
        self.process = subprocess.Popen([sys.executable, "-c", NURSERY], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                        text=True)

    def start(self, config: TrainConfig, code: str = "", resume: bool = True, **environment: object) -> int:
        """The pid of a new run that executes `code` first."""
        return self._ask(config=plain(config), code=code, resume=resume,
                         environment={name: str(value) for name, value in environment.items()})

    def wait(self, pid: int) -> tuple[int, str]:
        """Exit code of a run, negative for a signal, and what it printed."""
        return tuple(self._ask(wait=pid))

    def run(self, config: TrainConfig, code: str = "", resume: bool = True) -> tuple[int, str]:
        return self.wait(self.start(config, code, resume))

    def start_ranks(self, config: TrainConfig, code: str = "", ranks: int = 2) -> list[int]:
        """The pids of the ranks of a new run; there is no torchrun that would end them all when one ends."""
        port = free_port()
        return [self.start(config, code, RANK=rank, LOCAL_RANK=rank, WORLD_SIZE=ranks, LOCAL_WORLD_SIZE=ranks,
                           MASTER_ADDR="127.0.0.1", MASTER_PORT=port) for rank in range(ranks)]

    def _ask(self, **order: object) -> object:
        print(json.dumps(order), file=self.process.stdin, flush=True)
        return json.loads(self.process.stdout.readline())


@pytest.fixture(scope="module")
def nursery() -> Iterator[Nursery]:
    found = Nursery()
    yield found
    found.process.stdin.close()
    found.process.stdout.close()
    assert found.process.wait(10) == 0


@pytest.fixture
def often(tiny: TrainConfig) -> TrainConfig:
    """A run that saves after every step."""
    return replace(tiny, steps=12, save_every=1, keep=2, eval_tokens=1024)


@pytest.fixture
def uninterrupted(nursery: Nursery, tmp_path: Path):
    """What the run of a configuration comes to when nothing goes wrong."""
    def outcome_of(config: TrainConfig) -> tuple:
        whole = replace(config, run_dir=str(tmp_path / "whole"))
        assert nursery.run(whole, resume=False)[0] == 0
        return outcome(whole)
    return outcome_of


def outcome(config: TrainConfig) -> tuple:
    """All that must come out the same: metrics but for times, checkpoints, and every bit of the last one."""
    directory = RunDirectory(config.run_dir)
    folder = directory.checkpoint()
    tensors = load_file(folder / checkpoint.WEIGHTS) | load_file(folder / checkpoint.OPTIMIZER)
    metrics = [directory.metrics()[["loss", "lr_multiplier", "grad_norm", "tokens"]].reset_index().values.tolist(),
               directory.metrics("eval")[["val_bpb", "val_loss"]].reset_index().values.tolist()]
    state = checkpoint.read_train_state(folder)
    return (directory.saved_steps(), metrics, directory.status()["state"], state["step"], state["loss_scale"],
            {name: sha256(tensor.numpy().tobytes()).hexdigest() for name, tensor in tensors.items()})


def parts(directory: RunDirectory) -> list[Path]:
    """What was left half written."""
    return list(directory.path.rglob("*.part"))


def check_checkpoints(config: TrainConfig) -> None:
    """Every checkpoint that is listed can be resumed from, and no step was done twice or lost unsaved."""
    directory = RunDirectory(config.run_dir)
    for step in directory.saved_steps():
        folder = directory.checkpoint(step)
        optimizer = Optimizer(checkpoint.load_model(folder), config)
        optimizer.load_state(load_file(folder / checkpoint.OPTIMIZER))
        assert checkpoint.read_train_state(folder)["step"] == step
        assert Tokenizer.load(folder / checkpoint.TOKENIZER).vocab_size == config.model.vocab_size
    recorded = directory.last(Step)
    newest = max(directory.saved_steps(), default=0)
    assert recorded is None or recorded.step - newest <= config.save_every


# Killed at any moment

@pytest.mark.parametrize("kills", [12, pytest.param(100, marks=pytest.mark.slow)])
def test_killed_before_any_change_of_its_files_a_run_goes_on(nursery, often, uninterrupted, kills) -> None:
    config, chance, in_saving, newest = replace(often, steps=kills), random.Random(kills), 0, 0
    directory = RunDirectory(config.run_dir)
    for _ in range(kills):
        assert nursery.run(config, BEFORE_CHANGE.format(count=chance.randint(1, 60)))[0] == -signal.SIGKILL
        check_checkpoints(config)
        in_saving += any(parts(RunDirectory(directory.checkpoints)))
        assert max(directory.saved_steps(), default=0) >= newest, "a whole checkpoint was lost"
        newest = max(directory.saved_steps(), default=0)
    assert in_saving > kills / 5 and newest > 2
    assert nursery.run(config)[0] == 0
    assert outcome(config) == uninterrupted(config) and not parts(directory) and not directory.processes()


@pytest.mark.slow
@pytest.mark.parametrize("save_every", [1, 2])
def test_killed_at_fifty_random_moments_a_run_goes_on(nursery, often, uninterrupted, save_every, capsys) -> None:
    config, chance, in_saving, kills = replace(often, steps=200, save_every=save_every), random.Random(0), 0, 50
    directory, began = RunDirectory(config.run_dir), time.monotonic()
    expected = uninterrupted(config)
    apart_s = (time.monotonic() - began) / kills
    for kill in range(kills):
        pid, newest = nursery.start(config), max(directory.saved_steps(), default=0)
        while kill == 0 and not directory.saved_steps():
            time.sleep(0.001)
        time.sleep(chance.uniform(0, 1.2 * apart_s))
        os.kill(pid, signal.SIGKILL)
        assert nursery.wait(pid)[0] == -signal.SIGKILL, "it was done before it could be killed"
        check_checkpoints(config)
        in_saving += any(parts(RunDirectory(directory.checkpoints)))
        assert max(directory.saved_steps()) >= newest
    with capsys.disabled():
        print(f"\n{in_saving} of {kills} kills fell into saving; step {directory.saved_steps()[-1]} was reached")
    assert in_saving > 2
    assert nursery.run(config)[0] == 0
    assert outcome(config) == expected and not parts(directory)


def test_killed_in_evaluation_a_run_goes_on_from_that_step(nursery, tiny, uninterrupted) -> None:
    """Also in the last one, which a run that is already trained does again."""
    directory = RunDirectory(tiny.run_dir)
    for step in (4, 6):
        assert nursery.run(tiny, IN_EVALUATION.format(step=step, number="SIGKILL"))[0] == -signal.SIGKILL
        assert directory.saved_steps()[-1] == step and directory.last(Eval).step == step - 2
        assert directory.status()["state"] == "lost"
    assert nursery.run(tiny)[0] == 0
    assert outcome(tiny) == uninterrupted(tiny)
    assert [record.step for record in directory.records() if isinstance(record, Header)] == [0, 4, 6]


def test_a_folder_that_was_about_to_be_replaced_comes_back(tmp_path) -> None:
    """Killed between the two renames, or failing in the second, the old one is what there is."""
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    old = tmp_path / f".a.old.{dead.pid}.part"
    old.mkdir()
    (old / "file").write_text("whole")
    (tmp_path / f".a.{dead.pid}.part").mkdir()
    (tmp_path / f".a.{os.getpid()}.part").mkdir()    # left by an earlier process of the same pid
    with pytest.raises(RuntimeError), write_folder(tmp_path / "a", ["file"]):
        raise RuntimeError
    assert [path.name for path in tmp_path.iterdir()] == ["a"] and (tmp_path / "a/file").read_text() == "whole"
    with pytest.raises(OSError):
        replace_folder(tmp_path / "missing", tmp_path / "a")
    assert [path.name for path in tmp_path.iterdir()] == ["a"] and (tmp_path / "a/file").read_text() == "whole"


def test_the_newest_and_the_best_checkpoint_stay(nursery, tiny) -> None:
    """The best is older than the newest two, and so it stays when the run goes on after a kill."""
    worse = LAST_STEP + """
import tinylib.train as t
from dataclasses import replace
fair = t.score
def worse(*args, **options):
    found = fair(*args, **options)
    return replace(found, text_nats=found.text_nats + 1e6 * (done != 4))
t.score = worse
"""
    config = replace(tiny, steps=20, keep=2)
    assert nursery.run(config, worse + IN_EVALUATION.format(step=12, number="SIGKILL"))[0] == -signal.SIGKILL
    directory = RunDirectory(config.run_dir)
    assert directory.saved_steps() == [4, 10, 12] and directory.best_step() == 4
    assert nursery.run(config, worse)[0] == 0
    assert directory.saved_steps() == [4, 18, 20] and directory.best_step() == 4
    check_checkpoints(config)


# Stopped by a signal

@pytest.mark.parametrize("number", ["SIGINT", "SIGTERM"])
def test_a_signal_saves_and_ends_and_the_run_goes_on(nursery, tiny, uninterrupted, number) -> None:
    config = replace(tiny, steps=12, save_every=100)
    expected = uninterrupted(config)
    stops = AFTER_STEP.format(step=6, ranks=(0,), action=f"signal.raise_signal(signal.{number})")
    code, said = nursery.run(config, stops, resume=False)
    directory = RunDirectory(config.run_dir)
    assert code == 0, said
    assert directory.saved_steps() == [6] and directory.status()["step"] == 6 and not directory.errors()
    assert directory.status()["state"] == directory.summary().state == "stopped"
    with pytest.raises(ValueError, match="already holds a run: resume it"):
        train.train(config)
    assert nursery.run(config)[0] == 0
    shutil.rmtree(directory.checkpoint_path(6))
    assert outcome(config) == expected


@pytest.mark.parametrize(("step", "before"), [(4, 2), (6, 4)])
def test_a_signal_in_evaluation_ends_it_and_resuming_makes_it_again(nursery, tiny, uninterrupted, step, before) -> None:
    expected = uninterrupted(tiny)
    assert nursery.run(tiny, IN_EVALUATION.format(step=step, number="SIGTERM"))[0] == 0
    directory = RunDirectory(tiny.run_dir)
    assert directory.last(Eval).step == before
    assert (directory.status()["state"], directory.saved_steps()[-1]) == ("stopped", step)
    assert nursery.run(tiny)[0] == 0
    assert outcome(tiny) == expected


@pytest.mark.parametrize(("call", "last"), [(2, 0), (4, 1), (6, 1), (11, 2)])
def test_a_signal_ends_the_step_after_its_micro_batch(nursery, tiny, uninterrupted, call, last) -> None:
    """Of four micro-batches to a step; after its last one, the step is whole, and the next does not begin."""
    config = replace(tiny, eval_every=None, save_every=None)
    expected = uninterrupted(config)
    code, said = nursery.run(config, IN_MICRO_BATCH.format(call=call), resume=False)
    directory = RunDirectory(config.run_dir)
    assert code == 0, said
    assert directory.status()["state"] == "stopped" and directory.status()["step"] == last
    assert directory.saved_steps() == ([last] if last else []), "nothing is no checkpoint"
    assert nursery.run(config)[0] == 0
    if last:
        shutil.rmtree(directory.checkpoint_path(last))
    assert outcome(config) == expected


def test_a_second_signal_does_not_wait(nursery, tiny) -> None:
    twice = "for _ in range(2): signal.raise_signal(signal.SIGINT)"
    code, said = nursery.run(tiny, AFTER_STEP.format(step=3, ranks=(0,), action=twice))
    assert code != 0 and "KeyboardInterrupt" in said
    assert RunDirectory(tiny.run_dir).status()["state"] == "failed" and RunDirectory(tiny.run_dir).saved_steps() == [2]
    assert nursery.run(tiny)[0] == 0


@pytest.mark.parametrize("signalled", [0, 1])
def test_a_signal_to_one_rank_stops_all_at_the_same_step(nursery, tiny, signalled) -> None:
    config = replace(tiny, steps=400, save_every=None, eval_every=None)
    ranks = nursery.start_ranks(config, AFTER_STEP.format(step=3, ranks=(signalled,),
                                                          action="signal.raise_signal(signal.SIGINT)"))
    assert [nursery.wait(pid)[0] for pid in ranks] == [0, 0]
    directory = RunDirectory(config.run_dir)
    assert directory.saved_steps() == [3] == [directory.last(Step).step]
    assert directory.status()["state"] == "stopped" and not directory.errors() and not directory.processes()


# Numbers that aren't finite

@pytest.mark.parametrize(("save_every", "good"), [(1, "of step 4"), (100, "none")])
def test_a_loss_that_is_not_finite_names_step_batch_and_the_last_good_checkpoint(tiny, monkeypatch, save_every,
                                                                                good) -> None:
    """The weights are spoilt after step 5, so its checkpoint is no good one."""
    update = train.Trainer._update

    def spoil(self, data_s):
        update(self, data_s)
        if self.step == 5:
            next(self.model.parameters()).data.fill_(math.nan)

    monkeypatch.setattr(train.Trainer, "_update", spoil)
    config = replace(tiny, steps=10, save_every=save_every, seed=3)
    with pytest.raises(FloatingPointError, match=rf"loss=nan, .* at step 6 \(batch 5 of seed 3\): lower the learning "
                                                 rf"rates; the last good checkpoint is {good}$"):
        train.train(config)
    directory = RunDirectory(config.run_dir)
    assert directory.status()["state"] == "failed" and "batch 5 of seed 3" in directory.status()["error"]
    assert directory.last(Step).step == 5


def test_ranks_whose_loss_is_not_finite_all_say_so(nursery, tiny) -> None:
    pids = nursery.start_ranks(replace(tiny, embedding_lr=1e39))
    assert [nursery.wait(pid)[0] for pid in pids] == [1, 1]
    directory = RunDirectory(tiny.run_dir)
    assert [error["traceback"].splitlines()[-1].split(":")[0] for error in directory.errors()] == 2 * [
        "FloatingPointError"]
    assert directory.status()["state"] == "failed" and "lower the learning rates" in directory.status()["error"]


def test_float16_follows_float32(tiny, tmp_path) -> None:
    train.train(tiny)
    half = replace(tiny, run_dir=str(tmp_path / "half"), dtype="float16")
    train.train(half)
    found, expected = (RunDirectory(config.run_dir).metrics() for config in (half, tiny))
    assert found["loss"].tolist() == pytest.approx(expected["loss"].tolist(), rel=0.01)
    assert found["loss"].tolist() != expected["loss"].tolist() and (found["lr_multiplier"] > 0).all()
    assert found["grad_norm"].tolist() == pytest.approx(expected["grad_norm"].tolist(), rel=0.05)


def test_overflow_in_float16_leaves_updates_out_and_training_goes_on(tiny, monkeypatch) -> None:
    """From a scale of 2^40 down to one that fits: the weights wait, then learn; a resumed run keeps the scale."""
    monkeypatch.setattr(train, "GradScaler", partial(GradScaler, first=2.0**40))
    config = replace(tiny, dtype="float16", steps=60, save_every=60, eval_every=None)
    summary = train.train(config)
    directory = RunDirectory(config.run_dir)
    steps = directory.metrics()
    out = steps["lr_multiplier"] == 0
    assert 10 < out.sum() < 35 and out[1:11].all() and not out[35:].any(), "the first gradient is 0 but for the head's"
    assert (steps["grad_norm"].map(math.isfinite) != out).all()
    assert steps["loss"].iloc[1:12].max() < 1.05 * steps["loss"].iloc[1:12].min(), "the weights wait"
    assert summary.train_loss < 0.7 * math.log(320)
    scale, good = checkpoint.read_train_state(directory.checkpoint())["loss_scale"]
    assert scale == 2.0**(40 - out.sum()) and good == 60 - out[out].index[-1]


def test_the_scale_of_the_loss_falls_at_once_and_rises_slowly() -> None:
    scale = GradScaler(torch.float16, first=8.0, patience=3)
    assert [scale.update(finite) for finite in (True, False, True, True, False)] == [True, False, True, True, False]
    assert (scale.value, scale.good) == (2.0, 0)
    assert all(scale.update(True) for _ in range(7)) and scale.value == 8.0
    for _ in range(3):
        assert scale.update(False) is False
    assert scale.value == 1.0 and scale.update(False), "nothing is left to lower: the trainer raises"
    for dtype in (torch.float32, torch.bfloat16):
        constant = GradScaler(dtype, patience=1)
        assert constant.update(True) and constant.update(False) and constant.value == 1.0


# A full disk

def check_starved(config: TrainConfig, code: int, said: str, saved: list[int]) -> None:
    assert code == 1 and "Traceback" in said, said
    directory = RunDirectory(config.run_dir)
    assert directory.saved_steps() == saved and not parts(directory) and not directory.processes()
    check_checkpoints(config)


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_disk_that_fills_while_saving_ends_the_run_and_says_so(nursery, tiny, uninterrupted, ranks) -> None:
    """No file can be larger than a part of a checkpoint; what is small can still be written."""
    config = replace(tiny, keep=2)
    code = AFTER_STEP.format(step=3, ranks=(0,), action=NO_DISK.format(bytes=100_000))
    pids = [nursery.start(config, code)] if ranks == 1 else nursery.start_ranks(config, code)
    (first, said), *others = map(nursery.wait, pids)
    check_starved(config, first, said, [2])
    assert all(code == 1 for code, _ in others)
    directory = RunDirectory(config.run_dir)
    assert directory.status()["state"] == "failed" and "free some space and resume" in directory.status()["error"]
    assert directory.errors()[0]["rank"] == 0 and "could not be written" in directory.errors()[0]["traceback"]
    assert nursery.run(config)[0] == 0
    assert ranks == 2 or outcome(config) == uninterrupted(config)


def test_where_nothing_can_be_written_the_run_still_ends_and_says_so(nursery, tiny, uninterrupted) -> None:
    fills = AFTER_STEP.format(step=3, ranks=(0,), action=NO_DISK.format(bytes=1))
    full = "import resource; " + NO_DISK.format(bytes=1)
    for code in (fills, full):    # in the middle of a run, and when it is to go on
        exit_code, said = nursery.run(tiny, code)
        check_starved(tiny, exit_code, said, [2])
        assert "the disk is full: free some space and resume; whole checkpoints are untouched, of steps [2]" in said
        assert RunDirectory(tiny.run_dir).status()["state"] == "lost"
    assert nursery.run(tiny)[0] == 0
    assert outcome(tiny) == uninterrupted(tiny)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 2 MB, in memory."""
    disk = tmp_path / "disk"
    disk.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(disk)], capture_output=True,
                          check=False) if sys.platform == "linux" else None
    if done is None or done.returncode:
        pytest.skip("only root may mount a small disk")
    yield disk
    subprocess.run(["umount", "--lazy", str(disk)], check=True)


def test_a_small_disk_fills_up(nursery, often, small_disk, uninterrupted) -> None:
    """First with checkpoints, then to the last byte, in the middle of a line; with room again the run goes on."""
    config = replace(often, run_dir=str(small_disk / "run"), keep=10)
    directory = RunDirectory(config.run_dir)
    code, said = nursery.run(config)
    saved = directory.saved_steps()
    check_starved(config, code, said, list(range(1, 1 + len(saved))))
    assert len(saved) >= 2 and "No space left" in said and directory.status()["state"] == "failed"
    to_the_brim = "fill = partial(open(order['config']['run_dir'] + '/filler', 'wb', 0).write, bytes(512))\n        " \
                  "with suppress(OSError): all(iter(fill, 0))"
    fewer = replace(config, keep=1)
    code, said = nursery.run(fewer, "from contextlib import suppress; from functools import partial\n" +
                             AFTER_STEP.format(step=len(saved) + 2, ranks=(0,), action=to_the_brim))
    assert code == 1 and "the disk is full: free some space and resume" in said, said
    assert directory.saved_steps() and not parts(directory)
    check_checkpoints(fewer)
    (directory.path / "filler").unlink()
    assert nursery.run(fewer)[0] == 0
    assert outcome(fewer)[1:] == uninterrupted(replace(fewer, run_dir=str(small_disk / "run")))[1:]


# A rank that dies

SCRIPT = """
import json, os, sys
from tinylib.config import TrainConfig, from_dict
from tinylib.train import train
order = json.load(open(sys.argv[1]))
exec(order["code"])
train(from_dict(TrainConfig, order["config"]), callback=globals().get("callback"))
"""


@pytest.fixture
def torchrun(tmp_path: Path):
    """Starts a run of two ranks under torchrun."""
    def start(config: TrainConfig, code: str, *options: str) -> subprocess.Popen[str]:
        (tmp_path / "script.py").write_text(SCRIPT)
        (tmp_path / "order.json").write_text(json.dumps({"config": plain(config), "code": code}))
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", *options,
                   str(tmp_path / "script.py"), str(tmp_path / "order.json")]
        environment = {**os.environ, "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}    # rank 0 makes a store at each start
        return subprocess.Popen(command, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=environment)
    return start


@pytest.mark.parametrize("rank", [0, 1])
def test_the_error_of_the_one_rank_that_fails_comes_first(nursery, tiny, rank) -> None:
    """The other ends by itself, and nothing is left of either."""
    fails = "raise RuntimeError('only rank ' + str(rank))"
    pids = nursery.start_ranks(tiny, AFTER_STEP.format(step=3, ranks=(rank,), action=fails))
    ended = [nursery.wait(pid) for pid in pids]
    assert [code for code, _ in ended] == [1, 1]
    directory = RunDirectory(tiny.run_dir)
    first, second = directory.errors()
    assert (first["rank"], second["rank"]) == (rank, 1 - rank)
    assert f"RuntimeError: only rank {rank}" in first["traceback"] and "only rank" not in second["traceback"]
    assert not any("killed from outside" in said for _, said in ended)
    assert directory.status()["state"] == "failed" and not directory.processes()
    assert nursery.run(tiny)[0] == 0 and not directory.errors()


@pytest.mark.parametrize("rank", [0, 1])
def test_a_killed_rank_is_named_by_the_others(nursery, tiny, rank) -> None:
    killed = AFTER_STEP.format(step=3, ranks=(rank,), action="os.kill(os.getpid(), signal.SIGKILL)")
    pids = nursery.start_ranks(tiny, killed)
    ended = [nursery.wait(pid) for pid in pids]
    assert [code for code, _ in ended] == [-9 if other == rank else 1 for other in (0, 1)]
    directory, note = RunDirectory(tiny.run_dir), f"rank{rank} (pid {pids[rank]}) was killed from outside"
    assert list(directory.killed_ranks()) == [f"rank{rank}"] and not directory.alive()
    assert note in ended[1 - rank][1] and [error["rank"] for error in directory.errors()] == [1 - rank]
    assert note in directory.errors()[0]["traceback"]
    if rank == 1:
        assert directory.status()["state"] == "failed" and note in directory.status()["error"]
    assert nursery.run(tiny)[0] == 0
    assert not directory.errors() and not directory.processes() and directory.status()["state"] == "finished"


def test_torchrun_ends_soon_after_a_killed_rank(torchrun, tiny) -> None:
    agent = torchrun(replace(tiny, steps=100_000, save_every=None, eval_every=None), "")
    directory = RunDirectory(tiny.run_dir)
    while not directory.last(Step) and agent.poll() is None:
        time.sleep(0.05)
    ranks = directory.processes()
    os.kill(ranks["rank1"].pid, signal.SIGKILL)
    said = agent.communicate(timeout=60)[0]
    assert agent.returncode == 1, said
    assert not any(process.alive() for process in ranks.values())
    assert f"rank1 (pid {ranks['rank1'].pid}) was killed from outside" in directory.errors()[0]["traceback"]


@pytest.mark.parametrize("asked", ["rank 1", pytest.param("torchrun", marks=pytest.mark.slow)])
def test_a_signal_to_one_rank_or_to_torchrun_saves_and_ends(torchrun, tiny, asked) -> None:
    """Slurm and Ctrl-C tell torchrun, which tells its ranks, and calls its own end a failure though theirs is none."""
    agent = torchrun(replace(tiny, steps=100_000, save_every=None, eval_every=None), "")
    directory = RunDirectory(tiny.run_dir)
    while not directory.last(Step) and agent.poll() is None:
        time.sleep(0.05)
    one = directory.processes()["rank1"].pid
    os.kill(*((agent.pid, signal.SIGTERM) if asked == "torchrun" else (one, signal.SIGINT)))
    said = agent.communicate(timeout=60)[0]
    assert agent.returncode == (asked == "torchrun"), said
    assert directory.status()["state"] == "stopped" and not directory.errors() and not directory.processes()
    assert directory.saved_steps() == [directory.last(Step).step]


@pytest.mark.slow
def test_torchrun_starts_ranks_again_and_they_go_on(torchrun, tiny, nursery, uninterrupted) -> None:
    """A rank kills itself before the first checkpoint, at the next start after it; the third start comes through."""
    dies = "attempt = int(os.environ['TORCHELASTIC_RESTART_COUNT'])\n        " \
           "if record.step == (1, 5, 0)[attempt]: os.kill(os.getpid(), signal.SIGKILL)"
    every = AFTER_STEP.replace("record.step == {step} and ", "")
    agent = torchrun(tiny, every.format(ranks=(1,), action=dies), "--max-restarts=2")
    said = agent.communicate(timeout=120)[0]
    assert agent.returncode == 0, said
    directory = RunDirectory(tiny.run_dir)
    headers = [record.step for record in directory.records() if isinstance(record, Header)]
    assert headers == [0, 0, 4] and directory.saved_steps() == [2, 4, 6]
    assert directory.status()["state"] == "finished" and not directory.errors() and not parts(directory)
    whole = replace(tiny, run_dir=f"{tiny.run_dir} whole")
    assert [nursery.wait(pid)[0] for pid in nursery.start_ranks(whole)] == [0, 0]
    assert outcome(tiny) == outcome(whole)


# Another machine, other data, another recipe

CHANGES = [
    ({"matrix_lr": 0.5, "steps": 8}, r"steps was 6 and is 8: resume with .*; matrix_lr was 0.02 and is 0.5"),
    ({"model": {"softcap": None}}, r"model was \{.*'softcap': 15.0\} and is \{.*'softcap': None\}"),
    ({"data": "others"}, r"shards was '(\w+)' and is '(?!\1)\w+': resume with the value the run began with"),
    ({"data": "nowhere"}, "no token shards in .*nowhere"),
    ({"dtype": "auto"}, "dtype was 'float32' and is 'of another machine' on this machine: resume on one like"),
    ({"device_batch_size": 3}, "total_batch_size=256 is not a multiple"),
]


@pytest.mark.parametrize("state", ["finished", "stopped"])
def test_what_is_not_the_same_run_is_refused_and_changes_nothing(nursery, tiny, tmp_path, monkeypatch, state) -> None:
    stops = AFTER_STEP.format(step=3, ranks=(0,), action="signal.raise_signal(signal.SIGTERM)")
    assert nursery.run(tiny, stops if state == "stopped" else "")[0] == 0
    build({"train": ["Other words."] * 100, "val": ["More."] * 9}, Tokenizer.load(Path(tiny.data) / "tokenizer"),
          tmp_path / "others")
    monkeypatch.setattr("tinylib.hardware.dtype", lambda device: ("of another machine", "a test says so"))
    directory, before = RunDirectory(tiny.run_dir), contents(tiny)
    for change, message in CHANGES:
        changed = dict(change)
        if "model" in changed:
            changed["model"] = replace(tiny.model, **changed["model"])
        if "data" in changed:
            changed["data"] = str(tmp_path / changed["data"])
        with pytest.raises((ValueError, FileNotFoundError), match=message):
            train.train(replace(tiny, **changed), resume=True)
        assert contents(tiny) == before and directory.status()["state"] == state
    assert "dtype was 'float32'" in directory.errors()[0]["traceback"]
    assert nursery.run(tiny)[0] == 0
    assert directory.status()["state"] == "finished" and not directory.errors()


def contents(config: TrainConfig) -> dict[Path, bytes]:
    """Every file of a run but those that say why its last start failed."""
    return {file: file.read_bytes() for file in RunDirectory(config.run_dir).path.rglob("*")
            if file.is_file() and not file.name.endswith(".error.json")}

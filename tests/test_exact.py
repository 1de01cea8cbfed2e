"""Exactness: one global batch however it is split, resuming without a seam, and a tie that nothing undoes."""

from __future__ import annotations

import copy
import importlib
import random
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from ranks import Job, cut, ending, losses, signalled, story, torchrun
from safetensors.torch import load_file
from torch.nn.parallel import DistributedDataParallel

from tinylib import checkpoint
from tinylib.config import PRESETS, ConfigError, GPTConfig, TrainConfig
from tinylib.distributed import World
from tinylib.model import GPT
from tinylib.optim import GradScaler, Optimizer
from tinylib.rundir import RunDirectory
from tinylib.shards import Batch, Shards, build
from tinylib.tokenizer import Tokenizer
from tinylib.train import train

ROWS, SEQ_LEN = 12, 32
"""A global batch that 1, 2, 3 and 4 processes can share."""


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Words as rare as in real text, and the same on every machine; few, so that epochs are short."""
    draw = random.Random(0)
    words = ["".join(draw.choices("aeinorstlm", k=draw.randint(2, 9))) for _ in range(500)]
    texts = [" ".join(draw.choices(words, [1 / rank for rank in range(1, 501)], k=90)) for _ in range(24)]
    folder = tmp_path_factory.mktemp("words") / "shards"
    build({"train": texts[4:], "val": texts[:4]}, Tokenizer.train(texts, 512), folder)
    return folder


@pytest.fixture
def run(shards: Path, tmp_path: Path) -> TrainConfig:
    """Ten steps of a tiny model, through the end of an epoch, saved after each."""
    return ten_steps(shards, tmp_path)


def ten_steps(shards: Path, folder: Path) -> TrainConfig:
    model = GPTConfig(depth=2, dim=32, vocab_size=512, head_dim=16, seq_len=SEQ_LEN)
    config = TrainConfig(model=model, data=str(shards), run_dir=str(folder / "whole"), steps=10,
                         total_batch_size=ROWS * SEQ_LEN, device_batch_size=4, warmup_fraction=0.2, eval_every=3,
                         save_every=1, keep=100, compile="off", device="cpu", dtype="float32")
    epoch = Shards(config.data).windows(SEQ_LEN)
    assert epoch < config.steps * ROWS and epoch % ROWS, "an epoch must end, in the middle of a batch"
    return config


def named(config: TrainConfig, name: str, **changes: Any) -> TrainConfig:
    """Another run beside `config`."""
    return replace(config, run_dir=str(Path(config.run_dir).parent / name), **changes)


def same(one: TrainConfig, other: TrainConfig) -> None:
    """The two runs have the same records but for times, and the same last checkpoint, bit for bit."""
    assert story(one.run_dir) == story(other.run_dir)
    assert ending(one.run_dir) == ending(other.run_dir)


# One global batch

@pytest.fixture(scope="module")
def nano(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> TrainConfig:
    """Fifty steps of nano in one process and one micro-batch, which other splits must repeat."""
    run = ten_steps(shards, tmp_path_factory.mktemp("nano"))
    config = replace(run, model=replace(PRESETS["nano"], seq_len=16), steps=50, total_batch_size=ROWS * 16,
                   device_batch_size=ROWS, eval_every=None, save_every=None)
    train(config)
    found = losses(config.run_dir)
    assert len(found) == 50 and found[0] > 8 and found[-1] < 4, "it must learn, or all curves are alike"
    counts = [Shards(config.data).targets(Batch(step, ROWS, 16)) for step in range(50)]
    assert min(counts) < max(counts) == config.total_batch_size, "a short window must make the shares unequal"
    return config


def splits(config: TrainConfig, folder: Path, *batches: int) -> list[TrainConfig]:
    """The run again, in `folder`, with other micro-batches."""
    return [replace(config, run_dir=str(folder / f"micro-{batch}"), device_batch_size=batch) for batch in batches]


def check_curves(config: TrainConfig, others: list[TrainConfig], rel: float = 1e-5) -> None:
    """Every loss of each run is that of `config`, and so are the bits per byte at the end."""
    for other in others:
        assert losses(other.run_dir) == pytest.approx(losses(config.run_dir), rel=rel), other.run_dir
        bits = [RunDirectory(one.run_dir).summary().val_bpb for one in (config, other)]
        assert bits[0] == pytest.approx(bits[1], rel=rel)


def test_a_batch_may_be_split_into_micro_batches(nano: TrainConfig, tmp_path: Path) -> None:
    """Into processes, too: see below, where several are under way."""
    others = splits(nano, tmp_path, 2)
    train(*others)
    check_curves(nano, others)


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2, 3, 4])
@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
def test_a_batch_may_be_split_in_every_way(nano: TrainConfig, tmp_path: Path, processes: int, tied: bool) -> None:
    share = ROWS // processes
    whole = replace(nano, run_dir=str(tmp_path / "whole"), model=replace(nano.model, tied=tied))
    train(whole)
    others = splits(whole, tmp_path, *(batch for batch in range(1, share + 1) if share % batch == 0))
    if processes == 1:
        for other in others:
            train(other)
    else:
        done = torchrun(processes, *others)
        assert done.returncode == 0, done.stderr
    check_curves(whole, others)


@pytest.mark.slow
@pytest.mark.parametrize(("change", "rel"), [({"compile": "on"}, 1e-5), ({"dtype": "bfloat16"}, 5e-3)], ids=str)
def test_a_batch_may_be_split_compiled_and_roughly_in_bfloat16(nano: TrainConfig, tmp_path: Path,
                                                               change: dict[str, Any], rel: float) -> None:
    others = splits(replace(nano, **change), tmp_path, 12, 3)
    for other in others:
        train(other)
    check_curves(nano, others, rel)


def test_an_illegal_batch_names_the_nearest_totals(run: TrainConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where only the number of processes makes it illegal, which the configuration can't know."""
    with pytest.raises(ConfigError, match=r"total_batch_size=400 is not a multiple of .*: use 256, 384 or 512"):
        replace(run, total_batch_size=400)
    monkeypatch.setattr("tinylib.train.init_distributed", lambda kind: nullcontext(World(0, 2, torch.device("cpu"))))
    with pytest.raises(ConfigError, match="4 × 32 × 2 = 256: use 256, 512 or 768"):
        train(run)
    assert not RunDirectory(run.run_dir).metrics_file.exists()


# Resuming

@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
def test_resuming_from_any_step_leaves_no_seam(run: TrainConfig, tied: bool) -> None:
    whole = replace(run, model=replace(run.model, tied=tied))
    train(whole)
    for step in range(whole.steps + 1):
        part = replace(cut(whole, step, Path(f"{whole.run_dir}-{step}")), save_every=None)
        assert train(part, resume=True).step == whole.steps
        same(part, whole)


@pytest.mark.parametrize("change", [{"recompute": True, "weight_decay": 0.1}, {"dtype": "bfloat16"},
                                    {"matrix_optimizer": "adamw", "matrix_lr": 0.002}], ids=str)
def test_stopping_by_signal_again_and_again_leaves_no_seam(run: TrainConfig, change: dict[str, Any]) -> None:
    whole = replace(run, save_every=None, **change)
    part = named(whole, "part")
    train(whole)
    for step in (2, 4, 8):
        with signalled(step):
            summary = train(part, resume=step != 2)
        assert (summary.state, summary.step) == ("stopped", step)
    train(part, resume=True)
    same(part, whole)


def test_resuming_in_float16_keeps_the_loss_scale(run: TrainConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """From a scale that overflows at first, and with so little patience that it also grows."""
    monkeypatch.setattr("tinylib.train.GradScaler", partial(GradScaler, first=2.0**26, patience=2))
    whole = replace(run, dtype="float16")
    train(whole)
    scales = [2.0**26, *(checkpoint.read_train_state(RunDirectory(whole.run_dir).checkpoint(step))["loss_scale"][0]
                         for step in range(1, whole.steps + 1))]
    assert min(later / earlier for earlier, later in pairwise(scales)) == 0.5
    assert max(later / earlier for earlier, later in pairwise(scales)) == 2.0
    assert RunDirectory(whole.run_dir).metrics()["lr_multiplier"].iloc[1] == 0.0, "the first large gradient overflows"
    for step in (1, 3, 6, 9):
        part = cut(whole, step, Path(f"{whole.run_dir}-{step}"))
        train(part, resume=True)
        same(part, whole)


@pytest.mark.parametrize(("processes", "micro"), [
    (2, 3), *(pytest.param(*split, marks=pytest.mark.slow) for split in ((1, 4), (3, 2), (4, 1)))])
def test_several_processes_split_a_batch_and_resume_without_a_seam(run: TrainConfig, nano: TrainConfig, tmp_path: Path,
                                                                   processes: int, micro: int) -> None:
    """Stopped by a signal to the last rank, cut off before and after an epoch's end, moved to and from one process."""
    train(run)
    split = splits(nano, tmp_path, micro)
    wholes = [named(run, f"tied-{tied}", device_batch_size=micro, model=replace(run.model, tied=tied))
              for tied in (False, True)]
    stopped = [Job(replace(whole, run_dir=f"{whole.run_dir}-stopped"), signal_at=5) for whole in wholes]
    done = torchrun(processes, *split, *wholes, *stopped)
    assert done.returncode == 0, done.stderr
    check_curves(nano, split)
    assert [max(RunDirectory(job.config.run_dir).saved_steps()) for job in stopped] == [5, 5]

    parts = [job.config for job in stopped]
    parts += [cut(whole, step, Path(f"{whole.run_dir}-{step}")) for whole in wholes for step in (1, 9)]
    moved_here = replace(cut(run, 4, Path(f"{run.run_dir}-4")), device_batch_size=micro)
    done = torchrun(processes, *(Job(part, resume=True) for part in (*parts, moved_here)))
    assert done.returncode == 0, done.stderr
    for part in parts:
        same(part, wholes[part.model.tied])
    moved_away = cut(wholes[0], 4, Path(f"{wholes[0].run_dir}-4"))
    train(moved_away, resume=True)
    check_curves(run, [wholes[0], moved_here, moved_away])


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_resuming_on_a_gpu_follows_the_uninterrupted_run(run: TrainConfig, dtype: str) -> None:
    whole = replace(run, device="cuda", dtype=dtype)
    train(whole)
    part = cut(whole, 4, Path(f"{whole.run_dir}-4"))
    train(part, resume=True)
    assert losses(part.run_dir) == pytest.approx(losses(whole.run_dir), rel=1e-3)


# The tie

TIED = GPTConfig(depth=2, dim=32, vocab_size=101, head_dim=16, seq_len=SEQ_LEN, tied=True)
X_BT = torch.arange(10, 20)[None]


def check_tie(model: GPT) -> None:
    """One tensor is both tables: it has one name and one slot in the optimizer, and what changes one changes both."""
    assert model.unembedding is model.wte.weight
    assert [name for name in model.state_dict() if not name.startswith("blocks.")] == ["wte.weight"]
    assert sum(weight.shape == (101, 32) for weight in model.parameters()) == 1
    slots = Optimizer(model, TrainConfig(model.config, total_batch_size=SEQ_LEN, device_batch_size=1)).state()
    assert {name for name in slots if not name.startswith("blocks.")} == {
        f"wte.weight/{part}" for part in ("step", "exp_avg", "exp_avg_sq")}
    before = model(X_BT).detach()
    with torch.no_grad():
        model.wte.weight[5] += 1.0    # not in the input, so that only the unembedding can show it
    changed = (model(X_BT) != before).flatten(0, 1).any(dim=0)
    assert changed.nonzero().flatten().tolist() == [5]


def on_meta() -> GPT:
    with torch.device("meta"):
        return GPT(TIED)


def drawn(folder: Path) -> GPT:
    model = on_meta().to_empty(device="cpu")
    model.init_weights()
    return model


def assigned(folder: Path) -> GPT:
    model = on_meta()
    model.load_state_dict(GPT(TIED).state_dict(), assign=True)
    return model


MAKERS: dict[str, Callable[[Path], GPT]] = {
    "built": lambda folder: GPT(TIED), "meta": drawn, "assigned": assigned,
    "cast": lambda folder: GPT(TIED).to(torch.float64).to("cpu").float(),
    "copied": lambda folder: copy.deepcopy(GPT(TIED)),
    "loaded": lambda folder: checkpoint.load_model(checkpoint.save(folder / "step", GPT(TIED)))}


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
def test_no_way_to_make_a_model_undoes_the_tie(make: Callable[[Path], GPT], tmp_path: Path) -> None:
    model = make(tmp_path)
    assert torch.equal(model(X_BT), GPT(TIED)(X_BT))
    check_tie(model)


@pytest.fixture
def group() -> Iterator[None]:
    """A process group of this process alone."""
    importlib.import_module("torch._dynamo")    # before the group, for the reason given in `init_distributed`
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")    # dynamo's own
@pytest.mark.parametrize("wrap", [DistributedDataParallel, partial(torch.compile, backend="aot_eager")],
                         ids=["ddp", "compiled"])
def test_no_wrapper_undoes_the_tie(wrap: Callable[[GPT], torch.nn.Module], group: None) -> None:
    model, plain = GPT(TIED), GPT(TIED)
    wrapped = wrap(model)
    for each in (wrapped, plain):
        each(X_BT, X_BT.flip(1)).backward()
    assert len(list(wrapped.parameters())) == len(list(plain.parameters()))
    for one, other in zip(wrapped.parameters(), plain.parameters(), strict=True):
        assert torch.allclose(one.grad, other.grad, rtol=1e-4, atol=1e-7)
    check_tie(model)


@pytest.mark.parametrize("compiled", ["off", pytest.param("on", marks=pytest.mark.slow)])
def test_a_tied_run_stores_its_table_once(run: TrainConfig, compiled: str) -> None:
    whole = replace(run, model=replace(TIED, vocab_size=512), compile=compiled)
    train(whole)
    part = cut(whole, 4, Path(f"{whole.run_dir}-4"))
    train(part, resume=True)
    same(part, whole)
    folder = RunDirectory(part.run_dir).checkpoint()
    stored = {**load_file(folder / checkpoint.WEIGHTS), **load_file(folder / checkpoint.OPTIMIZER)}
    tables = [name for name, tensor in stored.items() if tensor.shape == (512, 32)]
    assert sorted(tables) == ["wte.weight", "wte.weight/exp_avg", "wte.weight/exp_avg_sq"]
    assert not [name for name in stored if name.startswith(("lm_head", "_orig_mod", "module"))]
    model = checkpoint.load_model(folder)
    assert model.unembedding is model.wte.weight

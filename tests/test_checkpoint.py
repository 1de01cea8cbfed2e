"""Checkpoints: whole or not at all, never of the wrong model, and nothing in them that could run."""

from __future__ import annotations

import json
import pickle
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tinylib import checkpoint
from tinylib.checks import ConfigError, UserError
from tinylib.model import GPT
from tinylib.rundir import RunDirectory
from tinylib.shards import Batch, Shards, build
from tinylib.tokenizer import Tokenizer
from tinylib.train import train

PACKAGE = Path(checkpoint.__file__).parent


@pytest.fixture
def folder(tiny) -> Path:
    """The checkpoint of a run of two steps."""
    train(replace(tiny, steps=2))
    return RunDirectory(tiny.run_dir).checkpoint()


def test_a_full_disk_keeps_the_checkpoint_that_was_to_be_replaced(folder) -> None:
    resource = pytest.importorskip("resource")    # POSIX's
    model, before = checkpoint.load_model(folder), load_file(folder / checkpoint.WEIGHTS)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))    # smaller than the weights
    try:
        with pytest.raises(OSError, match=r"could not be written, .*File too large"):
            checkpoint.save(folder, model)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [path.name for path in folder.parent.iterdir()] == ["step_000002"]
    after = load_file(folder / checkpoint.WEIGHTS)
    assert all(torch.equal(before[name], value) for name, value in after.items())


def test_untied_weights_do_not_load_into_a_tied_model(tiny, folder) -> None:
    with pytest.raises(ValueError, match=r"tied.*lm_head.weight is \(320, 32\) float32 there and missing here"):
        checkpoint.load_weights(GPT(replace(tiny.model, tied=True)), folder)


@pytest.mark.parametrize("keep", [0, 5, 0.5, 0.999])
def test_a_damaged_file_is_named(tiny, folder, keep) -> None:
    file = folder / checkpoint.WEIGHTS
    data = file.read_bytes()
    file.write_bytes(data[:keep if keep == 5 else int(keep * len(data))])
    with pytest.raises(ValueError, match=r"step_000002.model.safetensors is damaged, .*: remove step_000002"):
        checkpoint.load_model(folder)
    with pytest.raises(ValueError, match="is damaged"):
        train(replace(tiny, steps=2), resume=True)


@pytest.mark.parametrize("tied", [False, True])
def test_a_checkpoint_is_tensors_and_json(tiny, tied) -> None:
    """Read by hand: a length, a table in JSON, numbers; every tensor once, a tied one too."""
    config = replace(tiny, model=replace(tiny.model, tied=tied), steps=1)
    train(config)
    folder = RunDirectory(tiny.run_dir).checkpoint()
    files = {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}
    assert {name for name in files if "/" not in name} == {
        "model.safetensors", "optimizer.safetensors", "config.json", "train_state.json"}
    assert {name.split("/")[0] for name in files if "/" in name} == {"tokenizer"}
    for name in (name for name in files if not name.endswith(".safetensors")):
        json.loads(files[name])
    expected = {spec.name: list(spec.shape) for spec in config.model.tensors()}
    for name in ("model.safetensors", "optimizer.safetensors"):
        length = int.from_bytes(files[name][:8], "little")
        table = json.loads(files[name][8:8 + length])
        table.pop("__metadata__", None)
        assert len(files[name]) == 8 + length + max(entry["data_offsets"][1] for entry in table.values())
        assert {key.split("/")[0] for key in table} == set(expected)
        assert name.startswith("optimizer") or {key: entry["shape"] for key, entry in table.items()} == expected


@pytest.mark.parametrize("tied", [False, True])
def test_a_run_that_starts_from_anothers_checkpoint_has_its_weights_and_a_schedule_of_its_own(tiny, tmp_path, tied):
    tiny = replace(tiny, model=replace(tiny.model, tied=tied))
    train(tiny)
    folder = RunDirectory(tiny.run_dir).checkpoint()
    other = replace(tiny, run_dir=str(tmp_path / "other"), init_from=str(folder), steps=3, matrix_lr=0.001)
    train(other)
    shards, model = Shards(tiny.data), checkpoint.load_model(folder)
    x_BT, y_BT = shards.batch(Batch(0, tiny.total_batch_size // tiny.model.seq_len, tiny.model.seq_len))
    steps = RunDirectory(other.run_dir).metrics()
    assert steps.index.tolist() == [1, 2, 3]
    assert steps["loss"].iloc[0] == pytest.approx(model(x_BT, y_BT).item(), rel=1e-5)
    assert train(replace(other, steps=3), resume=True).step == 3    # its own checkpoint comes first


def test_a_fork_with_optimizer_state_continues_bit_for_bit(tiny, tmp_path) -> None:
    train(tiny)
    whole = RunDirectory(tiny.run_dir)
    fork = replace(tiny, run_dir=str(tmp_path / "fork"), init_from=str(whole.checkpoint(4)), init_state=True)
    train(fork)
    forked = RunDirectory(fork.run_dir)
    assert forked.metrics()["loss"].to_dict() == {step: whole.metrics()["loss"][step] for step in (5, 6)}
    for file in (checkpoint.WEIGHTS, checkpoint.OPTIMIZER):
        mine, theirs = (load_file(run.checkpoint(6) / file) for run in (forked, whole))
        assert mine.keys() == theirs.keys() and all(torch.equal(mine[name], theirs[name]) for name in mine)


def test_a_start_from_what_does_not_fit_fails_before_anything_is_written(tiny, tmp_path, folder) -> None:
    build({"train": ["Other words, of another tokenizer."] * 100, "val": ["More of them."] * 9},
          Tokenizer.train(["some other words of another text " * 9], 280), tmp_path / "others")
    cases = [({"init_from": str(tmp_path)}, "no checkpoint at"), ({"data": str(tmp_path / "others")}, "tokenizer"),
             ({"init_state": True, "steps": 2}, "steps=2 leaves none after the 2"),
             ({"model": replace(tiny.model, tied=True)}, "model.tied=True is False in init_from")]
    for change, message in cases:
        config = replace(tiny, **{"init_from": str(folder), "run_dir": str(tmp_path / "new"), **change})
        with pytest.raises((UserError, FileNotFoundError), match=message):
            train(config)
        assert not (tmp_path / "new").exists()
    with pytest.raises(ConfigError, match="init_state=True needs a checkpoint"):
        replace(tiny, init_state=True)


def test_an_optimizer_state_of_another_shape_is_not_broadcast(tiny, folder) -> None:
    state = load_file(folder / checkpoint.OPTIMIZER)
    name = next(name for name in state if name.endswith("/momentum"))
    save_file(state | {name: torch.ones(1)}, folder / checkpoint.OPTIMIZER)
    with pytest.raises(UserError, match=re.escape(f"{name} is (1,) float32 there and (32, 32) float32 here")):
        train(replace(tiny, steps=2), resume=True)


def test_nothing_is_ever_pickled(tiny, monkeypatch) -> None:
    """A pickle can run anything when it is read: none is written or read in training, resuming and loading."""
    def refused(*args, **options) -> None:
        raise AssertionError("a pickle")

    for module, names in ((pickle, ("load", "loads", "dump", "dumps", "Pickler", "Unpickler")),
                          (torch, ("load", "save"))):
        for name in names:
            monkeypatch.setattr(module, name, refused)
    train(replace(tiny, steps=6, save_every=4))
    directory = RunDirectory(tiny.run_dir)
    directory.checkpoint_path(6).rename(directory.path / "elsewhere")
    train(replace(tiny, save_every=4), resume=True)
    assert checkpoint.load_model(directory.checkpoint(6)).config == tiny.model


def test_the_library_knows_no_pickle() -> None:
    pickles = re.compile(r"^\s*(import|from) .*\b(pickle|dill|cloudpickle|marshal|shelve)\b|allow_pickle *="
                         r"|\btorch\.(load|save)\(|\bjoblib\.(load|dump)\(", re.MULTILINE)
    assert pickles.search("    import pickle") and pickles.search("torch.load(file)")
    for file in PACKAGE.rglob("*.py"):
        assert not pickles.search(file.read_text(encoding="utf-8")), file

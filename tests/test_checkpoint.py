"""Checkpoints: whole or not at all, never of the wrong model, and nothing in them that could run."""

from __future__ import annotations

import ast
import json
import pickle
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tinylib import checkpoint
from tinylib.model import GPT
from tinylib.rundir import RunDirectory
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
    for file in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            imported = [name.name for name in node.names] if isinstance(node, ast.Import | ast.ImportFrom) else []
            module = getattr(node, "module", None) if isinstance(node, ast.ImportFrom) else None
            assert not {"pickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"} & {*imported, module}, file
            called = ast.unparse(node.func) if isinstance(node, ast.Call) else ""
            assert called not in ("torch.load", "torch.save"), file
            assert not [word for word in getattr(node, "keywords", []) if word.arg == "allow_pickle"], file

"""What comes from outside: paths, folders with other people's files, numbers of other libraries, damaged JSON."""

from __future__ import annotations

import json
import os
import shutil
import stat
import sys
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import problems, randomised

from tinylib import checkpoint, profiles, rundir
from tinylib.checks import ConfigError, UserError
from tinylib.cli import main
from tinylib.config import GPTConfig, TrainConfig, from_dict, to_json
from tinylib.evaluate import score, unused_probability
from tinylib.export import export_transformers
from tinylib.generate import generate
from tinylib.launch import Run, launch
from tinylib.launch.start import LaunchSettings
from tinylib.rundir import RunDirectory, Step, plain
from tinylib.shards import Shards, build
from tinylib.tokenizer import Tokenizer
from tinylib.train import train

# Paths

@pytest.fixture
def elsewhere(tiny, tmp_path, monkeypatch):
    """A run that was begun with relative paths from another directory than the working one; its directory."""
    (tmp_path / "home").mkdir()
    monkeypatch.chdir(tmp_path / "home")
    shutil.copytree(tiny.data, "shards")
    train(replace(tiny, data="shards", run_dir="runs/mine", steps=4))
    (tmp_path / "other").mkdir()
    monkeypatch.chdir(tmp_path / "other")
    return RunDirectory(tmp_path / "home" / "runs" / "mine")


def test_paths_of_a_run_mean_the_same_from_any_directory(elsewhere, capsys) -> None:
    written = elsewhere.read_config()["train"]
    assert written["run_dir"] == str(elsewhere.path) and Path(written["data"]).is_absolute()
    assert main(["eval", "../home/runs/mine"]) == 0
    assert main(["train", "--config", "../home/runs/mine/config.json", "--resume"]) == 0    # has taken all its steps
    assert not any(Path.cwd().iterdir())
    assert len(elsewhere.metrics()) == 4


def test_a_run_that_was_moved_goes_on_where_it_is(elsewhere, tmp_path) -> None:
    moved = RunDirectory(shutil.move(elsewhere.path, tmp_path / "moved"))
    assert main(["train", "--config", str(moved.config_file), "--resume"]) == 0
    assert moved.read_config()["train"]["run_dir"] == str(moved.path) and not elsewhere.path.exists()


def test_home_is_one_folder_from_anywhere(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("TINYLIB_HOME", "~/tl")
    assert profiles.home() == tmp_path / "tl"
    monkeypatch.setenv("TINYLIB_HOME", "tl")
    monkeypatch.chdir(tmp_path)
    assert profiles.home() == tmp_path / "tl"


def test_ranks_import_what_their_launcher_imported(tiny, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("tinylib.launch.start.__file__", str(tmp_path / "checkout" / "tinylib" / "launch" / "start.py"))
    monkeypatch.setenv("PYTHONPATH", "mine")
    from tinylib.launch.start import _environment

    assert _environment(LaunchSettings(1))["PYTHONPATH"] == f"{tmp_path / 'checkout'}{os.pathsep}mine"


# Folders of others

@pytest.fixture
def thesis(tmp_path) -> Path:
    folder = tmp_path / "docs"
    folder.mkdir()
    (folder / "thesis.tex").write_text("five years of work")
    (folder / "config.json").write_text('{"of": "another program"}')
    return folder


def test_a_folder_with_other_files_is_never_written_into(tiny, thesis) -> None:
    before = {path: path.read_bytes() for path in thesis.iterdir()}
    checkpoint.save(thesis.parent / "step", randomised(tiny.model), tokenizer=Path(tiny.data) / "tokenizer")
    tokenizer = Tokenizer.load(Path(tiny.data) / "tokenizer")
    for write in (lambda: export_transformers(thesis.parent / "step", thesis),
                  lambda: build({"train": ["text"]}, tokenizer, thesis),
                  lambda: checkpoint.save(thesis, randomised(tiny.model))):
        with pytest.raises(FileExistsError, match=r"docs holds (config\.json|thesis\.tex), which would be lost"):
            write()
    with pytest.raises(FileExistsError, match="is taken"):
        launch(replace(tiny, run_dir=str(thesis)), 1, replace_ended=True)
    assert main(["runs", "rm", str(thesis)]) == 1
    assert {path: path.read_bytes() for path in thesis.iterdir()} == before
    with pytest.raises(FileExistsError, match=r"thesis\.tex is a file: choose a folder"):
        export_transformers(thesis.parent / "step", thesis / "thesis.tex")


def test_an_earlier_export_is_replaced_also_at_the_working_directory(tiny, tmp_path, monkeypatch) -> None:
    step, out = tmp_path / "step", tmp_path / "out"
    checkpoint.save(step, randomised(tiny.model), tokenizer=Path(tiny.data) / "tokenizer")
    out.mkdir()
    monkeypatch.chdir(out)
    assert export_transformers(step, ".") == out == export_transformers(step, out)
    assert (out / "model.safetensors").is_file()


def test_removing_a_run_leaves_what_is_not_of_it(tiny, tmp_path) -> None:
    run = Run(tmp_path / "run")
    for keep in (True, False):
        train(tiny)
        (run.path / "notes.txt").write_text("mine")
        if not keep:
            (run.path / "notes.txt").unlink()
        run.remove()
        assert [path.name for path in tmp_path.glob("run/*")] == ["notes.txt"] * keep and run.path.exists() == keep
        shutil.rmtree(run.path, ignore_errors=True)


def test_an_export_is_no_run_and_a_damaged_status_stops_nothing(tiny, tmp_path) -> None:
    train(replace(tiny, run_dir=str(tmp_path / "runs" / "real")))
    export_transformers(RunDirectory(tmp_path / "runs" / "real").checkpoint(), tmp_path / "runs" / "export")
    (tmp_path / "runs" / "real" / "status.json").write_text("")
    found = rundir.runs(tmp_path / "runs")
    assert [run.name for run in found] == ["real"] and found[0].status()["state"] == "lost"
    with pytest.raises(FileNotFoundError, match="is neither a run directory"):
        rundir.find_run(tmp_path / "runs" / "export")


@pytest.mark.parametrize("content", ["", '{"train": {"st', "[1, 2]"])
def test_damaged_json_is_named(tiny, tmp_path, content) -> None:
    copy = Path(shutil.copytree(tiny.data, tmp_path / "shards"))
    train(tiny)
    run = RunDirectory(tiny.run_dir)
    for file, read in ((run.config_file, run.read_config),
                       (run.checkpoint() / "train_state.json", lambda: checkpoint.read_train_state(run.checkpoint())),
                       (Path(copy, "index.json"), lambda: Shards(copy)),
                       (Path(copy, "tokenizer", "vocabulary.json"), lambda: Tokenizer.load(copy / "tokenizer"))):
        before = file.read_text()
        file.write_text(content)
        with pytest.raises(UserError, match=f"{file} holds no JSON object"):
            read()
        file.write_text(before)
    (run.checkpoint() / "config.json").write_text(content)
    with pytest.raises(UserError, match=r"step_000006/config\.json: "):
        checkpoint.load_model(run.checkpoint())
    with run.metrics_file.open("a") as file:
        file.write('{"kind": "st\n')
    with pytest.raises(UserError, match=r"line 12 of .*metrics\.jsonl is no record"):
        run.metrics()


def test_checkpoints_have_the_mode_of_ordinary_files_and_unreadable_is_not_missing(tiny, tmp_path) -> None:
    before = os.umask(0o022)
    try:
        checkpoint.save(tmp_path / "step", randomised(tiny.model), tokenizer=Path(tiny.data) / "tokenizer")
        export_transformers(tmp_path / "step", tmp_path / "out")
    finally:
        os.umask(before)
    for file in (tmp_path / "step" / "model.safetensors", tmp_path / "out" / "model.safetensors"):
        assert stat.S_IMODE(file.stat().st_mode) == 0o644
    if os.getuid() == 0:
        pytest.skip("root may read everything")
    (tmp_path / "step" / "model.safetensors").chmod(0)
    with pytest.raises(PermissionError):
        checkpoint.load_model(tmp_path / "step")


# Values

def test_numbers_of_numpy_and_torch_become_plain(tiny) -> None:
    config = TrainConfig(steps=np.int64(3), matrix_lr=np.float32(0.5), recompute=np.bool_(True), seed=torch.tensor(7),
                         model=GPTConfig(softcap=np.float64(15.0), depth=np.uint8(4)))
    assert from_dict(TrainConfig, json.loads(to_json(config))) == config
    assert (config.steps, config.matrix_lr, config.recompute, config.seed) == (3, 0.5, True, 7)
    assert json.dumps(asdict(LaunchSettings(np.int64(2), nnodes=np.int32(1))))
    assert TrainConfig(adam_betas=(0, 0.95)).adam_betas == (0, 0.95)


def test_a_slip_of_the_keyboard_is_no_model(capsys) -> None:
    for verb in ("size", "plan", "train"):
        assert main([verb, "--depth", "1e7"]) == 1
        assert "depth=10000000 is not a whole number from 1 to 1000: use 1000 or less" in capsys.readouterr().err


@pytest.mark.parametrize("values, message", [
    ({"temperature": float("nan")}, "temperature=nan is not a number of at least 0"),
    ({"temperature": float("inf")}, "temperature=inf is not a number of at least 0"),
    ({"top_k": 0}, "top_k=0 is not a whole number of at least 1"),
    ({"max_tokens": -1}, "max_tokens=-1 is not a whole number of at least 0"),
])
def test_wrong_values_of_sampling_are_one_clear_error(tiny, values, message) -> None:
    tokenizer = Tokenizer.load(Path(tiny.data) / "tokenizer")
    with pytest.raises(ConfigError, match=message):
        list(generate(randomised(tiny.model), tokenizer, **values))


def test_max_tokens_below_one_is_no_evaluation(tiny) -> None:
    assert problems(score, randomised(tiny.model), Shards(tiny.data, "val"), max_tokens=-1) == [
        "max_tokens=-1 is not a whole number of at least 1: use 1 or more"]


def test_a_field_that_an_older_state_lacks_has_its_default(tiny) -> None:
    state = {"train": plain(tiny), "data": "fingerprint", "dtype": "float32"}
    del state["train"]["matrix_optimizer"], state["train"]["model"]["softcap"]
    checkpoint.check_same_run(state, tiny, "fingerprint", "float32")


def test_a_text_that_is_no_string_is_named(tiny, tmp_path) -> None:
    tokenizer = Tokenizer.load(Path(tiny.data) / "tokenizer")
    with pytest.raises(UserError, match="split 'train' is one str, whose characters are no texts: use a list"):
        build({"train": "one long text"}, tokenizer, tmp_path / "shards")
    with pytest.raises(UserError, match="text 1 of split 'val' is None, no str"):
        build({"train": ["text"], "val": ["text", None]}, tokenizer, tmp_path / "shards")
    for texts, message in (("one long text", "texts is one str"), (["text", b"bytes"], "text 1 of texts is b'bytes'")):
        with pytest.raises(UserError, match=message):
            Tokenizer.train(texts, 300)
        with pytest.raises(UserError, match=message):
            tokenizer.encode_batch(texts)
    assert not (tmp_path / "shards").exists()


# Tokens and their tokenizer

def test_ids_that_the_tokenizer_lacks_are_never_sampled(tiny) -> None:
    shards, model = Shards(tiny.data, "val"), randomised(replace(tiny.model, vocab_size=352))
    with torch.no_grad():
        model.unembedding[:shards.vocab_size] *= 0.1
        model.unembedding[shards.vocab_size:] = model.hidden(torch.tensor([[shards.tokenizer.bos]]))[0, 0]
    list(generate(model, shards.tokenizer, max_tokens=20, top_k=None))    # decoding raises UserError for such an id
    assert 0.2 < unused_probability(model, shards) < 1
    assert unused_probability(randomised(tiny.model), shards) == 0
    with pytest.raises(UserError, match="the tokenizer has 320 ids and the model 256"):
        next(generate(randomised(replace(tiny.model, vocab_size=256)), shards.tokenizer))


def test_a_terminal_without_the_characters_still_gets_the_text(tiny, monkeypatch, capfd) -> None:
    train(tiny)
    with Path(os.devnull).open("w", encoding="latin-1") as terminal:
        monkeypatch.setattr(sys, "stdout", terminal)
        assert main(["sample", tiny.run_dir, "--prompt", "żółw", "--max-tokens", "2"]) == 0


def test_steps_that_were_recorded_hold_no_nan(tiny) -> None:
    train(tiny)
    assert main(["train", "--config", f"{tiny.run_dir}/config.json", "--resume"]) == 0
    text = RunDirectory(tiny.run_dir).metrics_file.read_text()
    assert "NaN" not in text and RunDirectory(tiny.run_dir).last(Step) is not None

"""Training: it learns, in every precision, and bad input is refused; test_exact and test_safety hold the rest."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from ranks import losses
from safetensors.torch import load_file

from tinylib import checkpoint, hardware, rundir
from tinylib.checks import UserError
from tinylib.config import ConfigError
from tinylib.distributed import World, init_distributed
from tinylib.evaluate import bits_per_byte
from tinylib.rundir import RunDirectory
from tinylib.shards import Shards
from tinylib.train import Trainer, train


def weights(run: str, step: int | None = None) -> dict[str, torch.Tensor]:
    folder = RunDirectory(run).checkpoint(step)
    return {**load_file(folder / checkpoint.WEIGHTS), **load_file(folder / checkpoint.OPTIMIZER)}


@pytest.mark.parametrize("tied", [False, True])
def test_training_learns_and_records(tiny, tied) -> None:
    tiny = replace(tiny, model=replace(tiny.model, tied=tied), steps=40, eval_every=10, save_every=20, keep=1)
    summary = train(tiny)
    directory = RunDirectory(tiny.run_dir)
    steps, evals = directory.metrics(), directory.metrics("eval")
    assert steps.index.tolist() == list(range(1, 41)) and evals.index.tolist() == [10, 20, 30, 40]
    assert steps["loss"].iloc[0] == pytest.approx(math.log(320), rel=0.01)
    assert summary.train_loss < 0.6 * math.log(320) and evals["val_bpb"][40] < evals["val_bpb"][10]
    assert summary.state == directory.status()["state"] == "finished"
    assert directory.saved_steps() == [40] and directory.summary().val_bpb == summary.val_bpb
    model = checkpoint.load_model(directory.checkpoint())
    assert bits_per_byte(model, Shards(tiny.data, "val")) == pytest.approx(summary.val_bpb, rel=1e-6)
    assert directory.read_config()["train"] == rundir.plain(tiny)


def test_recomputing_changes_nothing(tiny, tmp_path) -> None:
    train(tiny)
    again = replace(tiny, run_dir=str(tmp_path / "again"), recompute=True)
    train(again)
    assert losses(again.run_dir) == losses(tiny.run_dir)


def test_bad_input_is_refused_before_any_step(tiny) -> None:
    for change, message in (({"data": "nowhere"}, "nowhere"), ({"device": "cuda"}, "not on this machine"),
                            ({"model": replace(tiny.model, vocab_size=300)}, "use vocab_size=320")):
        if change.get("device") == "cuda" and torch.cuda.is_available():
            continue
        with pytest.raises((ValueError, FileNotFoundError), match=message):
            train(replace(tiny, **change, run_dir=tiny.run_dir + message[:3]))
    with pytest.raises(ConfigError, match="total_batch_size=100 is not a multiple"):
        replace(tiny, total_batch_size=100)


def test_a_failure_to_join_is_recorded_like_any_other(tiny, monkeypatch) -> None:
    def unconnected(kind: str) -> None:
        raise RuntimeError("NCCL error: unhandled system error")

    monkeypatch.setattr("tinylib.train.init_distributed", unconnected)
    directory = RunDirectory(tiny.run_dir)
    directory.create()    # as `launch` does
    with pytest.raises(RuntimeError, match="NCCL"):
        train(tiny)
    assert "unhandled system error" in directory.errors()[0]["traceback"]
    assert directory.status()["state"] == "failed"


def test_several_processes_on_mps_raise(monkeypatch) -> None:
    monkeypatch.setattr(hardware, "device", lambda kind: hardware.Device("mps", "M1", 1, 0, None))
    for name, value in {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match="use nproc_per_node=1, or device='cpu'"), init_distributed("mps"):
        pass


def test_rank_0_names_the_checkpoint_to_resume_from(tiny) -> None:
    """Another rank, which sees the checkpoint of step 6 too, starts from step 2 like rank 0."""
    class Told(World):
        def all_reduce_sum(self, tensor: torch.Tensor) -> torch.Tensor:
            assert tensor == 0, "this rank adds nothing"
            return torch.tensor(2)

    train(tiny)
    directory = RunDirectory(tiny.run_dir)
    trainer = Trainer(tiny, Told(1, 1, torch.device("cpu")), directory)
    trainer.prepare(resume=True)
    assert directory.saved_steps() == [2, 4, 6] and trainer.step == 2


def test_compiled_training_follows_the_eager_one(tiny, tmp_path) -> None:
    train(tiny)
    compiled = replace(tiny, run_dir=str(tmp_path / "compiled"), compile="on")
    train(compiled)
    assert losses(compiled.run_dir) == pytest.approx(losses(tiny.run_dir), rel=1e-4)
    header = next(RunDirectory(compiled.run_dir).records())
    assert header.compiled is True
    names = weights(compiled.run_dir).keys()    # with no prefix of a wrapper
    assert names == weights(tiny.run_dir).keys()
    assert {name.split("/")[0] for name in names} == {spec.name for spec in tiny.model.tensors()}


def test_bfloat16_follows_float32(tiny, tmp_path) -> None:
    train(tiny)
    half = replace(tiny, run_dir=str(tmp_path / "half"), dtype="bfloat16")
    train(half)
    assert losses(half.run_dir) == pytest.approx(losses(tiny.run_dir), rel=0.02)
    assert losses(half.run_dir) != losses(tiny.run_dir)


@pytest.mark.gpu
@pytest.mark.parametrize(("dtype", "rel"), [("float32", 1e-3), ("bfloat16", 0.02)])
def test_a_gpu_follows_the_cpu(tiny, tmp_path, dtype, rel) -> None:
    train(tiny)
    there = replace(tiny, run_dir=str(tmp_path / "gpu"), device="cuda", dtype=dtype)
    assert train(there).peak_memory_bytes > 0
    assert losses(there.run_dir) == pytest.approx(losses(tiny.run_dir), rel=rel)

"""Tying and untying trained checkpoints: the same function where it can be, the gradient's own arithmetic elsewhere."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from tinylib import checkpoint, tying
from tinylib.checks import ConfigError, UserError
from tinylib.cli import main
from tinylib.config import GPTConfig, TrainConfig
from tinylib.evaluate import bits_per_byte
from tinylib.generate import generate
from tinylib.model import GPT, NORM_EPS
from tinylib.optim import Optimizer
from tinylib.rundir import RunDirectory, plain
from tinylib.shards import Batch, Shards, build
from tinylib.tokenizer import Tokenizer
from tinylib.train import train

STEPS = 40
METHODS = ("least-change", "mean", "embedding", "head")


@pytest.fixture(scope="module")
def runs(tiny_shards, tmp_path_factory) -> dict[bool, TrainConfig]:
    """Two trained runs, by whether they are tied."""
    found = {}
    for tied in (False, True):
        model = GPTConfig(depth=2, dim=32, vocab_size=320, head_dim=16, seq_len=32, tied=tied)
        found[tied] = TrainConfig(
            model=model, data=str(tiny_shards), steps=STEPS, total_batch_size=256, device_batch_size=8, eval_every=None,
            run_dir=str(tmp_path_factory.mktemp("runs") / ("tied" if tied else "untied")), save_every=None,
            compile="off", device="cpu", dtype="float32")
        train(found[tied])
    return found


def newest(config: TrainConfig) -> Path:
    return RunDirectory(config.run_dir).checkpoint()


def batch(config: TrainConfig) -> tuple[torch.Tensor, torch.Tensor]:
    return Shards(config.data).batch(Batch(0, 8, config.model.seq_len))


def tables(folder: Path) -> tuple[torch.Tensor, torch.Tensor]:
    weights = load_file(folder / checkpoint.WEIGHTS)
    return weights["wte.weight"], weights["lm_head.weight"]


def optimizer_state(folder: Path, name: str) -> dict[str, torch.Tensor]:
    state = load_file(folder / checkpoint.OPTIMIZER)
    return {key: state[f"{name}/{key}"] for key in ("exp_avg", "exp_avg_sq", "step")}


# Untie

@pytest.mark.parametrize("rescale", [False, True])
def test_untied_logits_are_those_of_the_tied_model(runs, tmp_path, rescale) -> None:
    folder = tying.untie(newest(runs[True]), tmp_path / "untied", rescale=rescale)
    x_BT, _ = batch(runs[True])
    before, after = checkpoint.load_model(newest(runs[True])), checkpoint.load_model(folder)
    if rescale:
        rms_V = after.wte.weight.square().mean(dim=1).sqrt()
        assert rms_V.min() > 0.7 and rms_V.max() < 1.42
        assert torch.allclose(before(x_BT), after(x_BT), atol=1e-2)
    else:
        assert torch.equal(before(x_BT), after(x_BT))
    assert after.config == replace(before.config, tied=False)
    for model in (before, after):
        assert sum(weight.numel() for weight in model.parameters()) == sum(
            spec.size for spec in model.config.tensors()) == 12 * 2 * 32**2 + (1 + (not model.config.tied)) * 320 * 32


@pytest.mark.parametrize("rescale", [False, True])
def test_untied_and_tied_again_is_the_same_checkpoint(runs, tmp_path, rescale) -> None:
    there = tying.untie(newest(runs[True]), tmp_path / "untied", rescale=rescale)
    back = tying.tie(there, tmp_path / "tied", method="mean")
    first, last = (load_file(folder / checkpoint.WEIGHTS) for folder in (newest(runs[True]), back))
    assert first.keys() == last.keys() and all(torch.equal(first[name], last[name]) for name in first)
    first, last = (load_file(folder / checkpoint.OPTIMIZER) for folder in (newest(runs[True]), back))
    assert first.keys() == last.keys()
    assert all(torch.allclose(first[name], last[name], rtol=2e-2, atol=0) for name in first)
    first, last = (Tokenizer.load(folder / checkpoint.TOKENIZER) for folder in (newest(runs[True]), back))
    assert first.fingerprint == last.fingerprint
    assert checkpoint.read_train_state(back) == checkpoint.read_train_state(newest(runs[True]))


# Scale

def test_rows_of_the_embedding_may_be_scaled_as_long_as_they_stay_far_above_eps(runs) -> None:
    x_BT, _ = batch(runs[False])
    model = checkpoint.load_model(newest(runs[False]))
    before = model(x_BT)
    rms_V1 = model.wte.weight.square().mean(dim=1, keepdim=True).sqrt()
    unit_VD = model.wte.weight / rms_V1

    def change(rms: float) -> float:
        with torch.no_grad():
            model.wte.weight.copy_(unit_VD * rms)
        return (model(x_BT) - before).abs().max().item()

    assert change(0.1) < 0.01 and change(10.0) < 0.01
    assert change(1e-3) > 0.1    # √eps: a normed row is smaller by √2


# Tie

@pytest.mark.parametrize("method", METHODS)
def test_a_tied_checkpoint_is_one_that_everything_takes(runs, tmp_path, method) -> None:
    folder = tying.tie(newest(runs[False]), tmp_path / "tied", method=method)
    model, held_out = checkpoint.load_model(folder), Shards(runs[False].data, "val")
    assert model.config == replace(runs[False].model, tied=True) and model.lm_head is None
    assert sum(weight.numel() for weight in model.parameters()) == 12 * 2 * 32**2 + 320 * 32
    assert 0 < bits_per_byte(model, held_out, max_tokens=2048) < 50
    assert "".join(generate(model, Tokenizer.load(folder / checkpoint.TOKENIZER), "Return", max_tokens=4))


def test_the_methods_make_the_tables_that_they_name(runs, tmp_path) -> None:
    wte_VD, head_VD = tables(newest(runs[False]))
    made = {method: load_file(tying.tie(newest(runs[False]), tmp_path / method, method=method) / checkpoint.WEIGHTS)[
        "wte.weight"] for method in METHODS}
    assert torch.equal(made["head"], head_VD)
    assert torch.allclose(made["embedding"].norm(dim=1), head_VD.norm(dim=1), rtol=1e-5)
    assert torch.allclose(F.cosine_similarity(made["embedding"], wte_VD), torch.ones(320))
    assert torch.allclose(made["mean"], (made["head"] + made["embedding"]) / 2)
    moment_DD = tying.second_moment(checkpoint.load_model(newest(runs[False])), Shards(runs[False].data, "val"))

    def change_V(table_VD: torch.Tensor) -> torch.Tensor:
        """Mean squared change of each row's logit, and of the entries of its normed embedding at fixed size."""
        off_VD = table_VD - head_VD
        logits_V = torch.einsum("vd,de,ve->v", off_VD, moment_DD, off_VD)
        moved_V = (table_VD - made["embedding"]).square().sum(dim=1) / head_VD.square().sum(dim=1)
        return logits_V + tying.EMBEDDING_WEIGHT * moved_V

    for method in ("mean", "embedding", "head"):
        assert (change_V(made["least-change"]) <= 1.001 * change_V(made[method])).all()
    assert change_V(made["least-change"]).sum() < 0.9 * min(change_V(made[name]).sum() for name in METHODS[1:])


def test_the_second_moment_is_that_of_the_hidden_states(runs) -> None:
    model, held_out = checkpoint.load_model(newest(runs[False])), Shards(runs[False].data, "val")
    x_BT, y_BT = next(held_out.in_order(32, 4))
    with torch.no_grad():
        hidden_RD = model.hidden(x_BT)[y_BT >= 0]
    expected = torch.stack([torch.outer(row, row) for row in hidden_RD]).mean(dim=0)
    assert torch.allclose(tying.second_moment(model, held_out, max_tokens=128), expected, atol=1e-4)


def test_least_change_ends_at_either_table() -> None:
    """Where only the logits count, and hidden states go everywhere, it is the head; where they don't, the embedding."""
    generator = torch.Generator().manual_seed(0)
    wte_VD, head_VD = torch.randn(2, 5, 4, generator=generator)
    moment_DD = torch.diag(torch.tensor([1.0, 2.0, 3.0, 0.0]))
    assert torch.allclose(tying.least_change(wte_VD, head_VD, moment_DD, 1e9), wte_VD, atol=1e-5)
    light_VD = tying.least_change(wte_VD, head_VD, moment_DD, 1e-9)
    assert torch.allclose(light_VD[:, :3], head_VD[:, :3], atol=1e-5)
    assert torch.allclose(light_VD[:, 3], wte_VD[:, 3], atol=1e-5)


# Optimizer state

def test_moments_of_the_tied_table_are_those_of_the_tied_gradient(runs, tmp_path) -> None:
    """An untied model that computes what a tied one does, its embedding of another size: gradients add as they must."""
    tied = checkpoint.load_model(newest(runs[True]))
    x_BT, y_BT = batch(runs[True])
    config = replace(runs[True], model=replace(runs[True].model, tied=False))
    untied = GPT(config.model)
    scale_V1 = 2.0 ** torch.randint(1, 4, (320, 1), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for name, weight in untied.named_parameters():
            weight.copy_(dict(tied.named_parameters())["wte.weight" if name == "lm_head.weight" else name])
        untied.wte.weight.mul_(scale_V1)
    for model in (tied, untied):
        model(x_BT, y_BT).backward()
    optimizer = Optimizer(untied, config)
    optimizer.load_state(optimizer.state() | {
        f"{name}/{key}": value for name, weight in untied.named_parameters() if name in ("wte.weight", "lm_head.weight")
        for key, value in (("exp_avg", weight.grad), ("exp_avg_sq", weight.grad**2), ("step", torch.tensor(7.0)))})
    source = checkpoint.save(tmp_path / "source", untied, optimizer, {
        "step": 7, "train": plain(config), "data": "", "dtype": "float32", "loss_scale": [1.0, 0]},
        newest(runs[True]) / checkpoint.TOKENIZER)
    found = optimizer_state(tying.tie(source, tmp_path / "tied", method="head"), "wte.weight")
    gradient = tied.wte.weight.grad
    assert torch.allclose(found["exp_avg"], gradient, rtol=1e-3, atol=1e-5 * gradient.abs().max().item())
    size_V1 = (untied.wte.weight.square().mean(1) + NORM_EPS).sqrt()[:, None] / (
        tied.wte.weight.square().mean(1) + NORM_EPS).sqrt()[:, None]
    apart = (untied.wte.weight.grad * size_V1)**2 + untied.lm_head.weight.grad**2
    assert torch.allclose(found["exp_avg_sq"], apart, rtol=1e-4) and found["step"] == 7


@pytest.mark.parametrize("tied", [False, True])
def test_a_run_goes_on_from_it_with_its_optimizer_state(runs, tmp_path, tied) -> None:
    source = newest(runs[tied])
    folder = (tying.untie(source, tmp_path / "changed", rescale=False) if tied
              else tying.tie(source, tmp_path / "changed"))
    config = replace(runs[tied], model=replace(runs[tied].model, tied=not tied), run_dir=str(tmp_path / "on"),
                     init_from=str(folder), init_state=True, steps=STEPS + 3)
    assert train(config).step == STEPS + 3
    steps = RunDirectory(config.run_dir).metrics()
    assert steps.index.tolist() == [STEPS + 1, STEPS + 2, STEPS + 3]
    for name in ("wte.weight", "lm_head.weight")[:1 + tied]:
        assert optimizer_state(newest(config), name)["step"] == STEPS + 3
    if tied:    # the logits are the same, and so is the next batch
        same = replace(config, model=runs[True].model, run_dir=str(tmp_path / "same"), init_from=str(source))
        train(same)
        assert RunDirectory(same.run_dir).metrics()["loss"].iloc[0] == steps["loss"].iloc[0]


# Mistakes

def test_what_can_not_be_tied_or_untied_is_one_clear_error(runs, tmp_path) -> None:
    (tmp_path / "taken").mkdir()
    tied, untied, target = newest(runs[True]), newest(runs[False]), tmp_path / "new"
    texts = ["Other words, of another tokenizer."] * 100
    build({"train": texts, "val": texts[:9]}, Tokenizer.train(["some other words of another text " * 9], 280),
          tmp_path / "others")
    for function, error, message in (
            (lambda: tying.tie(tied, target), UserError, "is tied already: use untie"),
            (lambda: tying.untie(untied, target), UserError, "is not tied: use tie"),
            (lambda: tying.tie(untied, tmp_path / "taken"), FileExistsError, "taken"),
            (lambda: tying.tie(tmp_path, target), FileNotFoundError, "no checkpoint at"),
            (lambda: tying.tie(untied, target, method="median"), ConfigError, "method='median' is not a choice"),
            (lambda: tying.tie(untied, target, held_out=Shards(tmp_path / "others", "val")), ConfigError, "tokenizer")):
        with pytest.raises(error, match=message):
            function()
        assert not target.exists()


# The verb

@pytest.fixture
def call(capsys):
    def run(*arguments: str) -> tuple[int, str, str]:
        code = main(list(arguments))
        return code, *capsys.readouterr()
    return run


@pytest.fixture
def home(runs, tmp_path, monkeypatch) -> Path:
    """A home with copies of both runs."""
    monkeypatch.setenv("TINYLIB_HOME", str(tmp_path))
    for config in runs.values():
        shutil.copytree(config.run_dir, tmp_path / "runs" / "mine" / Path(config.run_dir).name)
    return tmp_path


@pytest.mark.parametrize("tied", [False, True])
def test_the_verb_writes_a_run_that_other_verbs_take(home, call, tied) -> None:
    name, flags = ("tied", ["--untie"]) if tied else ("untied", ["--method", "mean"])
    code, out, err = call("tie", name, *flags, "--max-tokens", "2048", "--json")
    assert code == 0, err
    facts, made = json.loads(out), "tied-untied" if tied else "untied-tied"
    assert Path(facts["run"]) == home / "runs" / "mine" / made and "trained_run" not in facts
    if tied:
        assert facts["before_bits_per_byte"] == pytest.approx(facts["after_bits_per_byte"], rel=1e-4)
    found = json.loads(call("eval", made, "--max-tokens", "2048", "--json")[1])
    assert found["bits_per_byte"] == pytest.approx(facts["after_bits_per_byte"], abs=1e-6)
    assert call("sample", made, "--max-tokens", "3")[0] == 0
    assert call("export", made, str(home / "exported"))[0] == 0
    listed = {row["run"]: row for row in json.loads(call("runs", "--json")[1])["runs"]}
    assert listed[f"mine/{made}"]["state"] == "finished"
    code, out, err = call("tie", name, *flags)
    assert (code, out) == (1, "") and "is taken" in err and len(err.splitlines()) == 1


def test_the_verb_trains_a_repair(home, call) -> None:
    code, out, err = call("tie", "untied", "--output", str(home / "one"), "--steps", "4", "--max-tokens", "2048")
    assert code == 0, err
    names = [line.split("  ")[0] for line in out.splitlines()]
    assert names[-4:] == ["before bits per byte", "after bits per byte", "trained run", "trained bits per byte"]
    assert RunDirectory(home / "one-trained").metrics().index.tolist() == [1, 2, 3, 4]
    code, out, err = call("tie", "untied", "--untie", "--output", str(home / "two"))
    assert (code, out) == (1, "") and "is not tied" in err and not (home / "two").exists()


"""Training: one global batch however it is split, exact resume, safe ends, clear errors."""

from __future__ import annotations

import json
import math
import os
import resource
import shutil
import signal
import subprocess
import sys
import threading
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from tinylib import checkpoint, evaluate, rundir
from tinylib.config import ConfigError, GPTConfig, TrainConfig
from tinylib.evaluate import bits_per_byte
from tinylib.generate import generate, generate_ids
from tinylib.model import GPT
from tinylib.optim import Muon, Optimizer, groups, learning_rate, orthogonalise
from tinylib.rundir import RunDirectory
from tinylib.shards import Shards, build
from tinylib.tokenizer import Tokenizer
from tinylib.train import train


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    texts = [f"Return the {name} of number {index} as a list of {index % 7} strings, else raise ValueError. " * 3
             for index in range(120) for name in ("sum", "name", "type", "größe")]
    tokenizer = Tokenizer.train(texts, 320)
    folder = tmp_path_factory.mktemp("data") / "shards"
    build({"train": texts[:-20], "val": texts[-20:]}, tokenizer, folder)
    return folder


@pytest.fixture
def config(data, tmp_path):
    model = GPTConfig(depth=2, dim=32, vocab_size=320, head_dim=16, seq_len=32)
    return TrainConfig(model=model, data=str(data), run=str(tmp_path / "run"), steps=6, total_batch_size=256,
                       device_batch_size=2, eval_every=2, save_every=2, keep=10, compile="off", device="cpu")


def losses(run: str) -> list[float]:
    return RunDirectory(run).metrics()["loss"].tolist()


def weights(run: str, step: int | None = None) -> dict[str, torch.Tensor]:
    folder = RunDirectory(run).checkpoint(step)
    return {**load_file(folder / checkpoint.WEIGHTS), **load_file(folder / checkpoint.OPTIMIZER)}


def torchrun(config: TrainConfig, processes: int, resume: bool = False) -> subprocess.CompletedProcess[str]:
    """The same `train` under torchrun, as a script rather than a verb."""
    directory = RunDirectory(config.run)
    directory.create({})
    script = directory.path / "script.py"
    script.write_text("import json, sys\nfrom tinylib.config import TrainConfig, from_dict\n"
                      "from tinylib.train import train\n"
                      "train(from_dict(TrainConfig, json.loads(sys.argv[1])), resume=sys.argv[2] == 'True')\n")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}",
               str(script), json.dumps(rundir.plain(config)), str(resume)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


@pytest.mark.parametrize("tied", [False, True])
def test_training_learns_and_records(config, tied) -> None:
    config = replace(config, model=replace(config.model, tied=tied), steps=40, eval_every=10, save_every=20, keep=1)
    summary = train(config)
    directory = RunDirectory(config.run)
    steps, evals = directory.metrics(), directory.metrics("eval")
    assert steps.index.tolist() == list(range(1, 41)) and evals.index.tolist() == [10, 20, 30, 40]
    assert steps["loss"].iloc[0] == pytest.approx(math.log(320), rel=0.01)
    assert summary.train_loss < 0.6 * math.log(320) and evals["val_bpb"][40] < evals["val_bpb"][10]
    assert summary.state == directory.status()["state"] == "finished"
    assert directory.saved_steps() == [40] and directory.summary()["val_bpb"] == summary.val_bpb
    model = checkpoint.load_model(directory.checkpoint())
    assert bits_per_byte(model, Shards(config.data, "val")) == pytest.approx(summary.val_bpb, rel=1e-6)
    assert directory.read_config()["train"] == rundir.plain(config)


@pytest.mark.parametrize("device_batch_size", [1, 4, 8])
def test_micro_batches_change_nothing(config, device_batch_size, tmp_path) -> None:
    train(config)
    other = replace(config, device_batch_size=device_batch_size, run=str(tmp_path / "other"))
    train(other)
    assert losses(other.run) == pytest.approx(losses(config.run), rel=1e-5)


def test_resume_is_the_uninterrupted_run_bit_for_bit(config, tmp_path) -> None:
    train(config)
    whole, part = RunDirectory(config.run), RunDirectory(tmp_path / "part")
    part.create({})
    part.checkpoint_path(4).parent.mkdir(exist_ok=True)
    whole.checkpoint(4).rename(part.checkpoint_path(4))
    part.metrics_file.write_text(whole.metrics_file.read_text())
    train(replace(config, run=str(part.path)), resume=True)
    assert losses(str(part.path)) == losses(config.run)
    first, second = weights(config.run), weights(str(part.path))
    assert first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def test_processes_change_nothing_and_resume_on_another_number(config, tmp_path) -> None:
    train(config)
    two = replace(config, run=str(tmp_path / "two"))
    done = torchrun(two, 2)
    assert done.returncode == 0, done.stderr
    assert losses(two.run) == pytest.approx(losses(config.run), rel=1e-5)
    assert RunDirectory(two.run).summary()["val_bpb"] == pytest.approx(RunDirectory(config.run).summary()["val_bpb"],
                                                                       rel=1e-4)
    shutil.rmtree(RunDirectory(two.run).checkpoint(6))
    train(two, resume=True)
    assert losses(two.run) == pytest.approx(losses(config.run), rel=1e-5)


def test_a_failing_rank_leaves_its_traceback_and_a_status(config) -> None:
    done = torchrun(replace(config, embedding_lr=1e39), 2)
    directory = RunDirectory(config.run)
    assert done.returncode != 0
    assert "FloatingPointError" in directory.errors()[0]["traceback"]
    assert directory.status()["state"] == "failed" and "lower the learning rates" in directory.status()["error"]


def test_a_signal_saves_and_stops_and_resume_goes_on(config, tmp_path) -> None:
    config = replace(config, steps=400, eval_every=None, save_every=None)
    threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGTERM)).start()
    summary = train(config)
    assert summary.state == "stopped" and summary.val_bpb is None and 0 < summary.step < 400
    assert RunDirectory(config.run).saved_steps() == [summary.step]
    with pytest.raises(ValueError, match="already holds a run: resume it"):
        train(config)
    assert train(config, resume=True).step == 400
    assert RunDirectory(config.run).metrics().index.tolist() == list(range(1, 401))


def test_a_full_disk_keeps_the_last_checkpoint(config) -> None:
    train(replace(config, steps=2))
    before = weights(config.run)
    directory = RunDirectory(config.run)
    limit = "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); " \
            "resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000)); sys.dont_write_bytecode = True; "
    code = limit + "from tinylib import checkpoint as c; from tinylib.model import GPT; " \
        f"model = c.load_model({str(directory.checkpoint())!r}); c.save({str(directory.checkpoint())!r}, model)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1 and "could not be written" in done.stderr and "free some disk space" in done.stderr
    assert [path.name for path in directory.checkpoints.iterdir()] == ["step_000002"]
    assert all(torch.equal(before[name], value) for name, value in weights(config.run).items())
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] != 20_000


def test_resuming_another_run_is_refused_with_both_values(config) -> None:
    train(replace(config, steps=2))
    with pytest.raises(ConfigError, match=r"steps was 2 and is 6.*matrix_lr was 0.02 and is 0.5"):
        train(replace(config, matrix_lr=0.5), resume=True)
    assert len(losses(config.run)) == 2


def test_bad_input_is_refused_before_any_step(config) -> None:
    for change, message in (({"data": "nowhere"}, "nowhere"), ({"device": "cuda"}, "not on this machine"),
                            ({"model": replace(config.model, vocab_size=300)}, "use vocab_size=320")):
        if change.get("device") == "cuda" and torch.cuda.is_available():
            continue
        with pytest.raises((ValueError, FileNotFoundError), match=message):
            train(replace(config, **change, run=config.run + message[:3]))
    with pytest.raises(ConfigError, match="total_batch_size=100 is not a multiple"):
        replace(config, total_batch_size=100)


def test_compiled_training_follows_the_eager_one(config, tmp_path) -> None:
    train(config)
    compiled = replace(config, run=str(tmp_path / "compiled"), compile="on")
    train(compiled)
    assert losses(compiled.run) == pytest.approx(losses(config.run), rel=1e-4)
    header = next(RunDirectory(compiled.run).records())
    assert header["compiled"] is True


def test_muon_equals_torchs_in_bfloat16() -> None:
    generator = torch.Generator().manual_seed(0)
    start, gradient = torch.randn(2, 12, 24, generator=generator), torch.randn(2, 12, 24, generator=generator)
    ours, theirs = ([torch.nn.Parameter(matrix.clone()) for matrix in start] for _ in range(2))
    pair = (Muon(ours, lr=0.1, dtype=torch.bfloat16),
            torch.optim.Muon(theirs, lr=0.1, weight_decay=0.0, adjust_lr_fn="original"))
    for weight, value in zip(ours + theirs, [*gradient, *gradient], strict=True):
        weight.grad = value.clone()
    for _ in range(3):
        for optimizer in pair:
            optimizer.step()
    for mine, other in zip(ours, theirs, strict=True):
        assert (mine - other).norm() < 0.02 * (mine - start[0]).norm()


@pytest.mark.parametrize("shape", [(3, 8, 32), (1, 32, 8), (5, 16, 16)])
def test_orthogonalise_keeps_the_singular_vectors(shape) -> None:
    matrices = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    left, _, right = torch.linalg.svd(matrices, full_matrices=False)
    inner = left.mT @ orthogonalise(matrices) @ right.mT
    off = inner - torch.diag_embed(inner.diagonal(dim1=1, dim2=2))
    assert off.abs().max() < 1e-3 and inner.diagonal(dim1=1, dim2=2).min() > 0.3


def test_every_tensor_has_one_slot_in_one_group(config) -> None:
    for tied in (False, True):
        tied_config = replace(config, model=replace(config.model, tied=tied))
        names = [name for group in groups(tied_config) for name in group.names]
        assert sorted(names) == sorted(spec.name for spec in tied_config.model.tensors())
        roles = {name: group.role for group in groups(tied_config) for name in group.names}
        assert roles["wte.weight"] == ("tied" if tied else "embedding")
        model = GPT(tied_config.model)
        model(torch.zeros(1, 4, dtype=torch.long), torch.ones(1, 4, dtype=torch.long)).backward()
        optimizer = Optimizer(model, tied_config)
        optimizer.step(0)
        assert ("lm_head.weight/exp_avg" in optimizer.state()) is not tied
    assert learning_rate(0, config) == 1.0 and 0 < learning_rate(5, config) < 1


def test_untied_weights_do_not_load_into_a_tied_model(config) -> None:
    train(replace(config, steps=2))
    with pytest.raises(ValueError, match=r"tied.*lm_head.weight is \(320, 32\) there and missing here"):
        checkpoint.load_weights(GPT(replace(config.model, tied=True)), RunDirectory(config.run).checkpoint())


def test_bits_per_byte_is_what_the_logits_say(data, config) -> None:
    shards = Shards(data, "val")
    model = GPT(config.model)
    for weight in model.parameters():
        weight.data.normal_(0, 0.3)
    bits, count = 0.0, 0
    with torch.no_grad():
        for x_BT, y_BT in shards.in_order(32, batch_size=1):
            chances = model(x_BT)[0].log_softmax(-1)
            for place, target in enumerate(y_BT[0].tolist()):
                text = b"" if target in (-1, shards.tokenizer.bos) else shards.tokenizer.decode_bytes([target])
                count += len(text)
                bits -= float(chances[place, target]) / math.log(2) if text else 0
    assert bits_per_byte(model, shards) == pytest.approx(bits / count, rel=1e-5)
    assert bits_per_byte(model, shards, batch_size=3) == pytest.approx(bits / count, rel=1e-5)


def test_document_bits_count_every_byte_once(data, config) -> None:
    tokenizer, model = Tokenizer.load(data / "tokenizer"), GPT(config.model)
    texts = ["Return the sum.", "größe " * 60, "x"]
    table = evaluate.document_bits(model, tokenizer, texts, batch_size=2)
    assert table["bytes"].tolist() == [len(text.encode()) for text in texts]
    assert table["tokens"].tolist() == [len(tokenizer.encode(text)) for text in texts]
    assert table["bits"].tolist() == pytest.approx((table["tokens"] * math.log2(320)).tolist(), rel=0.01)
    assert evaluate.xz_stream_bits(texts, ["größe " * 60]) < evaluate.xz_stream_bits(texts)


def test_generation_with_a_cache_is_generation_without(data, config) -> None:
    model, tokenizer = GPT(config.model), Tokenizer.load(data / "tokenizer")
    for weight in model.parameters():
        weight.data.normal_(0, 0.3, generator=torch.Generator().manual_seed(1))
    cached = list(generate_ids(model, [5, 6, 7], max_tokens=29, temperature=0))
    ids = [5, 6, 7]
    for _ in range(29):
        ids.append(int(model(torch.tensor([ids]))[0, -1].argmax()))
    assert cached == ids[3:]
    assert len(list(generate_ids(model, [5], max_tokens=100, seed=1))) == 100, "it goes on past the context"
    text = "".join(generate(model, tokenizer, "Return", max_tokens=20, seed=4))
    assert text == "".join(generate(model, tokenizer, "Return", max_tokens=20, seed=4)) != ""
    with pytest.raises(ValueError, match="temperature=-1"):
        next(generate_ids(model, [1], max_tokens=1, temperature=-1))

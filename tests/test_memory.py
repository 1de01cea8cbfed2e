"""Bytes in closed form against the tensors that are alive while the real model trains."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import weakref
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tinylib import loss as loss_module
from tinylib import sizing
from tinylib.config import PRESETS, ConfigError, GPTConfig, TrainConfig
from tinylib.loss import cross_entropy
from tinylib.model import GPT
from tinylib.optim import Muon, Optimizer


class Alive(TorchDispatchMode):
    """Adds up the storages that operators make, from their birth to their end; `peak` is the most at once."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: dict[int, int] = {}
        self.now = self.peak = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self._count((args, kwargs), born=False)    # a view of what was there before is nothing new
        out = function(*args, **(kwargs or {}))
        self._count(out, born=True)
        return out

    def _count(self, values: Any, born: bool) -> None:
        for tensor in tree_leaves(values):
            if isinstance(tensor, torch.Tensor) and id(tensor.untyped_storage()) not in self.sizes:
                storage = tensor.untyped_storage()
                self.sizes[id(storage)] = storage.nbytes() if born else 0
                weakref.finalize(storage, self._drop, id(storage))
                self.now += self.sizes[id(storage)]
                self.peak = max(self.peak, self.now)

    def _drop(self, key: int) -> None:
        self.now -= self.sizes.pop(key)


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize(("config", "batch_size"), [
    (GPTConfig(4, 64, 3072, seq_len=128), 4), (GPTConfig(4, 64, 3072, seq_len=128, tied=True), 4),
    (GPTConfig(6, 64, 1024, seq_len=64), 16), (GPTConfig(2, 128, 1024, head_dim=64, seq_len=256), 2),
    (GPTConfig(4, 128, 256, seq_len=32), 1)], ids=str)
def test_memory_of_a_training_step(config: GPTConfig, batch_size: int, recompute: bool):
    """The second step of a run: weights, gradients and optimizer state are there, and all of it is at work."""
    x_BT = torch.zeros(batch_size, config.seq_len, dtype=torch.long)
    alive = Alive()
    with alive:
        model = GPT(config)
        model.recompute = recompute
        optimizer = Optimizer(model, TrainConfig(config, total_batch_size=x_BT.numel(), device_batch_size=batch_size))
        for step in (0, 1):
            model(x_BT, x_BT).backward()
            optimizer.step(step)
            for weight in model.parameters():
                weight.grad.zero_()
    assert alive.peak == pytest.approx(sizing.memory(config, batch_size, recompute=recompute).total, rel=0.15)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs an allocator that can be told to give back")
@pytest.mark.parametrize("recompute", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_memory_of_a_whole_process(recompute: bool):
    script = Path(__file__).parent.parent / "benchmarks" / "memory.py"
    done = subprocess.run([sys.executable, script, json.dumps(["micro, 4 × 512", recompute, False])], check=True,
                          capture_output=True, text=True, env=os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536"})
    config = replace(PRESETS["micro"], seq_len=512)
    assert int(done.stdout) == pytest.approx(sizing.memory(config, 4, recompute=recompute).total, rel=0.15)


def kept(config: GPTConfig, batch_size: int, dtype: str, compiled: bool, recompute: bool = False) -> int:
    """Bytes that autograd keeps of the blocks' forward pass, weights left out."""
    model, storages = GPT(config, dtype=getattr(torch, dtype)), {}
    model.recompute = recompute
    if compiled:    # by inductor's partitioner, which decides what is kept, without its kernels, which take long
        model.trunk = torch.compile(model.trunk, backend="aot_eager_decomp_partition", dynamic=False)
    weights = {weight.untyped_storage().data_ptr() for weight in model.parameters()}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    x_BT = torch.zeros(batch_size, config.seq_len, dtype=torch.long)
    if compiled:
        model.hidden(x_BT)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        x_BTD = model.hidden(x_BT)
    del x_BTD
    return sum(storages.values())


def test_activations_are_what_autograd_keeps():
    for config in (GPTConfig(1, 128, 8, seq_len=64), GPTConfig(3, 128, 8, head_dim=32, seq_len=64)):
        assert kept(config, 4, "float32", compiled=False) == pytest.approx(sizing.activation_bytes(config, 4), rel=0.06)


@pytest.mark.parametrize("dtype", [pytest.param("float32", marks=pytest.mark.slow), "bfloat16"])
def test_another_layer_keeps_what_the_formula_says_of_the_compiled_model(dtype: str):
    one, two = (GPTConfig(depth, 128, 8, seq_len=64) for depth in (1, 2))
    measured = kept(two, 4, dtype, compiled=True) - kept(one, 4, dtype, compiled=True)
    formula = sizing.activation_bytes(two, 4, dtype=dtype) - sizing.activation_bytes(one, 4, dtype=dtype)
    assert measured == pytest.approx(formula, rel=0.01)


def test_recomputation_keeps_a_layer_s_input():
    one, many = (GPTConfig(depth, 128, 8, seq_len=64) for depth in (1, 9))
    tokens = 4 * 64
    extra = [sizing.activation_bytes(config, 4, recompute=True) for config in (one, many)]
    assert extra[1] - extra[0] == 8 * 4 * tokens * 128
    assert sizing.activation_bytes(many, 4) > 4 * extra[1]


def test_recomputation_changes_no_gradient():
    config = GPTConfig(3, 64, 100, head_dim=32, seq_len=16)
    x_BT = torch.randint(config.vocab_size, (2, 16), generator=torch.Generator().manual_seed(0))
    gradients = []
    for recompute in (False, True):
        model, generator = GPT(config), torch.Generator().manual_seed(1)
        model.recompute = recompute
        for weight in model.parameters():
            torch.nn.init.normal_(weight, std=0.1, generator=generator)
        model(x_BT, x_BT).backward()
        gradients.append(torch.cat([weight.grad.flatten() for weight in model.parameters()]))
    assert gradients[0].norm() > 0 and torch.equal(*gradients)


@pytest.mark.parametrize("softcap", [15.0, None])
@pytest.mark.parametrize("rows", [None, 256])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_loss_holds_what_the_formula_says(dtype: str, rows: int | None, softcap: float | None):
    config = GPTConfig(1, 64, 4096, seq_len=1024, softcap=softcap)
    x_RD = torch.zeros(2 * 1024, 64, dtype=getattr(torch, dtype), requires_grad=True)
    table_VD = torch.zeros(4096, 64, requires_grad=True)
    table_VD.grad = torch.zeros_like(table_VD)
    y_R = torch.zeros(len(x_RD), dtype=torch.long)
    with Alive() as alive:
        if rows is None:
            loss = F.cross_entropy(loss_module.softcap(F.linear(x_RD, table_VD.to(x_RD.dtype)).float(), softcap), y_R)
        else:
            loss = cross_entropy(x_RD, table_VD, y_R, softcap, chunk_rows=rows)
        loss.backward()
    assert alive.peak == pytest.approx(sizing.loss_bytes(config, 2, rows=rows), rel=0.15)
    assert rows is None or sizing.loss_bytes(config, 2, rows=rows) < sizing.loss_bytes(config, 2) / 3


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_muon_needs_so_many_copies_for_a_moment(dtype: torch.dtype):
    config = GPTConfig(3, 64, 8)
    model = GPT(config)
    matrices = [weight for name, weight in model.named_parameters() if name.startswith("blocks")]
    for weight in matrices:
        weight.grad = torch.ones_like(weight)
    muon = Muon(matrices, lr=0.02, dtype=dtype)
    with Alive() as alive:
        muon.step()
    assert alive.peak == pytest.approx(sizing.update_bytes(config, str(dtype).removeprefix("torch.")), rel=0.01)


@pytest.mark.gpu
@pytest.mark.parametrize("recompute", [False, True])
def test_memory_on_a_gpu(recompute: bool):
    """The formula counts three float32 copies of a chunk of logits; the compiled loss may do with two in bfloat16."""
    config = replace(PRESETS["goldilocks"], seq_len=1024)
    before = torch.cuda.memory_allocated()    # what other tests still hold
    torch.cuda.reset_peak_memory_stats()
    model = GPT(config, dtype=torch.bfloat16).cuda()
    model.recompute = recompute
    model.compile_for_training((16, 1024))
    optimizer = Optimizer(model, TrainConfig(config, total_batch_size=16 * 1024, device_batch_size=16))
    x_BT = torch.zeros(16, 1024, dtype=torch.long, device="cuda")
    for step in (0, 1):
        model(x_BT, x_BT).backward()
        optimizer.step(step)
    most = sizing.memory(config, 16, dtype="bfloat16", recompute=recompute)
    fused = 4 * config.vocab_size * (config.dim + sizing.chunk_rows(config.vocab_size, 80e9))
    least = replace(most, loss=fused)
    assert 0.85 * least.total < torch.cuda.max_memory_allocated() - before < 1.15 * most.total


def test_bytes():
    goldilocks = PRESETS["goldilocks"]
    assert sizing.weight_bytes(goldilocks) == 150_994_944
    assert sizing.optimizer_bytes(goldilocks) == 4 * (2 * 2 * 12_582_912 + 12_582_912)
    assert sizing.optimizer_bytes(replace(goldilocks, tied=True)) == 4 * (2 * 12_582_912 + 12_582_912)
    assert sizing.kv_cache_bytes(replace(goldilocks, seq_len=100), batch_size=3) == 2 * 4 * 3 * 100 * 512 * 4


def test_the_optimizer_s_state_is_as_large_as_said():
    for tied in (False, True):
        config = replace(PRESETS["nano"], seq_len=32, tied=tied)
        model = GPT(config)
        optimizer = Optimizer(model, TrainConfig(config, total_batch_size=32, device_batch_size=1))
        x_BT = torch.zeros(1, 32, dtype=torch.long)
        model(x_BT, x_BT).backward()
        optimizer.step(0)
        state = {name: value for name, value in optimizer.state().items() if not name.endswith("/step")}
        assert sum(value.nbytes for value in state.values()) == sizing.optimizer_bytes(config)


def test_the_largest_batch_is_the_last_that_fits():
    for config, room in ((PRESETS["goldilocks"], 24e9), (PRESETS["nanochat-d20"], 80e9), (PRESETS["nano"], 1e9)):
        most = sizing.largest_batch(config, room)
        rows = sizing.chunk_rows(config.vocab_size, room)
        needs = [sizing.memory(config, size, "bfloat16", rows=rows).total for size in (most, most + 1)]
        assert needs[0] <= room < needs[1]
    assert sizing.largest_batch(PRESETS["nanochat-d32"], 24e9) == 0
    assert 8 <= sizing.largest_batch(PRESETS["nanochat-d32"], 80e9) < 16    # as published: 16 are too many


def test_bad_input_is_named():
    goldilocks = PRESETS["goldilocks"]
    for call in (lambda: sizing.kv_cache_bytes(goldilocks, 0), lambda: sizing.memory(goldilocks, 0),
                 lambda: sizing.activation_bytes(goldilocks, 1, dtype="int8"),
                 lambda: sizing.loss_bytes(goldilocks, 1, rows=0), lambda: sizing.memory(goldilocks, 1, rows=0)):
        with pytest.raises(ConfigError, match=r"(batch_size|dtype|rows)=.*: use "):
            call()

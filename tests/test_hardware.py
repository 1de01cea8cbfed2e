"""Devices, profiles and the reader's own model, the environment check."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from tinylib import hardware, profiles
from tinylib.checks import UserError
from tinylib.config import PRESETS, ConfigError, GPTConfig, TrainConfig, from_json
from tinylib.doctor import doctor
from tinylib.launch import attach
from tinylib.rundir import RunDirectory


@pytest.mark.parametrize(("name", "known"), [
    ("NVIDIA H100 80GB HBM3", "H100"), ("NVIDIA H100 PCIe", "H100 PCIe"), ("NVIDIA H100 NVL", "H100 NVL"),
    ("NVIDIA A100-SXM4-80GB", "A100"), ("NVIDIA A100 80GB PCIe", "A100"), ("NVIDIA L4", "L4"), ("NVIDIA L40", None),
    ("NVIDIA L40S", "L40S"), ("NVIDIA GH200 480GB", None), ("NVIDIA GB200", None), ("NVIDIA B200", "B200"),
    ("NVIDIA H200", "H200"), ("NVIDIA H200 NVL", None), ("NVIDIA A10G", "A10G"), ("NVIDIA A10", None),
    ("NVIDIA GeForce RTX 4090", "RTX 4090"), ("NVIDIA GeForce RTX 4090 D", None),
    ("NVIDIA GeForce RTX 4090 Laptop GPU", None), ("NVIDIA GeForce RTX 3090 Ti", None), ("x86_64", None)])
def test_a_device_is_known_by_its_own_name_only(name: str, known: str | None):
    assert hardware.accelerator(name) is (hardware.ACCELERATORS[known] if known else None)


def test_the_table_of_hardware_is_sound():
    for name, one in hardware.ACCELERATORS.items():
        assert hardware.accelerator(name) is one
        assert 5e13 < one.peak_flops < 5e15 and 2e10 < one.memory_bytes < 3e11 and 0.1 < one.usd_per_hour < 20
        assert 1e10 < one.link < 1e12 and one.source


@pytest.mark.parametrize(("kind", "capability", "cpu", "chosen"), [
    ("cuda", (10, 0), {}, "bfloat16"), ("cuda", (9, 0), {}, "bfloat16"), ("cuda", (8, 6), {}, "bfloat16"),
    ("cuda", (7, 5), {"amx_bf16": True}, "float16"), ("cuda", (7, 0), {}, "float16"),
    ("cuda", (6, 1), {"amx_bf16": True}, "float32"), ("cpu", None, {"amx_bf16": True}, "bfloat16"),
    ("cpu", None, {"amx_bf16": False, "avx512_bf16": True}, "bfloat16"),
    ("cpu", None, {"amx_bf16": False, "avx512_bf16": False}, "float32"), ("cpu", None, {}, "float32"),
    ("mps", None, {"amx_bf16": True}, "float32")])
def test_the_precision_is_what_the_device_multiplies_fast(monkeypatch, kind, capability, cpu, chosen):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: cpu, raising=False)
    found, reason = hardware.dtype(hardware.Device(kind, "a device", 1, 0, None))
    assert found == chosen and reason.startswith(("a device", f"this {kind}", "this CPU"))
    if kind == "cpu":
        monkeypatch.delattr(torch.cpu, "get_capabilities")    # as in older versions of torch
        assert hardware.dtype(hardware.Device(kind, "a device", 1, 0, None))[0] == "float32"


@pytest.mark.parametrize(("gpus", "mps", "auto", "visible"), [
    (0, False, "cpu", ["cpu"]), (0, True, "mps", ["mps"]), (1, False, "cuda", ["cuda:0"]),
    (2, True, "cuda", ["cuda:0", "cuda:1"])])
def test_auto_takes_the_best_device_there_is(monkeypatch, gpus: int, mps: bool, auto: str, visible: list[str]):
    named = SimpleNamespace(name="NVIDIA H100 80GB HBM3", total_memory=85_000_000_000)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    for owner, name, value in ((torch.cuda, "is_available", gpus > 0), (torch.cuda, "device_count", gpus),
                               (torch.cuda, "get_device_properties", named), (torch.backends.mps, "is_available", mps)):
        monkeypatch.setattr(owner, name, lambda *which, value=value: value)
    found = hardware.device()
    assert (found.kind, found.count) == (auto, max(1, gpus)) and hardware.visible_devices() == visible
    assert (found.peak_flops, found.memory_bytes) == (989e12, 85_000_000_000) or auto != "cuda"
    assert hardware.device("cpu").kind == "cpu" and hardware.visible_devices("cpu") == ["cpu"]
    there = ["cuda"] * (gpus > 0) + ["mps"] * mps
    for kind in {"cuda", "mps"} - set(there):
        with pytest.raises(UserError, match=f"device='{kind}' is not on this machine: use .*{'.*'.join(there)}.*cpu"):
            hardware.device(kind)


def test_peak_memory_is_the_process_own_and_never_falls():
    """Also for the child of a large process, whose getrusage on Linux starts from its parent's peak."""
    code = """
import psutil, subprocess, sys
from tinylib.hardware import peak_memory_bytes
before, block = peak_memory_bytes("cpu"), b"1" * 300_000_000
print(before, peak_memory_bytes("cpu"), psutil.Process().memory_info().rss)
child = "from tinylib.hardware import peak_memory_bytes; print(peak_memory_bytes('cpu'))"
print(subprocess.run([sys.executable, "-c", child], capture_output=True, text=True).stdout)
del block
print(peak_memory_bytes("cpu"))
"""
    child = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    before, large, resident, of_child, after = map(int, child.stdout.split())
    assert large == pytest.approx(resident, rel=0.02) and 290e6 < large - before < 310e6
    assert abs(after - large) < 5e6 and of_child < before + 20e6    # Linux updates its page counts in batches


@pytest.mark.gpu
def test_peak_memory_of_a_gpu_is_what_torch_allocated():
    torch.cuda.reset_peak_memory_stats()    # the peak falls to what other tests still hold
    before = hardware.peak_memory_bytes("cuda")
    torch.zeros(100_000_000, dtype=torch.uint8, device="cuda")
    assert 100_000_000 <= hardware.peak_memory_bytes("cuda") - before < 110_000_000


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TINYLIB_HOME", str(tmp_path))
    return tmp_path


def test_a_saved_design_is_what_every_profile_call_trains(home: Path):
    own = profiles.profile("smoke").train.model
    design = replace(own, depth=own.depth + 2, vocab_size=4096)
    file = profiles.save_design(design, "smoke")
    assert file == home / "data" / "smoke" / "design.json" == profiles.profile("smoke").design
    assert from_json(GPTConfig, file.read_text()) == design == profiles.profile("smoke").train.model
    assert profiles.profile("cpu").train.model == replace(PRESETS["micro"], seq_len=256)    # each profile has its own
    again = replace(design, softcap=None)
    profiles.save_design(again, "smoke")
    assert profiles.profile("smoke").train == replace(TrainConfig(**vars(profiles.profile("smoke").train)), model=again)
    file.unlink()
    assert profiles.profile("smoke").train.model == own


def test_the_profile_is_found_without_a_cuda_context(home: Path, monkeypatch: pytest.MonkeyPatch):
    """Also by name of a run: a kernel that only looks for a folder takes no GPU memory."""
    monkeypatch.delenv("TINYLIB_PROFILE")
    monkeypatch.setattr(torch.cuda, "_lazy_init", lambda: pytest.fail("CUDA is initialized"))
    for there, name in ((True, "gpu"), (False, "cpu")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda there=there: there)
        assert profiles.profile().name == name
        run = RunDirectory(profiles.profile().runs / "untied")
        run.create()
        run.write_config(profiles.profile().train, 1)
        assert attach("untied").path == run.path.resolve()    # of two with this name, the one in the profile


def test_a_design_that_does_not_fit_the_batch_is_an_error(home: Path):
    design = replace(profiles.profile("smoke").train.model, seq_len=100)
    with pytest.raises(ConfigError, match=r"design .*design.json: total_batch_size=2048 is not a multiple"):
        profiles.save_design(design, "smoke")
    with pytest.raises(ConfigError, match=r"design .*design.json: tied=True"):
        profiles.save_design(replace(profiles.profile("smoke").train.model, tied=True), "smoke")
    assert not profiles.profile("smoke").design.exists()


def test_a_broken_design_file_is_named(home: Path):
    file = profiles.save_design(profiles.profile("smoke").train.model, "smoke")
    for text in ('{"depth": 0}', "not JSON"):
        file.write_text(text)
        with pytest.raises(ConfigError, match=r"design .*design.json: "):
            profiles.profile("smoke")
    design = replace(PRESETS["nano"], depth=3, seq_len=128)
    profiles.save_design(design, "smoke")    # replaces a broken file
    assert profiles.profile("smoke").train.model == design


def test_doctor_reports_what_is_missing():
    """Here without errors; in a process with no compiler on its PATH and no torch, with both."""
    assert not [check for check in doctor() if check.state == "error"]
    code = ("import os, sys\nos.environ['PATH'], sys.modules['torch'] = '', None\nos.environ.pop('CXX', None)\n"
            "from tinylib.doctor import doctor\nfor check in doctor(): print(check.name, check.state)")
    child = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    states = dict(line.split() for line in child.stdout.splitlines())
    assert states["torch"] == "error" and states["compile"] == "warning" and states["python"] == "ok"

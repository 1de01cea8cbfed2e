"""Checkpoints: whole or not at all, and never of the wrong model."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from tinylib import checkpoint
from tinylib.model import GPT
from tinylib.rundir import RunDirectory
from tinylib.train import train


def test_a_full_disk_keeps_the_last_checkpoint(tiny) -> None:
    train(replace(tiny, steps=2))
    directory = RunDirectory(tiny.run)
    before = load_file(directory.checkpoint() / checkpoint.WEIGHTS)
    limit = "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); " \
            "resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000)); sys.dont_write_bytecode = True; "
    code = limit + "from tinylib import checkpoint as c; from tinylib.model import GPT; " \
        f"model = c.load_model({str(directory.checkpoint())!r}); c.save({str(directory.checkpoint())!r}, model)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1 and "could not be written" in done.stderr and "free some disk space" in done.stderr
    assert [path.name for path in directory.checkpoints.iterdir()] == ["step_000002"]
    after = load_file(directory.checkpoint() / checkpoint.WEIGHTS)
    assert all(torch.equal(before[name], value) for name, value in after.items())


def test_untied_weights_do_not_load_into_a_tied_model(tiny) -> None:
    train(replace(tiny, steps=2))
    with pytest.raises(ValueError, match=r"tied.*lm_head.weight is \(320, 32\) there and missing here"):
        checkpoint.load_weights(GPT(replace(tiny.model, tied=True)), RunDirectory(tiny.run).checkpoint())

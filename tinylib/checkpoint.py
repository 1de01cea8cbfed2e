"""Checkpoints: atomic save, exact resume, starting from another run.

A checkpoint is a folder: `model.safetensors` (each weight once, under its plain name), `optimizer.safetensors`,
`config.json` (the model), `train_state.json` (the run's configuration, the step, the data) and `tokenizer/`.  It is
written under a temporary name, flushed to disk and renamed; nothing in it is a pickle.
"""

from __future__ import annotations

import errno
import json
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from tinylib.checks import UserError, raise_if
from tinylib.config import GPTConfig, TrainConfig, from_dict, from_file, to_json
from tinylib.files import read_json, write_folder
from tinylib.model import GPT
from tinylib.optim import Optimizer
from tinylib.rundir import RunDirectory, plain
from tinylib.shards import Shards
from tinylib.tokenizer import Tokenizer

WEIGHTS, OPTIMIZER, CONFIG, TRAIN_STATE, TOKENIZER = (
    "model.safetensors", "optimizer.safetensors", "config.json", "train_state.json", "tokenizer")


def save(folder: str | Path, model: GPT, optimizer: Optimizer | None = None, train_state: dict[str, Any] | None = None,
         tokenizer: Path | None = None) -> Path:
    """Write a checkpoint at `folder`, atomically; an older one there is replaced.

    `tokenizer` is the folder of a saved tokenizer.  Raises OSError, with nothing left behind, where the disk is full.
    """
    folder = Path(folder)
    with write_folder(folder, (WEIGHTS, OPTIMIZER, CONFIG, TRAIN_STATE, TOKENIZER)) as part:
        save_tensors(dict(model.named_parameters()), part / WEIGHTS)
        (part / CONFIG).write_text(to_json(model.config), encoding="utf-8")
        if optimizer is not None:
            save_tensors(optimizer.state(), part / OPTIMIZER)
        if train_state is not None:
            (part / TRAIN_STATE).write_text(json.dumps(train_state, indent=2), encoding="utf-8")
        if tokenizer is not None:
            shutil.copytree(tokenizer, part / TOKENIZER)
    return folder


def load_model(folder: str | Path, device: str | torch.device = "cpu", dtype: str = "float32") -> GPT:
    """The model of a checkpoint, in evaluation mode on `device`, computing in `dtype`, in which its weights are held.

    Raises FileNotFoundError where there is none, UserError where weights and configuration don't fit.
    """
    with torch.device("meta"):
        model = GPT(read_model_config(folder))
    model = model.to_empty(device=device)
    load_weights(model, folder)
    model.dtype = getattr(torch, dtype)
    return model.to(model.dtype).eval()


def read_model_config(folder: str | Path) -> GPTConfig:
    """The model configuration of a checkpoint; FileNotFoundError where there is none."""
    file = Path(folder) / CONFIG
    if not file.is_file():
        raise FileNotFoundError(f"no checkpoint at {folder}: {CONFIG} is missing")
    return from_file(GPTConfig, file)


def read_train_state(folder: str | Path) -> dict[str, Any]:
    """The `train_state` that `save` was given; FileNotFoundError where it was given none."""
    state = read_json(Path(folder) / TRAIN_STATE)
    if state is None:
        raise FileNotFoundError(f"{folder} holds no {TRAIN_STATE}: it is no checkpoint that training can resume from")
    return state


def load_weights(model: GPT, folder: str | Path) -> None:
    """Copy the weights of a checkpoint into `model`, which must have the same tensors with the same shapes."""
    file = Path(folder) / WEIGHTS
    stored, own = load_tensors(file), dict(model.named_parameters())
    wrong = mismatches(stored, own)
    if wrong:
        tied = [name for name in wrong if name.startswith("lm_head")]
        hint = " (one of the two is tied, the other isn't)" if tied else ""
        raise UserError(f"{file} does not fit the model{hint}: " + "; ".join(wrong))
    with torch.no_grad():
        for name, weight in own.items():
            weight.copy_(stored[name])


def load_training(folder: str | Path, model: GPT, optimizer: Optimizer) -> None:
    """Copy weights and optimizer state of a checkpoint into `model` and `optimizer`."""
    load_weights(model, folder)
    file = Path(folder) / OPTIMIZER
    stored = load_tensors(file)
    wrong = mismatches(stored, optimizer.state())
    if wrong:
        raise UserError(f"{file} does not fit the optimizer: " + "; ".join(wrong))
    optimizer.load_state(stored)


_FREE = ("data", "run_dir", "device", "device_batch_size", "dtype", "compile", "recompute", "eval_every",
         "eval_tokens", "save_every", "keep", "tensorboard")
"""Fields that may change on resume: they alter neither the batches nor, but for rounding, the updates."""


def check_same_run(state: dict[str, Any], config: TrainConfig, data: str, dtype: str) -> None:
    """Raise ConfigError, with both values, unless `config` continues the run of the train state `state`.

    The recipe must be the same, and the fingerprint of the `data`; so must the precision, which is `dtype` here, unless
    `config` asks for another by name.
    """
    old = {**plain(from_dict(TrainConfig, state["train"])), "shards": state["data"]}
    new = {**plain(config), "shards": data}
    wrong = [f"{name} was {old[name]!r} and is {new[name]!r}: resume with the value the run began with, or start a "
             "new run" for name in new if name not in _FREE and old[name] != new[name]]
    if config.dtype == "auto" and dtype != state["dtype"]:
        wrong.append(f"dtype was {state['dtype']!r} and is {dtype!r} on this machine: resume on one like the first, or "
                     f"accept the change with dtype={dtype!r}")
    raise_if("TrainConfig", wrong)


@dataclass(frozen=True)
class Start:
    """Starting point of a run: a checkpoint (None: new weights), and its train state where it continues from there."""

    folder: Path | None = None
    state: dict[str, Any] | None = None

    @property
    def step(self) -> int:
        """Steps done."""
        return int(self.state["step"]) if self.state else 0


def find_start(config: TrainConfig, directory: RunDirectory, shards: Shards, dtype: str, step: int) -> Start:
    """The checkpoint that a run starts from: its own of `step` if that is not 0, else `config.init_from`, else none.

    Raises ConfigError, UserError or FileNotFoundError where that does not fit the configuration or the shards.
    """
    if step:
        folder = directory.checkpoint(step)
        state = read_train_state(folder)
        check_same_run(state, config, shards.fingerprint, dtype)
        return Start(folder, state)
    if config.init_from is None:
        return Start()
    folder = Path(config.init_from)
    there = read_model_config(folder)
    raise_if("TrainConfig", [f"model.{name}={getattr(config.model, name)} is {getattr(there, name)} in init_from="
                             f"{config.init_from!r}: the tensors must be the same"
                             for name in ("depth", "dim", "vocab_size", "tied")
                             if getattr(there, name) != getattr(config.model, name)])
    shards.check_tokenizer(Tokenizer.load(folder / TOKENIZER).fingerprint, str(folder))
    if not config.init_state:
        return Start(folder)
    start = Start(folder, read_train_state(folder))
    raise_if("TrainConfig", [None if start.step < config.steps else f"steps={config.steps} leaves none after the "
                             f"{start.step} of init_from={config.init_from!r}: use more than {start.step}"])
    return start


def mismatches(stored: dict[str, Tensor], own: dict[str, Tensor]) -> list[str]:
    """Every tensor whose shape or dtype differs between a file and a template, as text."""
    return [f"{name} is {_layout(stored.get(name))} there and {_layout(own.get(name))} here"
            for name in sorted(stored.keys() | own.keys()) if _layout(stored.get(name)) != _layout(own.get(name))]


def _layout(tensor: Tensor | None) -> str:
    return "missing" if tensor is None else f"{tuple(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}"


def load_tensors(file: Path) -> dict[str, Tensor]:
    """Tensors of a safetensors file; UserError for a damaged one, FileNotFoundError without one."""
    file.open("rb").close()    # safetensors says of a file that may not be read that there is none
    try:
        return load_file(file)
    except SafetensorError as error:    # its message doesn't name the file
        raise UserError(f"{file} is damaged, {error}: remove {file.parent.name}, then the checkpoint before it is "
                        "used") from error


def save_tensors(tensors: Mapping[str, Tensor], file: Path, metadata: dict[str, str] | None = None) -> None:
    """Write a safetensors file, with the permissions of any other file; OSError where the disk is full."""
    file.touch()
    mode = file.stat().st_mode    # safetensors writes a file that its owner alone can read
    try:
        save_file({name: tensor.detach().contiguous() for name, tensor in tensors.items()}, file, metadata)
        file.chmod(mode)
    except SafetensorError as error:    # it hides the system's own error, such as a full disk
        number = re.search(r"os error (\d+)", str(error))
        raise OSError(int(number[1]) if number else errno.EIO, f"could not be written, {error}", str(file)) from error

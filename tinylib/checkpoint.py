"""Checkpoints: written whole or not at all, and enough to resume exactly.

A checkpoint is a folder: `model.safetensors` (each weight once, under its plain name), `optimizer.safetensors`,
`config.json` (the model), `loop.json` (the run's configuration, the step, the data) and `tokenizer/`.  It is written
beside its place, flushed to the disk and moved there; nothing in it is a pickle.
"""

from __future__ import annotations

import errno
import json
import re
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from tinylib.checks import raise_if
from tinylib.config import GPTConfig, TrainConfig, from_json, to_json
from tinylib.model import GPT
from tinylib.optim import Optimizer
from tinylib.rundir import plain, write_folder

WEIGHTS, OPTIMIZER, CONFIG, LOOP, TOKENIZER = (
    "model.safetensors", "optimizer.safetensors", "config.json", "loop.json", "tokenizer")


def save(folder: str | Path, model: GPT, optimizer: Optimizer | None = None, loop: dict[str, Any] | None = None,
         tokenizer: Path | None = None) -> Path:
    """Write a checkpoint at `folder`, which appears whole or not at all; an older one there is replaced.

    `tokenizer` is the folder of a saved tokenizer.  Raises OSError, with nothing left behind, where the disk is full.
    """
    folder = Path(folder)
    with write_folder(folder) as part:
        _save_tensors(dict(model.named_parameters()), part / WEIGHTS)
        (part / CONFIG).write_text(to_json(model.config), encoding="utf-8")
        if optimizer is not None:
            _save_tensors(optimizer.state(), part / OPTIMIZER)
        if loop is not None:
            (part / LOOP).write_text(json.dumps(loop, indent=2), encoding="utf-8")
        if tokenizer is not None:
            shutil.copytree(tokenizer, part / TOKENIZER)
    return folder


def load_model(folder: str | Path, device: str | torch.device = "cpu") -> GPT:
    """The model of a checkpoint, in evaluation mode on `device`.

    Raises FileNotFoundError where there is none, ValueError where weights and configuration don't fit.
    """
    folder = Path(folder)
    if not (folder / CONFIG).is_file():
        raise FileNotFoundError(f"no checkpoint at {folder}: {CONFIG} is missing")
    config = from_json(GPTConfig, (folder / CONFIG).read_text(encoding="utf-8"))
    with torch.device("meta"):
        model = GPT(config)
    model = model.to_empty(device=device)
    load_weights(model, folder)
    return model.eval()


def load_weights(model: GPT, folder: str | Path) -> None:
    """Copy the weights of a checkpoint into `model`, which must have the same tensors with the same shapes."""
    file = Path(folder) / WEIGHTS
    stored = _load_tensors(file)
    own = dict(model.named_parameters())
    wrong = [f"{name} is {_shape(stored.get(name))} there and {_shape(own.get(name))} here"
             for name in sorted(stored.keys() | own.keys()) if _shape(stored.get(name)) != _shape(own.get(name))]
    if wrong:
        tied = [name for name in wrong if name.startswith("lm_head")]
        hint = " (one of the two is tied, the other isn't)" if tied else ""
        raise ValueError(f"{file} does not fit the model{hint}: " + "; ".join(wrong))
    with torch.no_grad():
        for name, weight in own.items():
            weight.copy_(stored[name])


def load_training(folder: str | Path, model: GPT, optimizer: Optimizer) -> None:
    """Weights and optimizer state of a checkpoint into place."""
    load_weights(model, folder)
    optimizer.load_state(_load_tensors(Path(folder) / OPTIMIZER))


def read_loop(folder: str | Path) -> dict[str, Any]:
    """What `save` was given as `loop`."""
    return dict(json.loads((Path(folder) / LOOP).read_text(encoding="utf-8")))


_FREE = ("data", "run", "device", "device_batch_size", "dtype", "compile", "recompute", "eval_every", "eval_tokens",
         "save_every", "keep", "tensorboard")
"""Fields that may change on resume: they alter neither the batches nor, but for rounding, the updates."""


def refuse_another_run(loop: dict[str, Any], config: TrainConfig, data: str, dtype: str) -> None:
    """Raise ConfigError, with both values, unless `config` goes on with the run whose `loop` a checkpoint holds.

    The recipe must be the same, and the fingerprint of the `data`; so must the precision, which is `dtype` here, unless
    `config` asks for another by name.
    """
    old, new = {**loop["train"], "shards": loop["data"]}, {**plain(config), "shards": data}
    wrong = [f"{name} was {old.get(name)!r} and is {new[name]!r}: resume with the value the run began with, or start a "
             "new run" for name in new if name not in _FREE and old.get(name) != new[name]]
    if config.dtype == "auto" and dtype != loop["dtype"]:
        wrong.append(f"dtype was {loop['dtype']!r} and is {dtype!r} on this machine: resume on one like the first, or "
                     f"accept the change with dtype={dtype!r}")
    raise_if("TrainConfig", wrong)


def _shape(tensor: Tensor | None) -> tuple[int, ...] | str:
    return "missing" if tensor is None else tuple(tensor.shape)


def _load_tensors(file: Path) -> dict[str, Tensor]:
    try:
        return load_file(file)
    except SafetensorError as error:    # it doesn't say of which file
        raise ValueError(f"{file} is damaged, {error}: remove {file.parent.name}, and what is older counts") from error


def _save_tensors(tensors: dict[str, Tensor], file: Path) -> None:
    try:
        save_file({name: tensor.detach().contiguous() for name, tensor in tensors.items()}, file)
    except SafetensorError as error:    # it hides the system's own error, such as a full disk
        number = re.search(r"os error (\d+)", str(error))
        raise OSError(int(number[1]) if number else errno.EIO, f"could not be written, {error}", str(file)) from error

"""Memory of what notebooks compute in their own kernels, by the closed form, and of the runs that they start.

The cells run here with the rows and the context of a profile, but with a thin model in the place of its own.  Before a
forward pass every size that was taken from the thin model is replaced by that of the profile's, and the bytes of the
closed form are compared with a limit.  What the notebooks start in other processes is not run.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterator
from concurrent import futures
from dataclasses import replace
from pathlib import Path
from typing import Any

import nbformat
import pandas as pd
import pytest
import torch
from torch import Tensor

from tinylib import corpus, hardware, profiles, sizing
from tinylib.config import GPTConfig
from tinylib.model import GPT
from tinylib.shards import build
from tinylib.tokenizer import Tokenizer
from tinylib.train import train

NOTEBOOKS = {path.stem[:2]: path for path in sorted((Path(__file__).parent.parent / "notebooks").glob("0*.ipynb"))
             if re.search(r"\bGPT\(|load_model", path.read_text(encoding="utf-8"))}
"""The notebooks with a model."""
LIMIT_BYTES = 4e9
"""Half the memory of a laptop, for tensors."""
THIN = {"depth": 3, "dim": 48, "head_dim": 24, "vocab_size": 389}
"""Sizes that no notebook chooses itself, so that they are known again."""


class TooLarge(Exception):
    """A forward pass that needs more than LIMIT_BYTES."""


class InAnotherProcess(Exception):
    """Raised in the place of what would start processes."""


def forward_bytes(config: GPTConfig, rows: int, trains: bool, logits: bool) -> int:
    """Bytes of a training step in float32, or of a forward pass alone, which keeps one layer's activations."""
    chunk = sizing.chunk_rows(config.vocab_size, 8e9)    # a laptop with a GPU
    if trains:
        return sizing.memory(config, rows, rows=None if logits else chunk).total
    return (sizing.weight_bytes(config) + sizing.activation_bytes(replace(config, depth=1), rows)
            + sizing.loss_bytes(config, rows, rows=None if logits else chunk))


class Kernel:
    """A kernel that runs a notebook's cells in the profile `name`, and counts the bytes of its forward passes."""

    def __init__(self, name: str, folder: Path, patch: pytest.MonkeyPatch) -> None:
        patch.setenv("TINYLIB_HOME", str(folder))
        patch.setenv("TINYLIB_PROFILE", name)
        self.real = profiles.profile().train.model
        self.bytes: list[int] = []
        self.names: dict[str, Any] = {}
        profiles.save_design(replace(self.real, **THIN))
        text, forward = self._text(folder), GPT.forward
        load = corpus.load

        def elsewhere(*_: Any, **__: Any) -> None:
            raise InAnotherProcess

        def counted(model: GPT, x_BT: Tensor, y_BT: Tensor | None = None, **options: Any) -> Tensor:
            shape = replace(self.scaled(model.config), seq_len=x_BT.shape[1])
            self.bytes.append(forward_bytes(shape, len(x_BT), torch.is_grad_enabled(), y_BT is None))
            if self.bytes[-1] > LIMIT_BYTES:
                raise TooLarge(f"{tuple(x_BT.shape)} tokens through {shape} need {self.bytes[-1] / 1e9:.1f} GB")
            return forward(model, x_BT, y_BT, **options)

        talks = folder / "talks.jsonl"
        turns = ([{"role": role, "content": f"{n} " + "abc abcd " * 9} for role in ("user", "assistant")]
                 for n in range(3000))
        talks.write_text("".join(json.dumps({"text": text}) + "\n" for text in turns), encoding="utf-8")
        asked = profiles.profile().conversations
        patch.setattr(corpus, "load", lambda name: load(talks if name == asked else text))
        patch.setattr("tinylib.launch.launch", elsewhere)
        patch.setattr(futures, "ProcessPoolExecutor", elsewhere)
        self._train(text)
        patch.setattr(GPT, "forward", counted)

    def _text(self, folder: Path) -> Path:
        """A corpus whose held-out documents fill the windows of any profile."""
        draw, file = random.Random(0), folder / "text.jsonl"
        words = ["".join(draw.choices("abcdefghijklm", k=5)) for _ in range(300)]
        documents = ("\n".join(" ".join(draw.choices(words, k=10)) for _ in range(100)) for _ in range(300))
        file.write_text("\n".join(json.dumps({"text": text}) for text in documents), encoding="utf-8")
        return file

    def _train(self, text: Path) -> None:
        """Shards, and one step of the run that later notebooks read."""
        source, profile = corpus.load(text), profiles.profile()
        splits = {split: source.texts(split) for split in corpus.SPLITS}
        build(splits, Tokenizer.train(source.texts("train"), THIN["vocab_size"], max_chars=300_000), profile.shards)
        context = profile.train.model.seq_len
        train(replace(profile.train, steps=1, total_batch_size=context, device_batch_size=1, eval_tokens=context,
                      compile="off", device="cpu"))

    def scaled(self, config: GPTConfig) -> GPTConfig:
        """`config` with the sizes of the profile's own model in the place of the thin one's."""
        return replace(config, **{field: getattr(self.real, field) for field, size in THIN.items()
                                  if getattr(config, field) == size})

    def run(self, notebook: Path) -> None:
        """Run the cells.  Cells end early without a run or a trained model; any other error is one."""
        for place, cell in enumerate(nbformat.read(notebook, 4).cells):
            if cell.cell_type == "code":
                try:
                    exec(compile(cell.source, f"{notebook.stem}, cell {place}", "exec"), self.names)
                except (InAnotherProcess, FileNotFoundError, NameError, AssertionError):
                    continue


@pytest.fixture
def quiet() -> Iterator[None]:
    """Options of pandas and torch that notebooks set, restored."""
    threads = torch.get_num_threads()
    with pd.option_context("display.float_format", None, "display.max_colwidth", 50):
        yield
    torch.set_num_threads(threads)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")    # as in a kernel
@pytest.mark.parametrize("profile", ["gpu", *(pytest.param(name, marks=pytest.mark.slow) for name in ("smoke", "cpu"))])
@pytest.mark.parametrize("notebook", [
    pytest.param(name, marks=[pytest.mark.slow] if name in ("01", "03") else []) for name in NOTEBOOKS])
def test_what_a_kernel_computes_fits_a_laptop(notebook: str, profile: str, tmp_path: Path,
                                              monkeypatch: pytest.MonkeyPatch, quiet: None) -> None:
    kernel = Kernel(profile, tmp_path, monkeypatch)
    kernel.run(NOTEBOOKS[notebook])
    assert kernel.bytes and max(kernel.bytes) <= LIMIT_BYTES
    if notebook == "04":    # its short runs have two processes, beside each other
        short = kernel.names["short"]
        shape = kernel.scaled(short.model)
        assert 2 * sizing.memory(shape, short.device_batch_size).total < LIMIT_BYTES
        for gpus in (0, 1, 2, 8):
            monkeypatch.setattr(torch.cuda, "device_count", lambda count=gpus: count)
            assert hardware.visible_devices(short.device) == ["cpu"]


def test_a_whole_batch_in_a_kernel_is_too_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first batch of goldilocks, 256 rows of 2,048 tokens, as a notebook would write it."""
    kernel, source = Kernel("gpu", tmp_path, monkeypatch), (
        "from tinylib.shards import Batch, Shards\nfrom tinylib import profiles\nfrom tinylib.model import GPT\n"
        "config = profiles.profile().train\nmodel = GPT(config.model)\n"
        "model(*Shards(config.data).batch(Batch(0, 256, config.model.seq_len))).backward()")
    file = tmp_path / "whole.ipynb"
    nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source)]), file)
    with pytest.raises(TooLarge, match=r"\(256, 2048\) tokens .* need 8\d\.\d GB"):
        kernel.run(file)


def test_the_run_of_each_profile_fits_its_machine() -> None:
    for name, room_bytes, processes in (("smoke", LIMIT_BYTES, 2), ("cpu", LIMIT_BYTES, 2), ("gpu", 16e9, 1)):
        run = profiles.profile(name).train
        dtype = "bfloat16" if name == "gpu" else "float32"
        assert processes * sizing.memory(run.model, run.device_batch_size, dtype=dtype).total < room_bytes

"""Shared parts of gpu.py: sizes, device times, random text, rows of the real training loop."""

from __future__ import annotations

import gc
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tinylib import hardware, sizing
from tinylib.config import PRESETS, GPTConfig, TrainConfig
from tinylib.model import GPT
from tinylib.rundir import Header, Record, Step
from tinylib.shards import build
from tinylib.tokenizer import Tokenizer
from tinylib.tokenizer.vocabulary import SPECIAL_TOKENS
from tinylib.train import train

Row = dict[str, Any]


@dataclass
class Bench:
    """Sizes of one call, and what several parts need."""

    tiny: bool
    contexts: list[int]
    steps: int
    compile: str
    tests_s: float
    nanochat: Path | None
    shards: str
    folder: Path

    def __post_init__(self) -> None:
        self.device = hardware.device()
        self.kind = self.device.kind
        self.dtype = hardware.dtype(self.device)[0]
        self.model = GPTConfig(2, 64, 512, head_dim=32) if self.tiny else PRESETS["goldilocks"]
        self.total, self.batch, self.repeats = (512, 4, 2) if self.tiny else (524_288, 32, 10)
        self.text = self.shards or "random words by Zipf's law"
        if not self.shards:
            self.shards = str(self.folder / "shards")
            random_text(self.model.vocab_size, 20 if self.tiny else 6_000, Path(self.shards))

    def at(self, context: int, tied: bool = False) -> GPTConfig:
        """The model at this context."""
        return replace(self.model, seq_len=context, tied=tied)

    @cached_property
    def products_per_s(self) -> float:
        """FLOP/s of a large matrix product of random numbers, in the precision of the training."""
        size = 256 if self.tiny else 8192
        left, right = (torch.randn(size, size, device=self.kind, dtype=getattr(torch, self.dtype)) for _ in range(2))
        return 2 * size**3 / self.seconds(lambda: left @ right)

    @cached_property
    def bytes_per_s(self) -> float:
        """Bytes read and written by a large copy on the device."""
        source = torch.randn(2**20 if self.tiny else 2**29, device=self.kind)
        target = torch.empty_like(source)
        return 2 * source.nbytes / self.seconds(lambda: target.copy_(source))

    def seconds(self, work: Callable[[], object], repeats: int | None = None, warmup: int = 2) -> float:
        """Median seconds of `work`, on a GPU between CUDA events."""
        for _ in range(warmup):
            work()
        return statistics.median(self._once(work) for _ in range(repeats or self.repeats))

    def _once(self, work: Callable[[], object]) -> float:
        if self.kind != "cuda":
            began = time.perf_counter()
            work()
            return time.perf_counter() - began
        torch.cuda.synchronize()
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        work()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / 1000

    def rates(self, tokens_per_s: float, flops_per_token: float) -> Row:
        """Tokens/s and MFU, of the measured peak and of the data sheet."""
        flops, sheet = tokens_per_s * flops_per_token, self.device.peak_flops
        return {"tokens_per_s": tokens_per_s, "mfu_of_measured": flops / self.products_per_s,
                "mfu_of_sheet": sheet and flops / sheet}

    def peak_gb(self) -> float | None:
        """Peak memory that the GPU allocated since `fresh`; a CPU has no such count."""
        return torch.cuda.max_memory_allocated() / 1e9 if self.kind == "cuda" else None

    def fresh(self) -> None:
        """Forget freed memory and compiled graphs: of one function 8 are kept, a ninth would silently run eagerly."""
        torch._dynamo.reset()
        gc.collect()
        if self.kind == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()

    def fitting(self, row: Callable[[int], Row]) -> Row:
        """`row` of the usual micro-batch; where memory is short, of a half or a quarter of it, with the reason."""
        reason = None
        for batch in (self.batch, self.batch // 2, self.batch // 4):
            try:
                return row(batch) | ({"why": reason} if reason else {})
            except torch.OutOfMemoryError as error:
                reason = f"{batch} sequences: {str(error)[:150]}"
        raise MemoryError(reason)

    def random_model(self, config: GPTConfig, dtype: str) -> GPT:
        """A model without a zero weight."""
        model = GPT(config, dtype=getattr(torch, dtype)).to(self.kind)
        for weight in model.parameters():
            torch.nn.init.normal_(weight, std=0.02)
        return model


def random_text(vocab_size: int, documents: int, folder: Path) -> None:
    """Shards of documents of about 1,000 random words, each word one token, by Zipf's law; a quarter is validation."""
    count = vocab_size - 256 - len(SPECIAL_TOKENS)
    words = np.array([" " + "".join(chr(97 + rank // 26**place % 26) for place in range(4)) for rank in range(count)])
    tokenizer = Tokenizer([bytes([value]) for value in range(256)] + [word.encode() for word in words])
    draw, shares = np.random.default_rng(0), 1 / np.arange(1, count + 1)

    def texts(number: int) -> list[str]:
        return ["".join(words[draw.choice(count, int(draw.integers(500, 1500)), p=shares / shares.sum())])
                for _ in range(number)]

    build({"train": texts(documents), "val": texts(documents // 4)}, tokenizer, folder)


def trained(bench: Bench, config: GPTConfig, batch: int, callback: Callable[[Record], None] = lambda record: None,
            **changes: Any) -> Row:
    """Whole steps of the real training loop; the first two are warm-up."""
    bench.fresh()
    records: list[Record] = []

    def keep(record: Record) -> None:
        records.append(record)
        callback(record)

    with tempfile.TemporaryDirectory(dir=bench.folder) as folder:
        train(TrainConfig(config, **{
            "data": bench.shards, "run_dir": f"{folder}/run", "steps": bench.steps, "total_batch_size": bench.total,
            "device_batch_size": batch, "dtype": bench.dtype, "compile": bench.compile, "eval_every": None,
            "save_every": None, "eval_tokens": config.seq_len} | changes), callback=keep)
    header = next(record for record in records if isinstance(record, Header))
    steps = [record for record in records if isinstance(record, Step)][2:]
    row = {"context": config.seq_len, "tied": config.tied, "batch": batch, "peak_gb": bench.peak_gb(),
           "compiled": header.compiled}
    if not header.compiled:
        row["eager_because"] = header.compile_reason
    if steps:
        dt_s = statistics.median(step.dt_s for step in steps)
        row |= {"dt_s": dt_s, **bench.rates(bench.total / dt_s, sizing.flops_per_token(config)), "loss": steps[-1].loss,
                "data_share": statistics.median(step.data_s / step.dt_s for step in steps)}
    return row


def commit(checkout: Path) -> str | None:
    """Commit of a checkout; None where its .git did not travel with it."""
    return printed("git", "-C", str(checkout), "rev-parse", "HEAD") if (checkout / ".git").exists() else None


def printed(*command: str) -> str | None:
    """Output of a command; None if it fails or is missing."""
    done = shutil.which(command[0]) and subprocess.run(command, capture_output=True, text=True)
    return done.stdout.strip() if done and done.returncode == 0 else None

"""Memory of training and inference in closed form: weights, optimizer state, activations, logits, KV cache."""

from __future__ import annotations

import bisect
import math
from dataclasses import dataclass
from typing import Literal

from tinylib import checks
from tinylib.config import GPTConfig
from tinylib.sizing.counts import Shapes, parameters

Precision = Literal["float32", "bfloat16"]
BYTES = {"float32": 4, "bfloat16": 2}
"""Bytes of one number."""


def weight_bytes(config: GPTConfig | Shapes) -> int:
    """Bytes of the weights, in float32 on every device; the gradients take as many."""
    return 4 * parameters(config).total


def optimizer_bytes(config: GPTConfig | Shapes) -> int:
    """Bytes of optimizer state in float32: AdamW keeps two moments of a table's weight, Muon one of a matrix's.

    >>> from tinylib.config import PRESETS
    >>> optimizer_bytes(PRESETS["goldilocks"]) / weight_bytes(PRESETS["goldilocks"])
    1.6666666666666667
    """
    count = parameters(config)
    return 4 * (2 * count.total - count.blocks)


def kv_cache_bytes(config: GPTConfig | Shapes, batch_size: int = 1) -> int:
    """Bytes of the KV cache: 2·L·B·T·D numbers in float32.

    >>> from tinylib.config import PRESETS
    >>> kv_cache_bytes(PRESETS["goldilocks"]) // 2**20
    32
    """
    checks.raise_if("kv_cache_bytes", [checks.check_int("batch_size", batch_size)])
    return 4 * 2 * config.depth * batch_size * config.seq_len * config.dim


def activation_bytes(config: GPTConfig | Shapes, batch_size: int, dtype: Precision = "float32",
                     recompute: bool = False) -> int:
    """Bytes of activations that the blocks keep for the backward pass of `batch_size` sequences.

    A layer keeps 19·D numbers a token in `dtype`, and 3·N + 2 in float32, the scales of norms and softmax.  The 19·D
    are 2·D of the residual stream, in attention 7·D (a normed copy of the input; queries and keys, rotated and normed;
    values; the result) and the result joined, in the MLP 9·D (a normed copy of the input; ReLU and its square, 4·D
    each).  The attention kernel recomputes its scores.  Embedding and last norm keep 3·D.  In bfloat16 the cast copies
    of the matrices are kept too.  With `recompute` a layer keeps only its input, D numbers a token, and recomputes the
    rest in the backward pass, see `recomputed_bytes`.
    Source: counted in `tinylib.model`; tests compare with what autograd saves, of the compiled model in bfloat16.

    >>> from tinylib.config import PRESETS
    >>> [activation_bytes(PRESETS["goldilocks"], 1, dtype=dtype) // 2**20 for dtype in BYTES]
    [316, 182]
    """
    layer = _layer_bytes(config, batch_size, dtype)
    inputs = BYTES[dtype] * batch_size * config.seq_len * config.dim
    return 3 * inputs + config.depth * (inputs if recompute else layer)


def recomputed_bytes(config: GPTConfig | Shapes, batch_size: int, dtype: Precision = "float32") -> int:
    """Bytes of one layer's recomputed activations and of the gradients in its backward pass.

    Gradients take 10·D numbers a token: 4·D for each half of the MLP, and 2·D of the residual stream.
    """
    passing = BYTES[dtype] * 10 * config.dim
    return _layer_bytes(config, batch_size, dtype) + batch_size * config.seq_len * passing


def _layer_bytes(config: GPTConfig | Shapes, batch_size: int, dtype: Precision) -> int:
    """Bytes of activations of one layer that keeps everything, see `activation_bytes`."""
    checks.raise_if("activation_bytes", [checks.check_choice("dtype", dtype, BYTES),
                                         checks.check_int("batch_size", batch_size)])
    tokens, size = batch_size * config.seq_len, BYTES[dtype]
    casts = 0 if dtype == "float32" else 12 * config.dim**2 * size
    return tokens * (4 * (3 * config.n_head + 2) + 19 * config.dim * size) + casts


def chunk_rows(vocab_size: int, gpu_bytes: float | None = None) -> int:
    """Chunk size of the loss: rows of logits held at once, on a GPU of `gpu_bytes` memory or (None) on a CPU.

    A CPU is nearly as fast with 512 rows as with more.  A GPU needs many, to be busy: as many as keep `loss_bytes`'
    three copies within 1/32 of its memory, rounded down to a power of two, so that they divide a micro-batch.

    >>> chunk_rows(24_576), chunk_rows(24_576, 80e9), chunk_rows(65_536, 80e9), chunk_rows(24_576, 24e9)
    (512, 8192, 2048, 2048)
    """
    if gpu_bytes is None:
        return 512
    return 2 ** int(math.log2(max(256, gpu_bytes / 32 / (3 * 4 * vocab_size))))


def loss_bytes(config: GPTConfig | Shapes, batch_size: int, rows: int | None = None) -> int:
    """Peak bytes of the loss: the gradient of the table, V·D, and copies of the logits, all in float32.

    In chunks of `rows` there are 3 copies of rows × V (raw, exponential, slope of the softcap), 2 without softcap.
    None is the naive loss: all B·T rows at once in 4 copies, 3 without softcap.  Source: counted; tests compare with
    the tensors alive.

    >>> from tinylib.config import PRESETS
    >>> [loss_bytes(PRESETS["goldilocks"], 8, rows=rows) // 2**20 for rows in (None, 512)]
    [6192, 192]
    """
    checks.raise_if("loss_bytes", [checks.check_int("batch_size", batch_size),
                                   None if rows is None else checks.check_int("rows", rows)])
    tokens, copies = batch_size * config.seq_len, 2 + (config.softcap is not None) + (rows is None)
    return 4 * config.vocab_size * (config.dim + copies * (tokens if rows is None else min(rows, tokens)))


def update_bytes(config: GPTConfig, dtype: Precision = "float32") -> int:
    """Temporary bytes of a Muon step: its largest batch of matrices, 4·L·D² in float32, 5 times; 3 times in bfloat16.

    Source: counted in `tinylib.optim.Muon`; a test compares with the tensors alive.
    """
    return (5 if dtype == "float32" else 3) * 4 * 4 * config.depth * config.dim**2


@dataclass(frozen=True)
class Memory:
    """Bytes of the tensors in a training step; allocator, kernels and libraries come on top."""

    weights: int
    gradients: int
    optimizer: int
    activations: int
    loss: int
    """Copies of the logits and the gradient of the table."""
    update: int
    """Temporaries of the optimizer, after the activations are freed."""
    recomputed: int = 0
    """Recomputed activations and gradients of one layer, after the loss is freed."""

    @property
    def at_peak(self) -> dict[str, int]:
        """Bytes of the parts that exist at the peak: the permanent ones, and those of the largest of three moments."""
        moments = ("activations", "loss"), ("activations", "recomputed"), ("update",)
        largest = max(moments, key=lambda moment: sum(getattr(self, part) for part in moment))
        return {part: getattr(self, part) for part in ("weights", "gradients", "optimizer", *largest)}

    @property
    def total(self) -> int:
        """Bytes at the peak."""
        return sum(self.at_peak.values())


def memory(config: GPTConfig, device_batch_size: int, dtype: Precision = "float32", recompute: bool = False,
           rows: int | None = None) -> Memory:
    """Peak memory of one process that trains with micro-batches of `device_batch_size` sequences.

    The loss takes `rows` of logits at a time (None: `chunk_rows` of an 80 GB GPU for bfloat16, of a CPU for float32).
    Every process holds all weights and all optimizer state.  Source: counted; tests compare with the tensors alive in
    a step, within 15%.

    >>> from tinylib.config import PRESETS
    >>> memory(PRESETS["micro"], device_batch_size=8).total // 2**20
    706
    """
    if rows is None:
        rows = chunk_rows(config.vocab_size, None if dtype == "float32" else 80e9)
    return Memory(weight_bytes(config), weight_bytes(config), optimizer_bytes(config),
                  activation_bytes(config, device_batch_size, dtype, recompute),
                  loss_bytes(config, device_batch_size, rows), update_bytes(config, dtype),
                  recomputed_bytes(config, device_batch_size, dtype) if recompute else 0)


def largest_batch(config: GPTConfig, memory_bytes: float, recompute: bool = False) -> int:
    """Largest micro-batch, in sequences, that trains in bfloat16 in `memory_bytes`; 0 where not even one fits.

    >>> from tinylib.config import PRESETS
    >>> [largest_batch(PRESETS["nanochat-d32"], 80e9, recompute=recompute) for recompute in (False, True)]
    [9, 104]
    """
    rows = chunk_rows(config.vocab_size, memory_bytes)
    return bisect.bisect_right(range(1, 2**24), memory_bytes,
                               key=lambda size: memory(config, size, "bfloat16", recompute, rows).total)

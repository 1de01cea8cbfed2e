"""Bytes of a model that trains or answers, in closed form."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from tinylib import checks
from tinylib.config import GPTConfig
from tinylib.sizing.counts import (
    context_of,
    decode_flops,
    flops_by_part,
    flops_per_token,
    parameters,
    prefill_flops,
)

Precision = Literal["float32", "bfloat16"]
BYTES = {"float32": 4, "bfloat16": 2}
"""Of one number."""


def weight_bytes(config: GPTConfig, bytes_per_parameter: int = 4) -> int:
    """Bytes of the weights; gradients take the same.  tinylib keeps both in float32 on every device."""
    return bytes_per_parameter * parameters(config).total


def optimizer_bytes(config: GPTConfig) -> int:
    """Bytes of optimizer state in float32: AdamW keeps two numbers for each of a table, Muon one for each of a matrix.

    >>> from tinylib.config import PRESETS
    >>> optimizer_bytes(PRESETS["goldilocks"]) / weight_bytes(PRESETS["goldilocks"])
    1.6666666666666667
    """
    return 4 * sum((1 if tensor.role == "matrix" else 2) * tensor.size for tensor in config.tensors())


def kv_cache_bytes(config: GPTConfig, batch_size: int = 1, context: int | None = None, bytes_per_value: int = 4) -> int:
    """Bytes of the cached keys and values: 2·L·B·T·D numbers.

    >>> from tinylib.config import PRESETS
    >>> kv_cache_bytes(PRESETS["goldilocks"]) // 2**20
    32
    """
    checks.raise_if("kv_cache_bytes", [checks.check_int("batch_size", batch_size),
                                    checks.check_int("bytes_per_value", bytes_per_value)])
    return 2 * config.depth * batch_size * context_of(config, context) * config.dim * bytes_per_value


def activation_bytes(config: GPTConfig, batch_size: int, context: int | None = None, dtype: Precision = "float32",
                     recompute: bool = False) -> int:
    """Bytes that the forward pass of the blocks leaves for the backward pass, on `batch_size` sequences.

    A layer keeps 19·D + 3·N + 2 numbers a token.  2·D of them are the residual stream and 3·N + 2 the scales of norms
    and softmax, in float32 always.  17·D are in `dtype`: in attention 7·D (a normed copy of the input; queries and
    keys, rotated and normed; values; the result) and the result joined, in the MLP 9·D (a normed copy of the input;
    ReLU and its square, 4·D each).  Scores are not kept: the kernel makes them anew.  Embedding and last norm keep 3·D.
    In bfloat16 the cast copies of the matrices are kept too.  With `recompute` a layer keeps its input alone, D
    numbers a token, and makes the rest again when its turn comes, see `recomputed_bytes`.
    Source: counted in `tinylib.model`; tests compare with what autograd saves, of the compiled model in bfloat16.

    >>> from tinylib.config import PRESETS
    >>> [activation_bytes(PRESETS["goldilocks"], 1, dtype=dtype) // 2**20 for dtype in BYTES]
    [316, 204]
    """
    layer = _layer_bytes(config, batch_size, context, dtype)
    inputs = 4 * batch_size * context_of(config, context) * config.dim
    return 3 * inputs + config.depth * (inputs if recompute else layer)


def recomputed_bytes(config: GPTConfig, batch_size: int, context: int | None = None,
                     dtype: Precision = "float32") -> int:
    """Bytes of one layer that makes its activations again, and of the gradients on their way through it.

    Gradients take 10·D numbers a token: of both steps of the MLP 4·D each in `dtype`, and two of the residual stream.
    """
    passing = 4 * 2 * config.dim + BYTES[dtype] * 8 * config.dim
    return _layer_bytes(config, batch_size, context, dtype) + batch_size * context_of(config, context) * passing


def _layer_bytes(config: GPTConfig, batch_size: int, context: int | None, dtype: Precision) -> int:
    """Bytes that one layer leaves for the backward pass if it keeps everything, see `activation_bytes`."""
    checks.raise_if("activation_bytes", [checks.check_choice("dtype", dtype, BYTES), checks.check_int("batch_size", batch_size)])
    tokens, size = batch_size * context_of(config, context), BYTES[dtype]
    casts = 0 if dtype == "float32" else 12 * config.dim**2 * size
    return tokens * (4 * (2 * config.dim + 3 * config.n_head + 2) + 17 * config.dim * size) + casts


def chunk_rows(vocab_size: int, kind: str = "cpu") -> int:
    """Rows of logits that the loss holds at once on a device of this `kind`: few for memory, many for speed.

    A CPU is nearly as fast with 512 as with more; a GPU wants some hundred million logits to be busy.

    >>> chunk_rows(24_576), chunk_rows(24_576, "cuda"), chunk_rows(65_536, "cuda")
    (512, 5461, 2048)
    """
    return max(256, 2**27 // vocab_size) if kind == "cuda" else 512


def loss_bytes(config: GPTConfig, batch_size: int, context: int | None = None, rows: int | None = None) -> int:
    """Bytes at the peak of the loss: the gradient of the table, V·D, and copies of the logits, all in float32.

    With `rows` at a time there are 3 copies of rows × V (raw, exponential, slope of the softcap), 2 without softcap.
    None is the plain way: all B·T rows at once and 4 copies, 3 without.  Source: counted; tests compare with the
    tensors alive.

    >>> from tinylib.config import PRESETS
    >>> [loss_bytes(PRESETS["goldilocks"], 8, rows=rows) // 2**20 for rows in (None, 512)]
    [6192, 192]
    """
    checks.raise_if("loss_bytes", [checks.check_int("batch_size", batch_size),
                                None if rows is None else checks.check_int("rows", rows)])
    tokens = batch_size * context_of(config, context)
    if rows is None:
        copies, rows = (3 if config.softcap is None else 4), tokens
    else:
        copies, rows = (2 if config.softcap is None else 3), min(rows, tokens)
    return 4 * config.vocab_size * (config.dim + copies * rows)


def update_bytes(config: GPTConfig, dtype: Precision = "float32") -> int:
    """Bytes that Muon needs for a moment: 5 copies of its largest batch of matrices, 4·L·D², in float32; 3 in bfloat16.

    Source: counted in `tinylib.optim.Muon`; a test compares with the tensors alive.
    """
    return (5 if dtype == "float32" else 3) * 4 * 4 * config.depth * config.dim**2


@dataclass(frozen=True)
class Memory:
    """Bytes of tensors in a training step; allocator, kernels and libraries come on top."""

    weights: int
    gradients: int
    optimizer: int
    activations: int
    loss: int
    """Logits and what the loss makes of them, and the gradient of the table."""
    update: int
    """What the optimizer needs for a moment, when activations are gone."""
    recomputed: int = 0
    """What one layer makes again and the gradients that pass through it, when the loss is gone."""

    @property
    def total(self) -> int:
        """At the peak: what stays, and the largest of the moments."""
        moment = max(self.activations + max(self.loss, self.recomputed), self.update)
        return self.weights + self.gradients + self.optimizer + moment


def memory(config: GPTConfig, device_batch_size: int, context: int | None = None, dtype: Precision = "float32",
           recompute: bool = False, rows: int | None = None) -> Memory:
    """What one process needs to train with `device_batch_size` sequences at once, the loss `rows` of them at a time.

    None takes `chunk_rows`: a GPU's for bfloat16, a CPU's for float32.  Every process holds all weights and all
    optimizer state.  Source: counted; tests compare with the tensors alive in a step, within 15 %.

    >>> from tinylib.config import PRESETS
    >>> memory(PRESETS["micro"], device_batch_size=8, context=256).total // 2**20
    151
    """
    if rows is None:
        rows = chunk_rows(config.vocab_size, "cpu" if dtype == "float32" else "cuda")
    return Memory(weight_bytes(config), weight_bytes(config), optimizer_bytes(config),
                  activation_bytes(config, device_batch_size, context, dtype, recompute),
                  loss_bytes(config, device_batch_size, context, rows), update_bytes(config, dtype),
                  recomputed_bytes(config, device_batch_size, context, dtype) if recompute else 0)


def largest_batch(config: GPTConfig, memory_bytes: float, context: int | None = None, dtype: Precision = "bfloat16",
                  recompute: bool = False) -> int:
    """Most sequences that one process can take at once in `memory_bytes`; 0 where not even one fits.

    >>> from tinylib.config import PRESETS
    >>> [largest_batch(PRESETS["nanochat-d32"], 80e9, recompute=recompute) for recompute in (False, True)]
    [8, 65]
    """
    def fits(batch_size: int) -> bool:
        return memory(config, batch_size, context, dtype, recompute).total <= memory_bytes

    low, high = 0, 1
    while fits(high):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def sheet(config: GPTConfig, batch_size: int = 1) -> dict[str, int]:
    """Every size of a model by its name: parameters, FLOPs, and float32 bytes with `batch_size` sequences at once.

    >>> from tinylib.config import PRESETS
    >>> sheet(PRESETS["goldilocks"])["decode_flops"]
    67108864
    """
    count, token = parameters(config), flops_by_part(config)
    return vars(count) | {
        "flops_per_token": token.total, "forward_flops": token.forward, "backward_flops": token.backward,
        "flops_per_token_causal": flops_per_token(config, convention="causal"),
        "prefill_flops": prefill_flops(config), "decode_flops": decode_flops(config),
        "weight_bytes": weight_bytes(config), "gradient_bytes": weight_bytes(config),
        "optimizer_bytes": optimizer_bytes(config), "activation_bytes": activation_bytes(config, batch_size),
        "activation_bytes_recomputed": activation_bytes(config, batch_size, recompute=True),
        "loss_bytes_naive": loss_bytes(config, batch_size),
        "loss_bytes_chunked": loss_bytes(config, batch_size, rows=chunk_rows(config.vocab_size)),
        "kv_cache_bytes": kv_cache_bytes(config, batch_size)}

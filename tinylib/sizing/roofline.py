"""Roofline: FLOPs and memory traffic of each operation of a training step; notebook 01 makes times of them.

Source: Williams, Waterman and Patterson 2009, https://doi.org/10.1145/1498765.1498785.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tinylib import checks
from tinylib.config import GPTConfig

if TYPE_CHECKING:
    import pandas as pd


def operations(config: GPTConfig, batch_size: int) -> pd.DataFrame:
    """Operations of a training step on `batch_size` sequences in float32: a row an operation, forward and backward.

    Columns: `flops`, and `bytes` that it reads from memory and writes to it, each tensor once where it is used.  A
    product of [M, K] and [K, N] has 2·M·K·N FLOPs and moves M·K + K·N + M·N numbers; its backward pass is two such
    products.  Attention skips keys behind the causal mask, and its backward pass computes the scores again.  Newton–
    Schulz takes 5 steps of three products.  Passes over logits: softcap, exponential, sum, gradient.
    Source: counted in `tinylib.model`, `loss` and `optim`.

    >>> from tinylib.config import PRESETS
    >>> table = operations(PRESETS["micro"], batch_size=2)
    >>> f"{table['flops']['lm_head']:.3g} FLOPs, {table['bytes']['AdamW']:.3g} bytes"
    '1.93e+10 FLOPs, 4.4e+07 bytes'
    """
    import pandas as pd

    checks.raise_if("operations", [checks.check_int("batch_size", batch_size)])
    depth, dim, rows = config.depth, config.dim, batch_size * config.seq_len
    stream, tables = rows * dim, (1 if config.tied else 2) * config.vocab_size * dim
    logits = rows * config.vocab_size

    def product(count: int, k: int, n: int) -> tuple[float, float]:
        return count * 6 * rows * k * n, count * 3 * (rows * k + k * n + rows * n)

    found = {
        "embedding look-up": (0, 4 * stream + config.vocab_size * dim),
        "norms": (0, 5 * (4 * depth + 2) * stream),
        "query, key, value, output": product(4 * depth, dim, dim),
        "RoPE": (0, 8 * depth * stream),
        "attention": (3.5 * 2 * depth * stream * config.seq_len, 12 * depth * stream),
        "MLP products": tuple(map(sum, zip(product(depth, dim, 4 * dim), product(depth, 4 * dim, dim), strict=True))),
        "ReLU²": (0, 5 * 4 * depth * stream),
        "residual sums": (0, 6 * depth * stream),
        "lm_head": product(1, dim, config.vocab_size),
        "softcap and loss": (0, 8 * logits),
        "AdamW": (0, 7 * tables),
        # X·Xᵀ, its square, and the product with X, for 4 square matrices of a layer and 2 that are 4 times as long
        "Muon": (5 * depth * (4 * 6 + 2 * 18) * dim**3, depth * 12 * dim**2 * (4 + 5 * 6))}
    table = pd.DataFrame.from_dict(found, orient="index", columns=["flops", "bytes"]).astype(float)
    return table.assign(bytes=4 * table["bytes"])

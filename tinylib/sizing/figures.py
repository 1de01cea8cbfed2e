"""The table of a shape's figures: parameters, FLOPs and bytes by name."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tinylib.config import PRESETS, GPTConfig
from tinylib.sizing.budgets import BUDGETS
from tinylib.sizing.counts import Shapes, decode_flops, flops_by_part, flops_per_token, parameters, prefill_flops
from tinylib.sizing.memory import (
    activation_bytes,
    chunk_rows,
    kv_cache_bytes,
    loss_bytes,
    optimizer_bytes,
    weight_bytes,
)

if TYPE_CHECKING:
    import pandas as pd

COLUMNS = ("depth", "dim", "n_head", "head_dim", "vocab_size", "wte", "blocks", "lm_head", "total", "total_tied",
           "wte_percent", "blocks_percent", "lm_head_percent", "per_layer", "aspect", "flops_per_token", "tokens",
           "training_flops", "kv_cache_bytes", "decode_bytes")
"""The figures of a shape in `specifications` and `search`."""


def sheet(config: GPTConfig | Shapes, batch_size: int = 1) -> dict[str, Any]:
    """Every figure of a model by name; of Shapes, arrays.  All tables of shapes take their figures from here.

    `aspect` is dim / depth.  FLOPs are per token at a context of `seq_len`, except `prefill_flops` of a sequence and
    `training_flops` of `tokens`, 20 per parameter.  Bytes are of float32, with `batch_size` sequences at once;
    `decode_bytes` are weights and KV cache.

    >>> from tinylib.config import PRESETS
    >>> sheet(PRESETS["goldilocks"])["decode_flops"]
    67108864
    >>> import numpy as np
    >>> sheet(Shapes(np.array([4, 16]), np.array([512, 256]), np.array([24_576, 49_152])))["total"].tolist()
    [37748736, 37748736]
    """
    count, token = parameters(config), flops_by_part(config)
    tokens = BUDGETS["all"].tokens_per_parameter * count.total
    weights, cache = weight_bytes(config), kv_cache_bytes(config, batch_size)
    return {
        "depth": config.depth, "dim": config.dim, "n_head": config.n_head, "head_dim": config.head_dim,
        "vocab_size": config.vocab_size, **vars(count),
        **{f"{part}_percent": share for part, share in count.split.items()}, "aspect": config.dim / config.depth,
        "flops_per_token": token.total, "forward_flops": token.forward, "backward_flops": token.backward,
        "flops_per_token_causal": flops_per_token(config, convention="causal"),
        "prefill_flops": prefill_flops(config), "decode_flops": decode_flops(config),
        "tokens": tokens, "training_flops": 1.0 * tokens * token.total,
        "weight_bytes": weights, "gradient_bytes": weights, "optimizer_bytes": optimizer_bytes(config),
        "activation_bytes": activation_bytes(config, batch_size),
        "activation_bytes_recomputed": activation_bytes(config, batch_size, recompute=True),
        "loss_bytes_naive": loss_bytes(config, batch_size),
        "loss_bytes_chunked": loss_bytes(config, batch_size, rows=chunk_rows(config.vocab_size)),
        "kv_cache_bytes": cache, "decode_bytes": weights + cache}


def specifications() -> pd.DataFrame:
    """The figures of every preset, indexed by its name: the columns of `search`.

    >>> specifications().loc["goldilocks", ["depth", "dim", "total"]].tolist()
    [4, 512, 37748736]
    """
    import pandas as pd

    sheets = {name: sheet(config) for name, config in PRESETS.items()}
    return pd.DataFrame.from_dict(sheets, orient="index")[list(COLUMNS)]

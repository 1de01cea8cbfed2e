"""Parameters and FLOPs of a model, in closed form."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

from tinylib import checks
from tinylib.checks import raise_if
from tinylib.config import GPTConfig

if TYPE_CHECKING:
    import pandas as pd

Convention = Literal["palm", "causal"]


@dataclass(frozen=True)
class Parameters:
    """Where the parameters of a model are.  The parts add up to `total`: a tied model's one table counts as `wte`."""

    wte: int
    blocks: int
    lm_head: int
    per_layer: int
    total: int
    """What this model holds, tied or untied as its configuration says."""
    total_tied: int
    """What it would hold tied."""
    total_untied: int
    """What it would hold untied."""

    @property
    def split(self) -> dict[str, float]:
        """Share of each part in `total`, in percent."""
        return {part: 100 * getattr(self, part) / self.total for part in ("wte", "blocks", "lm_head")}


def parameters(config: GPTConfig) -> Parameters:
    """Parameters by part: `wte = lm_head = V·D`, `blocks = 12·L·D²`; nothing else in the model is trained.

    A block has 4·D² in attention (query, key, value, output) and 8·D² in its MLP (D×4D and 4D×D).
    Source: counted from the shapes; a test compares with `config.tensors()`, another with the built model.

    >>> from tinylib.config import PRESETS
    >>> parameters(PRESETS["goldilocks"]).total, parameters(PRESETS["goldilocks"]).total_tied
    (37748736, 25165824)
    """
    table, blocks = parts(config.depth, config.dim, config.vocab_size)
    tied, untied = table + blocks, 2 * table + blocks
    return Parameters(table, blocks, 0 if config.tied else table, blocks // config.depth,
                      tied if config.tied else untied, tied, untied)


def balanced(depth: int, dim: int, head_dim: int = 64, **changes: Any) -> GPTConfig:
    """The shape whose table equals its blocks: V = 12·L·D, so 36·L·D² in all; `changes` are further fields.

    >>> from tinylib.config import PRESETS
    >>> balanced(4, 512) == PRESETS["goldilocks"], balanced(16, 256).vocab_size
    (True, 49152)
    """
    return GPTConfig(depth, dim, 12 * depth * dim, head_dim, **changes)


def layers(config: GPTConfig, context: int | None = None) -> pd.DataFrame:
    """A row for every layer, in the order of the data: wte, each block's attention and MLP, lm_head.

    Columns: `parameters`, their `percent` of the model, and training `flops` per token ("palm"); the scores of
    attention count as attention's.  A tied model's table stands at both ends and is counted once, as `wte`.

    >>> from tinylib.config import PRESETS
    >>> layers(PRESETS["goldilocks"]).loc[["wte", "block 0 attention", "block 0 mlp"], "parameters"].tolist()
    [12582912, 1048576, 2097152]
    """
    import pandas as pd

    square = config.dim**2
    count, token = parameters(config), flops_by_part(config, context)
    rows = {"wte": (count.wte, 0)}
    for layer in range(config.depth):
        rows[f"block {layer} attention"] = 4 * square, 3 * (8 * square + token.attention // config.depth)
        rows[f"block {layer} mlp"] = 8 * square, 3 * 16 * square
    rows["lm_head"] = count.lm_head, 3 * token.lm_head
    table = pd.DataFrame.from_dict(rows, orient="index", columns=["parameters", "flops"])
    table.insert(1, "percent", 100 * table["parameters"] / count.total)
    return table


@dataclass(frozen=True)
class Flops:
    """FLOPs of one token going forward, by part; going backward costs twice as much."""

    blocks: int
    """The matrices of attention and MLP."""
    attention: int
    """Scores of attention and what they weigh: the only part that grows with the context."""
    lm_head: int
    recomputed: int = 0
    """What is computed a second time in the backward pass, where activations were not kept."""

    @property
    def forward(self) -> int:
        """One pass forward."""
        return self.blocks + self.attention + self.lm_head

    @property
    def backward(self) -> int:
        """One pass backward: a gradient of the input and one of the weight for each product."""
        return 2 * self.forward + self.recomputed

    @property
    def total(self) -> int:
        """Forward and backward."""
        return self.forward + self.backward


def flops_by_part(config: GPTConfig, context: int | None = None, convention: Convention = "palm",
                  recompute: bool = False) -> Flops:
    """FLOPs of one token in a sequence of `context` tokens (None: the config's), by part.

    A matrix costs 2 FLOPs a weight; looking up an embedding is free, so tying changes nothing.  Attention adds
    4·L·D·T in the "palm" convention, which counts the masked half too; "causal" counts what a token can see,
    (T + 1)/2 positions on average: 2·L·D·(T + 1).  Norms, softmax, RoPE and the optimizer are left out.
    `recompute` repeats the blocks' forward pass; MFU does not count that, for it is no use to the model.
    Source: Chowdhery et al. 2022 (PaLM), appendix B; checked with `torch.utils.flop_counter` (its "palm" form only).

    >>> from tinylib.config import PRESETS
    >>> flops_by_part(PRESETS["goldilocks"])
    Flops(blocks=25165824, attention=16777216, lm_head=25165824, recomputed=0)
    """
    raise_if("flops_by_part", [checks.check_choice("convention", convention, get_args(Convention))])
    tokens, (table, blocks) = context_of(config, context), parts(config.depth, config.dim, config.vocab_size)
    scores = config.depth * config.dim * (4 * tokens if convention == "palm" else 2 * (tokens + 1))
    return Flops(2 * blocks, scores, 2 * table, 2 * blocks + scores if recompute else 0)


def flops_per_token(config: GPTConfig, context: int | None = None, convention: Convention = "palm",
                    recompute: bool = False) -> int:
    """FLOPs of one token, forward and backward: 6·(12·L·D² + V·D) + 12·L·D·T, see `flops_by_part`.

    >>> from tinylib.config import PRESETS
    >>> flops_per_token(PRESETS["goldilocks"]), flops_per_token(PRESETS["goldilocks"], convention="causal")
    (201326592, 176173056)
    """
    return flops_by_part(config, context, convention, recompute).total


def prefill_flops(config: GPTConfig, context: int | None = None, convention: Convention = "palm") -> int:
    """FLOPs of one forward pass over `context` tokens with the logits of all of them: a third of training on them."""
    tokens = context_of(config, context)
    return tokens * flops_by_part(config, tokens, convention).forward


def decode_flops(config: GPTConfig, context: int | None = None) -> int:
    """FLOPs of one decoded token that is the last of `context` tokens, keys and values of the others cached.

    >>> from tinylib.config import PRESETS
    >>> decode_flops(PRESETS["goldilocks"]) * 3 == flops_per_token(PRESETS["goldilocks"])
    True
    """
    return flops_by_part(config, context).forward


def parts(depth: Any, dim: Any, vocab_size: Any) -> tuple[Any, Any]:
    """Parameters of one table and of all blocks; whole numbers or arrays of them."""
    return vocab_size * dim, 12 * depth * dim * dim


def flops(depth: Any, dim: Any, vocab_size: Any, context: int) -> Any:
    """`flops_per_token` ("palm") of whole numbers or of arrays."""
    table, blocks = parts(depth, dim, vocab_size)
    return 6 * (blocks + table) + 12 * depth * dim * context


def context_of(config: GPTConfig, context: int | None) -> int:
    """`context`, or the configuration's for None; raises ConfigError for what is no whole number above zero."""
    if context is None:
        return config.seq_len
    raise_if("sizing", [checks.check_int("context", context)])
    return context

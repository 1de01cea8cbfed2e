"""Parameter counts and FLOPs in closed form, of one configuration or of arrays of shapes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

from tinylib import checks
from tinylib.config import GPTConfig

if TYPE_CHECKING:
    import pandas as pd

Convention = Literal["palm", "causal"]


@dataclass(frozen=True)
class Shapes:
    """Many models at once: the fields of a GPTConfig that decide its size, as integers or arrays of them.

    The closed forms take a GPTConfig or Shapes; of Shapes they return arrays where they return integers otherwise.
    """

    depth: Any
    dim: Any
    vocab_size: Any
    head_dim: int = 64
    seq_len: Any = 2048
    tied: bool = False
    softcap: float | None = 15.0

    @property
    def n_head(self) -> Any:
        """Number of attention heads (N)."""
        return self.dim // self.head_dim


@dataclass(frozen=True)
class Parameters:
    """Parameters by part.  The parts add up to `total`; a tied model's one table counts as `wte`."""

    wte: int
    blocks: int
    lm_head: int
    per_layer: int
    total: int
    """Of this model, tied or untied as configured."""
    total_tied: int
    total_untied: int

    @property
    def split(self) -> dict[str, float]:
        """Share of each part in `total`, in percent."""
        return {part: 100 * getattr(self, part) / self.total for part in ("wte", "blocks", "lm_head")}


def parameters(config: GPTConfig | Shapes) -> Parameters:
    """Parameters by part: `wte = lm_head = V·D`, `blocks = 12·L·D²`; nothing else in the model is trained.

    A block has 4·D² in attention (query, key, value, output) and 8·D² in its MLP (D×4D and 4D×D).
    Source: counted from the shapes; a test compares with `config.tensors()`, another with the built model.

    >>> from tinylib.config import PRESETS
    >>> parameters(PRESETS["goldilocks"]).total, parameters(PRESETS["goldilocks"]).total_tied
    (37748736, 25165824)
    """
    table, per_layer = config.vocab_size * config.dim, 12 * config.dim * config.dim
    blocks, lm_head = config.depth * per_layer, table * (not config.tied)
    return Parameters(table, blocks, lm_head, per_layer, table + blocks + lm_head, table + blocks, 2 * table + blocks)


def balanced(depth: int, dim: int, head_dim: int = 64, **changes: Any) -> GPTConfig:
    """The shape whose table equals its blocks: V = 12·L·D, so 36·L·D² in all; `changes` are further fields.

    >>> from tinylib.config import PRESETS
    >>> balanced(4, 512) == PRESETS["goldilocks"], balanced(16, 256).vocab_size
    (True, 49152)
    """
    return GPTConfig(depth, dim, 12 * depth * dim, head_dim, **changes)


def layers(config: GPTConfig) -> pd.DataFrame:
    """Parameters and FLOPs by layer, a row each in the order of the data: wte, attention and MLP per block, lm_head.

    Columns: `parameters`, their `percent` of the model, and training `flops` per token ("palm"); attention scores
    belong to attention.  A tied model's table is counted once, as `wte`, and its products as `lm_head`.

    >>> from tinylib.config import PRESETS
    >>> layers(PRESETS["goldilocks"]).loc[["wte", "block 0 attention", "block 0 mlp"], "parameters"].tolist()
    [12582912, 1048576, 2097152]
    """
    import pandas as pd

    square = config.dim**2
    count, token = parameters(config), flops_by_part(config)
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
    """FLOPs of one token in the forward pass, by part; the backward pass costs twice as much."""

    blocks: int
    """The matrices of attention and MLP."""
    attention: int
    """Attention scores and the weighted sum of values: the only part that grows with the context."""
    lm_head: int
    recomputed: int = 0
    """Forward FLOPs repeated in the backward pass, where activations are recomputed."""

    @property
    def forward(self) -> int:
        """One forward pass."""
        return self.blocks + self.attention + self.lm_head

    @property
    def backward(self) -> int:
        """One backward pass: each product has a gradient of its input and one of its weight."""
        return 2 * self.forward + self.recomputed

    @property
    def total(self) -> int:
        """Forward and backward."""
        return self.forward + self.backward


def flops_by_part(config: GPTConfig | Shapes, context: int | None = None, convention: Convention = "palm",
                  recompute: bool = False) -> Flops:
    """FLOPs of one token in a sequence of `context` tokens (None: the config's), by part.

    A matrix costs 2 FLOPs a weight; an embedding look-up costs none, so tying changes nothing.  Attention adds
    4·L·D·T in the "palm" convention, which counts the masked half too; "causal" counts what a token can see,
    (T + 1)/2 positions on average: 2·L·D·(T + 1).  Norms, softmax, RoPE and the optimizer are left out.
    `recompute` repeats the blocks' forward pass, which MFU does not count.
    Source: Chowdhery et al. 2022 (PaLM), appendix B; checked with `torch.utils.flop_counter` (its "palm" form only).

    >>> from tinylib.config import PRESETS
    >>> flops_by_part(PRESETS["goldilocks"])
    Flops(blocks=25165824, attention=16777216, lm_head=25165824, recomputed=0)
    """
    checks.raise_if("flops_by_part", [checks.check_choice("convention", convention, get_args(Convention)),
                                      None if context is None else checks.check_int("context", context)])
    count, tokens = parameters(config), config.seq_len if context is None else context
    scores = config.depth * config.dim * (4 * tokens if convention == "palm" else 2 * (tokens + 1))
    return Flops(2 * count.blocks, scores, 2 * count.wte, 2 * count.blocks + scores if recompute else 0)


def flops_per_token(config: GPTConfig | Shapes, context: int | None = None, convention: Convention = "palm",
                    recompute: bool = False) -> int:
    """FLOPs of one token, forward and backward: 6·(12·L·D² + V·D) + 12·L·D·T, see `flops_by_part`.

    >>> from tinylib.config import PRESETS
    >>> flops_per_token(PRESETS["goldilocks"]), flops_per_token(PRESETS["goldilocks"], convention="causal")
    (201326592, 176173056)
    """
    return flops_by_part(config, context, convention, recompute).total


def decode_flops(config: GPTConfig | Shapes, context: int | None = None) -> int:
    """FLOPs of one decoded token that is the last of `context` tokens, keys and values of the others cached.

    >>> from tinylib.config import PRESETS
    >>> decode_flops(PRESETS["goldilocks"]) * 3 == flops_per_token(PRESETS["goldilocks"])
    True
    """
    return flops_by_part(config, context).forward

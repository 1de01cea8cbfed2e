"""Parameters, FLOPs and bytes of a model, in closed form."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from tinylib.config import ConfigError, GPTConfig

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


def flops_per_token(config: GPTConfig, context: int | None = None, convention: Convention = "palm") -> int:
    """FLOPs of one token, forward and backward, in a sequence of `context` tokens (None: the config's).

    6·(12·L·D² + V·D) for the matrix products: 2 FLOPs per weight forward, 4 backward; looking up an embedding is
    free, so tying changes nothing.  Attention adds 12·L·D·T in the "palm" convention, which counts the masked half
    too; "causal" counts what a token can see, (T + 1)/2 positions on average: 6·L·D·(T + 1).
    Norms, softmax, RoPE and the optimizer are left out.
    Source: Chowdhery et al. 2022 (PaLM), appendix B; checked with `torch.utils.flop_counter` (its "palm" form only).

    >>> from tinylib.config import PRESETS
    >>> flops_per_token(PRESETS["goldilocks"]), flops_per_token(PRESETS["goldilocks"], convention="causal")
    (201326592, 176173056)
    """
    return int(flops(config.depth, config.dim, config.vocab_size, _context(config, context), convention))


def prefill_flops(config: GPTConfig, context: int | None = None, convention: Convention = "palm") -> int:
    """FLOPs of one forward pass over `context` tokens with the logits of all of them: a third of training on them."""
    tokens = _context(config, context)
    return tokens * flops_per_token(config, tokens, convention) // 3


def decode_flops(config: GPTConfig, context: int | None = None) -> int:
    """FLOPs of one decoded token that is the last of `context` tokens, keys and values of the others cached.

    >>> from tinylib.config import PRESETS
    >>> decode_flops(PRESETS["goldilocks"]) * 3 == flops_per_token(PRESETS["goldilocks"])
    True
    """
    return flops_per_token(config, context) // 3


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
    check("kv_cache_bytes", whole={"batch_size": batch_size, "bytes_per_value": bytes_per_value})
    return 2 * config.depth * batch_size * _context(config, context) * config.dim * bytes_per_value


def activation_bytes(config: GPTConfig, batch_size: int, context: int | None = None) -> int:
    """Bytes that the forward pass of the blocks keeps for the backward pass, in float32, nothing recomputed.

    A layer keeps 19·D + 3·N + 2 numbers a token: in attention 9·D (the input and its norm; queries and keys, rotated
    and normed; values; the result before and after the heads are joined), in the MLP 10·D (the input and its norm;
    ReLU and its square, 4·D each); 3·N + 2 are the scales of norms and softmax.  Embedding and last norm keep 3·D.
    Attention scores are not kept: the kernel makes them anew.
    Source: counted in `tinylib.model`; a test compares with what autograd saves.

    >>> from tinylib.config import PRESETS
    >>> activation_bytes(PRESETS["goldilocks"], batch_size=1) // 2**20
    316
    """
    check("activation_bytes", whole={"batch_size": batch_size})
    per_layer = 19 * config.dim + 3 * config.n_head + 2
    return 4 * batch_size * _context(config, context) * (config.depth * per_layer + 3 * config.dim)


@dataclass(frozen=True)
class Memory:
    """Bytes of tensors at the peak of a training step, in float32; allocator, kernels and libraries come on top."""

    weights: int
    gradients: int
    optimizer: int
    activations: int
    loss: int
    """Logits and what the loss makes of them, a chunk of rows at a time, and the gradient of the table."""

    @property
    def total(self) -> int:
        """All of it."""
        return self.weights + self.gradients + self.optimizer + self.activations + self.loss


def memory(config: GPTConfig, device_batch_size: int, context: int | None = None, chunk_rows: int = 256) -> Memory:
    """What one process needs to train with `device_batch_size` sequences at once.

    The loss holds 8 copies of `chunk_rows` × V logits at its peak (softcap, exponential, gradient …).
    Source: counted; a test compares with the peak that `torch.distributed._tools.mem_tracker` sees, within 15 %.

    >>> from tinylib.config import PRESETS
    >>> memory(PRESETS["micro"], device_batch_size=8, context=256).total // 2**20
    163
    """
    tokens = device_batch_size * _context(config, context)
    loss = 4 * (config.vocab_size * config.dim + 8 * min(chunk_rows, tokens) * config.vocab_size)
    return Memory(weight_bytes(config), weight_bytes(config), optimizer_bytes(config),
                  activation_bytes(config, device_batch_size, context), loss)


def parts(depth: Any, dim: Any, vocab_size: Any) -> tuple[Any, Any]:
    """Parameters of one table and of all blocks; whole numbers or arrays of them."""
    return vocab_size * dim, 12 * depth * dim * dim


def flops(depth: Any, dim: Any, vocab_size: Any, context: int, convention: Convention = "palm") -> Any:
    """`flops_per_token` of whole numbers or of arrays."""
    table, blocks = parts(depth, dim, vocab_size)
    if convention not in ("palm", "causal"):
        raise ConfigError("flops_per_token", [f"convention={convention!r} is not known: use palm or causal"])
    attention = 12 * depth * dim * context if convention == "palm" else 6 * depth * dim * (context + 1)
    return 6 * (blocks + table) + attention


def _context(config: GPTConfig, context: int | None) -> int:
    if context is not None:
        check("sizing", whole={"context": context})
    return config.seq_len if context is None else context


def check(owner: str, problems: Sequence[str] = (), whole: Mapping[str, Any] | None = None,
          positive: Mapping[str, Any] | None = None) -> None:
    """Raise ConfigError with `problems` and every value that is no whole or no finite number above zero."""
    found = list(problems)
    found += [f"{name}={value!r} is not a whole number above zero: use 1 or more"
              for name, value in (whole or {}).items()
              if not isinstance(value, int) or isinstance(value, bool) or value < 1]
    found += [f"{name}={value!r} is not a number above zero: use a number above zero"
              for name, value in (positive or {}).items()
              if not isinstance(value, int | float) or not 0 < value < math.inf]
    if found:
        raise ConfigError(owner, found)

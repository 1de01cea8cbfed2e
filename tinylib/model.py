"""The GPT of the course and its KV cache.

Exactly the October-2025 nanochat architecture: embedding → RMSNorm → L × (attention, MLP) → RMSNorm → head → softcap.
No bias, no norm weights, RoPE then QK-norm, ReLU² in the MLP: `12·L·D² + 2·V·D` parameters (tied: `12·L·D² + V·D`).

Mixed precision without autocast, the same on every device: weights are float32, and each `Linear` casts its own to the
type of its input.  `GPT.dtype` is that type.

Letters in shapes: B batch, T tokens, D dim, F mlp, V vocabulary, L layers, N heads, H head dim.

Source: https://github.com/karpathy/nanochat (nanochat/gpt.py, October 2025).  Tests compare logits and gradients with
`transformers.NanoChatForCausalLM`.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from tinylib.config import GPTConfig
from tinylib.loss import Kernel, Reduction, cross_entropy, softcap, softcap_cross_entropy_fwd_bwd

NORM_EPS = 1e-6


class KVCache:
    """KV cache of `model`: keys and values of past tokens, for `batch_size` sequences of up to `capacity` tokens.

    The sequences may have different lengths.  They can leave, and others join, between two forward passes: `lengths`
    has one entry for each that is there, at most `batch_size`.
    """

    def __init__(self, model: GPT, batch_size: int, capacity: int) -> None:
        config = model.config
        shape = (config.depth, 2, batch_size, config.n_head, capacity, config.head_dim)
        self._store = torch.zeros(shape, dtype=model.dtype, device=model.device)
        self.capacity = capacity
        self.lengths = [0] * batch_size
        """Number of cached tokens of each sequence, T₀."""

    @property
    def start(self) -> int | Tensor:
        """Position of the next token: one for all sequences if they have the same length, else [B]."""
        same = len(set(self.lengths)) <= 1
        return max(self.lengths, default=0) if same else torch.tensor(self.lengths, device=self._store.device)

    def extend(self, layer: int, k_BNTH: Tensor, v_BNTH: Tensor) -> tuple[Tensor, Tensor]:
        """Append the keys and values of T tokens to `layer`; returns all T₀ + T, of the longest sequence.

        Raises ValueError if it is full, or if T is not 1 and the sequences have different lengths.
        """
        rows, tokens, start = len(self.lengths), k_BNTH.shape[2], self.start
        end = max(self.lengths, default=0) + tokens
        if end > self.capacity:
            raise ValueError(f"KVCache: {end} tokens do not fit capacity={self.capacity}: make a larger cache")
        keys, values = self._store[layer, :, :rows]
        if isinstance(start, int):
            keys[:, :, start:end], values[:, :, start:end] = k_BNTH, v_BNTH
        elif tokens == 1:
            row = torch.arange(rows, device=start.device)
            keys[row, :, start], values[row, :, start] = k_BNTH[:, :, 0], v_BNTH[:, :, 0]
        else:
            raise ValueError(f"KVCache: {tokens} tokens for sequences of different lengths: pass one at a time")
        return keys[:, :, :end], values[:, :, :end]

    def select(self, rows: list[int], capacity: int) -> KVCache:
        """A cache of the sequences `rows`, which may repeat, with room for `capacity` tokens."""
        chosen, length = copy.copy(self), max(self.lengths, default=0)
        shape = (*self._store.shape[:2], len(rows), self._store.shape[3], capacity, self._store.shape[5])
        chosen._store, chosen.capacity = self._store.new_zeros(shape), capacity
        chosen.lengths = [self.lengths[row] for row in rows]
        chosen._store[..., :length, :] = self._store[:, :, rows, :, :length]
        return chosen

    def put(self, row: int, other: KVCache) -> None:
        """Copy the first sequence of `other` to `row`: over one that is there, or behind the last."""
        length = other.lengths[0]
        self._store[:, :, row, :, :length] = other._store[:, :, 0, :, :length]
        self.lengths[row:row + 1] = [length]

    def remove(self, row: int) -> None:
        """Drop a sequence; the last one moves to its row."""
        last = len(self.lengths) - 1
        self._store[:, :, row, :, :self.lengths[last]] = self._store[:, :, last, :, :self.lengths[last]]
        self.lengths[row] = self.lengths[last]
        self.lengths.pop()

    def advance(self, tokens: int) -> None:
        """Add `tokens` to each length, after every layer was extended by them."""
        self.lengths = [length + tokens for length in self.lengths]


class Linear(nn.Linear):
    """Linear layer without bias that casts its weight to the type of its input."""

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__(in_features, out_features, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight.to(x.dtype))


class Attention(nn.Module):
    """Causal multi-head attention: RoPE, then QK-norm, then softmax(q·k / √H)·v."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.head_dim = config.head_dim
        self.query, self.key, self.value, self.output = (Linear(config.dim, config.dim) for _ in range(4))

    def forward(self, x_BTD: Tensor, rope: tuple[Tensor, Tensor], cache: KVCache | None = None,
                layer: int = 0) -> Tensor:
        q_BNTH, k_BNTH, v_BNTH = (self._heads(part(x_BTD)) for part in (self.query, self.key, self.value))
        q_BNTH, k_BNTH = rms_norm(apply_rotary_emb(q_BNTH, *rope)), rms_norm(apply_rotary_emb(k_BNTH, *rope))
        start_pos: int | Tensor = 0
        if cache is not None:
            start_pos = cache.start
            k_BNTH, v_BNTH = cache.extend(layer, k_BNTH, v_BNTH)
        y_BNTH = attention(q_BNTH, k_BNTH, v_BNTH, start_pos)
        return self.output(y_BNTH.transpose(1, 2).flatten(2))

    def _heads(self, x_BTD: Tensor) -> Tensor:
        return x_BTD.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)


class MLP(nn.Module):
    """Feed-forward network: D → 4·D → ReLU² → D."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.up = Linear(config.dim, config.mlp_dim)
        self.down = Linear(config.mlp_dim, config.dim)

    def forward(self, x_BTD: Tensor) -> Tensor:
        return self.down(F.relu(self.up(x_BTD)).square())


class Block(nn.Module):
    """Pre-norm transformer block: attention and MLP read the normed residual stream and add to it.

    They compute in the type of `rope`; the residual stream may be wider (`GPT.stream_dtype`).
    """

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.attention = Attention(config)
        self.mlp = MLP(config)

    def forward(self, x_BTD: Tensor, rope: tuple[Tensor, Tensor], cache: KVCache | None = None,
                layer: int = 0) -> Tensor:
        dtype = rope[0].dtype
        x_BTD = x_BTD + self.attention(rms_norm(x_BTD).to(dtype), rope, cache, layer)
        return x_BTD + self.mlp(rms_norm(x_BTD).to(dtype))


class GPT(nn.Module):
    """Decoder-only transformer: `model(x_BT)` returns logits [B, T, V], `model(x_BT, y_BT)` the mean loss in nats.

    A tied model has one table and no `lm_head`, so moving, casting, saving or loading it can't break the tie.

    >>> from tinylib.config import PRESETS
    >>> model = GPT(PRESETS["nano"])
    >>> x_BT = torch.arange(6).view(2, 3)
    >>> tuple(model(x_BT).shape), round(model(x_BT, x_BT).item() - math.log(3072), 3)
    ((2, 3, 3072), -0.0)
    """

    def __init__(self, config: GPTConfig, seed: int = 0, dtype: torch.dtype = torch.float32) -> None:
        """Initialize from `seed`, unless on the meta device; `dtype` is the precision of activations and products."""
        super().__init__()
        self.config = config
        self.dtype = dtype
        self.wte = nn.Embedding(config.vocab_size, config.dim)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
        self.lm_head = None if config.tied else Linear(config.dim, config.vocab_size)
        self.recompute = False
        """Activation checkpointing: recompute each block in the backward pass instead of keeping its activations."""
        self._compiled_shape: tuple[int, int] | None = None
        self._compiled_trunk: Callable[[Tensor], Tensor] | None = None
        self._kernel: Kernel = softcap_cross_entropy_fwd_bwd
        if not self.wte.weight.is_meta:
            self.init_weights(seed)

    @property
    def unembedding(self) -> Tensor:
        """Output table [V, D]; in a tied model it is the embedding.  This is the only place where the tie is made."""
        return self.wte.weight if self.lm_head is None else self.lm_head.weight

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return self.wte.weight.device

    @property
    def stream_dtype(self) -> torch.dtype:
        """Precision of the residual stream: float32 in float16, whose range a sum over layers can leave."""
        return torch.float32 if self.dtype == torch.float16 else self.dtype

    def forward(self, x_BT: Tensor, y_BT: Tensor | None = None, *, cache: KVCache | None = None,
                reduction: Reduction = "mean") -> Tensor:
        """Logits [B, T, V] in float32, or with targets `y_BT` (-1: ignored) the loss in nats, reduced as asked."""
        x_BTD = self.hidden(x_BT, cache)
        if y_BT is None:
            return self.logits(x_BTD)
        return cross_entropy(x_BTD.flatten(0, 1), self.unembedding, y_BT.flatten(), self.config.softcap, reduction,
                             kernel=self._kernel)

    def compile_for_training(self, shape: tuple[int, int] | None) -> None:
        """Compile blocks and loss for batches of `shape` [B, T], or undo it with None; parameter names do not change.

        Other shapes are computed without compiling.  On a GPU evaluation in this shape is compiled too.
        """
        kernel = softcap_cross_entropy_fwd_bwd
        self._compiled_shape = shape
        self._compiled_trunk = torch.compile(self.trunk, dynamic=False) if shape else None
        self._kernel = torch.compile(kernel, dynamic=False) if shape else kernel

    def hidden(self, x_BT: Tensor, cache: KVCache | None = None) -> Tensor:
        """Normed output of the last block, [B, T, D] in `dtype`."""
        # The lookup stays out of the compiled graph, whose backward pass would add to the table atomically on a GPU.
        x_BTD = self.wte(x_BT).to(self.stream_dtype)
        compiled = x_BT.shape == self._compiled_shape and cache is None and (torch.is_grad_enabled() or x_BT.is_cuda)
        return self._compiled_trunk(x_BTD) if compiled else self.trunk(x_BTD, cache)

    def trunk(self, x_BTD: Tensor, cache: KVCache | None = None) -> Tensor:
        """Everything between embedding and head: norm, blocks, norm; [B, T, D] in `dtype`."""
        start_pos = 0 if cache is None else cache.start
        tables = rope_table(start_pos, x_BTD.shape[1], self.config.head_dim, self.config.rope_theta, x_BTD.device)
        rope = tables[0].to(self.dtype), tables[1].to(self.dtype)
        x_BTD = rms_norm(x_BTD)
        for layer, block in enumerate(self.blocks):
            if self.recompute and torch.is_grad_enabled():
                x_BTD = checkpoint(block, x_BTD, rope, use_reentrant=False, preserve_rng_state=False)
            else:
                x_BTD = block(x_BTD, rope, cache, layer)
        if cache is not None:
            cache.advance(x_BTD.shape[1])
        return rms_norm(x_BTD).to(self.dtype)

    def logits(self, x_BTD: Tensor) -> Tensor:
        """Softcapped logits [B, T, V] of hidden states, in float32."""
        return softcap(F.linear(x_BTD, self.unembedding.to(x_BTD.dtype)).float(), self.config.softcap)

    @torch.no_grad()
    def init_weights(self, seed: int = 0, tied_std: float | None = None) -> None:
        """Initialize all weights; the same seed gives the same weights on every device.

        The first logits are nearly 0, so the first loss is ln V.  An untied model has an embedding of std 1 and a zero
        head.  In a tied model a token's logit for itself is about std·D, so the table has std 1/(2·D): that logit
        starts at 1/2, and the model does not start by copying its input.
        """
        generator = torch.Generator().manual_seed(seed)
        for name, weight in self.named_parameters():
            std = self._initial_std(name, weight)
            if tied_std is not None and self.config.tied and name == "wte.weight":
                std = tied_std
            weight.copy_(torch.randn(weight.shape, generator=generator) * std)

    def _initial_std(self, name: str, weight: Tensor) -> float:
        if name == "wte.weight":
            return 0.5 / self.config.dim if self.config.tied else 1.0
        if name == "lm_head.weight" or name.endswith(("output.weight", "down.weight")):
            return 0.0
        fan_out, fan_in = weight.shape
        return min(1.0, math.sqrt(fan_out / fan_in)) / math.sqrt(fan_in)


def rms_norm(x: Tensor) -> Tensor:
    """RMSNorm over the last axis, without weights.

    Source: Zhang and Sennrich 2019, https://arxiv.org/abs/1910.07467, eq. 4, with eps 1e-6 under the root.
    """
    return F.rms_norm(x, (x.shape[-1],), eps=NORM_EPS)


def rope_table(start: int | Tensor, tokens: int, head_dim: int, theta: float,
               device: torch.device) -> tuple[Tensor, Tensor]:
    """RoPE angles: cosine and sine [T, H/2] for positions `start` … `start + tokens - 1`, in float32.

    Computed in each forward pass, at negligible cost, so the model needs no buffer for them.  Where `start` is a tensor
    [B], they are [B, 1, T, H/2].

    Source: Su et al. 2021, https://arxiv.org/abs/2104.09864, eq. 15.
    """
    position_T = torch.arange(tokens, device=device, dtype=torch.float32)
    position_T = position_T + (start.view(-1, 1, 1) if isinstance(start, Tensor) else start)
    channel_H = torch.arange(0, head_dim, 2, device=device, dtype=torch.float32)
    angle_TH = position_T.unsqueeze(-1) * theta ** (-channel_H / head_dim)
    return angle_TH.cos(), angle_TH.sin()


def apply_rotary_emb(x_BNTH: Tensor, cos_TH: Tensor, sin_TH: Tensor) -> Tensor:
    """Rotary embedding: rotate channel pairs (h, h + H/2) by minus the angle of their position (nanochat's sign)."""
    first, second = x_BNTH.chunk(2, dim=-1)
    return torch.cat((first * cos_TH + second * sin_TH, second * cos_TH - first * sin_TH), dim=-1)


def attention(q_BNTH: Tensor, k_BNSH: Tensor, v_BNSH: Tensor, start_pos: int | Tensor) -> Tensor:
    """Causal attention of T queries at positions `start_pos` … to S keys at positions 0 … S-1.

    `start_pos` is a tensor [B] where the sequences have different lengths.
    """
    tokens, device = q_BNTH.shape[2], q_BNTH.device
    if isinstance(start_pos, Tensor):
        position_BNT1 = start_pos[:, None, None, None] + torch.arange(tokens, device=device)[:, None]
        mask_BNTS = torch.arange(k_BNSH.shape[2], device=device) <= position_BNT1
        return F.scaled_dot_product_attention(q_BNTH, k_BNSH, v_BNSH, attn_mask=mask_BNTS)
    if start_pos == 0:
        return F.scaled_dot_product_attention(q_BNTH, k_BNSH, v_BNSH, is_causal=True)
    if tokens == 1:
        return F.scaled_dot_product_attention(q_BNTH, k_BNSH, v_BNSH)
    mask_TS = torch.ones(tokens, k_BNSH.shape[2], dtype=torch.bool, device=device).tril(start_pos)
    return F.scaled_dot_product_attention(q_BNTH, k_BNSH, v_BNSH, attn_mask=mask_TS)

"""The GPT of the course and its KV cache.

Exactly the October-2025 nanochat architecture: embedding → RMSNorm → L × (attention, MLP) → RMSNorm → head → softcap.
No bias, no norm weights, RoPE then QK-norm, ReLU² in the MLP; so `12·L·D² + 2·V·D` parameters (tied: `12·L·D² + V·D`).

Letters in shapes: B batch, T tokens, D dim, F mlp, V vocabulary, L layers, N heads, H head dim.

Source: https://github.com/karpathy/nanochat (nanochat/gpt.py, October 2025); the same computation as
`transformers.NanoChatForCausalLM`, to which tests compare logits and gradients.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from tinylib import sizing
from tinylib.config import GPTConfig

NORM_EPS = 1e-6
Reduction = Literal["mean", "sum", "none"]
Kernel = Callable[[Tensor, Tensor, float | None], tuple[Tensor, Tensor]]


class KVCache:
    """Keys and values of the tokens seen so far, for `batch_size` sequences of up to `capacity` tokens."""

    def __init__(self, config: GPTConfig, batch_size: int, capacity: int, like: Tensor) -> None:
        shape = (config.depth, 2, batch_size, config.n_head, capacity, config.head_dim)
        self._store = torch.zeros(shape, dtype=like.dtype, device=like.device)
        self.capacity = capacity
        self.length = 0
        """Tokens held, T₀."""

    def extend(self, layer: int, k_BNTH: Tensor, v_BNTH: Tensor) -> tuple[Tensor, Tensor]:
        """Append T tokens to `layer`; returns all of its T₀ + T keys and values."""
        end = self.length + k_BNTH.shape[2]
        if end > self.capacity:
            raise ValueError(f"KVCache: {end} tokens do not fit capacity={self.capacity}: make a larger cache")
        keys, values = self._store[layer]
        keys[:, :, self.length:end], values[:, :, self.length:end] = k_BNTH, v_BNTH
        return keys[:, :, :end], values[:, :, :end]

    def advance(self, tokens: int) -> None:
        """Count `tokens` as held, once every layer was extended by them."""
        self.length += tokens


class Attention(nn.Module):
    """Causal multi-head attention: RoPE, then QK-norm, then softmax(q·k / √H)·v."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.head_dim = config.head_dim
        self.query, self.key, self.value, self.output = (
            nn.Linear(config.dim, config.dim, bias=False) for _ in range(4))

    def forward(self, x_BTD: Tensor, rope: tuple[Tensor, Tensor], cache: KVCache | None = None,
                layer: int = 0) -> Tensor:
        q_BNTH, k_BNTH, v_BNTH = (self._heads(part(x_BTD)) for part in (self.query, self.key, self.value))
        q_BNTH, k_BNTH = rms_norm(rotate(q_BNTH, *rope)), rms_norm(rotate(k_BNTH, *rope))
        before = 0
        if cache is not None:
            before = cache.length
            k_BNTH, v_BNTH = cache.extend(layer, k_BNTH, v_BNTH)
        y_BNTH = attend(q_BNTH, k_BNTH, v_BNTH, before)
        return self.output(y_BNTH.transpose(1, 2).flatten(2))

    def _heads(self, x_BTD: Tensor) -> Tensor:
        return x_BTD.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)


class MLP(nn.Module):
    """D → 4·D → D with ReLU² between."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.up = nn.Linear(config.dim, config.mlp_dim, bias=False)
        self.down = nn.Linear(config.mlp_dim, config.dim, bias=False)

    def forward(self, x_BTD: Tensor) -> Tensor:
        return self.down(F.relu(self.up(x_BTD)).square())


class Block(nn.Module):
    """One layer: attention and MLP, each added to the residual stream and reading a normed copy of it."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.attention = Attention(config)
        self.mlp = MLP(config)

    def forward(self, x_BTD: Tensor, rope: tuple[Tensor, Tensor], cache: KVCache | None = None,
                layer: int = 0) -> Tensor:
        x_BTD = x_BTD + self.attention(rms_norm(x_BTD), rope, cache, layer)
        return x_BTD + self.mlp(rms_norm(x_BTD))


class GPT(nn.Module):
    """A GPT; `model(x_BT)` gives logits [B, T, V], `model(x_BT, y_BT)` the mean loss in nats per target.

    A tied model has one table: there is no second tensor that could drift from the first, whatever moves, casts,
    saves or loads the model.

    >>> from tinylib.config import PRESETS
    >>> model = GPT(PRESETS["nano"])
    >>> x_BT = torch.arange(6).view(2, 3)
    >>> tuple(model(x_BT).shape), round(model(x_BT, x_BT).item() - math.log(3072), 3)
    ((2, 3, 3072), -0.0)
    """

    def __init__(self, config: GPTConfig, seed: int = 0) -> None:
        super().__init__()
        self.config = config
        self.wte = nn.Embedding(config.vocab_size, config.dim)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
        self.lm_head = None if config.tied else nn.Linear(config.dim, config.vocab_size, bias=False)
        self.recompute = False
        """Whether a backward pass computes each block's activations again instead of keeping them."""
        self._kernel: Kernel = loss_and_gradient
        self._compiled_hidden: Callable[[Tensor], Tensor] | None = None
        if not self.wte.weight.is_meta:
            self.init_weights(seed)

    @property
    def unembedding(self) -> Tensor:
        """The table [V, D] that turns the last hidden state into logits; the tie is made here and nowhere else."""
        return self.wte.weight if self.lm_head is None else self.lm_head.weight

    def forward(self, x_BT: Tensor, y_BT: Tensor | None = None, *, cache: KVCache | None = None,
                reduction: Reduction = "mean") -> Tensor:
        """Logits [B, T, V] in float32, or the loss in nats if targets are given.

        Targets of -1 don't count.  `reduction` is that of `cross_entropy`.
        """
        compiled = self._compiled_hidden is not None and cache is None and torch.is_grad_enabled()
        x_BTD = self._compiled_hidden(x_BT) if compiled else self.hidden(x_BT, cache)
        if y_BT is None:
            return self.logits(x_BTD)
        return cross_entropy(x_BTD.flatten(0, 1), self.unembedding, y_BT.flatten(), self.config.softcap, reduction,
                             kernel=self._kernel)

    def compile_for_training(self, on: bool = True) -> None:
        """Compile the blocks and the loss for passes with gradients (or go back); names of weights stay as they are."""
        self._compiled_hidden = torch.compile(self.hidden, dynamic=False) if on else None
        self._kernel = torch.compile(loss_and_gradient, dynamic=False) if on else loss_and_gradient

    def hidden(self, x_BT: Tensor, cache: KVCache | None = None) -> Tensor:
        """The normed output of the last block, [B, T, D]."""
        before = 0 if cache is None else cache.length
        rope = rope_table(before, x_BT.shape[1], self.config.head_dim, self.config.rope_theta, x_BT.device)
        x_BTD = rms_norm(self.wte(x_BT))
        for layer, block in enumerate(self.blocks):
            if self.recompute and torch.is_grad_enabled():
                x_BTD = checkpoint(block, x_BTD, rope, use_reentrant=False, preserve_rng_state=False)
            else:
                x_BTD = block(x_BTD, rope, cache, layer)
        if cache is not None:
            cache.advance(x_BT.shape[1])
        return rms_norm(x_BTD)

    def logits(self, x_BTD: Tensor) -> Tensor:
        """Softcapped logits [B, T, V] of hidden states, in float32."""
        return soften(F.linear(x_BTD, self.unembedding.to(x_BTD.dtype)).float(), self.config.softcap)

    @torch.no_grad()
    def init_weights(self, seed: int = 0) -> None:
        """Draw every weight; the same seed gives the same weights on every device.

        The first logits are zero or nearly so, so the first loss is ln V.  Untied that takes a head of zeros, and the
        embedding has std 1.  A tied table must be small instead, for a token's logit for itself is about std·D: at
        std 1/(2·D) it is 1/2 before any training, and the model does not start as a copier.
        """
        generator = torch.Generator().manual_seed(seed)
        for name, weight in self.named_parameters():
            std = self._initial_std(name, weight)
            weight.copy_(torch.randn(weight.shape, generator=generator) * std)

    def _initial_std(self, name: str, weight: Tensor) -> float:
        if name == "wte.weight":
            return 0.5 / self.config.dim if self.config.tied else 1.0
        if name == "lm_head.weight" or name.endswith(("output.weight", "down.weight")):
            return 0.0
        fan_out, fan_in = weight.shape
        return min(1.0, math.sqrt(fan_out / fan_in)) / math.sqrt(fan_in)


def rms_norm(x: Tensor) -> Tensor:
    """`x` with its last axis scaled to a root mean square of 1; no weights.

    Source: Zhang and Sennrich 2019, https://arxiv.org/abs/1910.07467, eq. 4, with eps 1e-6 under the root.
    """
    return F.rms_norm(x, (x.shape[-1],), eps=NORM_EPS)


def rope_table(start: int, tokens: int, head_dim: int, theta: float, device: torch.device) -> tuple[Tensor, Tensor]:
    """Cosine and sine [T, H/2] of the angles of positions `start` … `start + tokens - 1`, in float32.

    Computed anew in each pass: it costs nothing beside the blocks, and a buffer that is not there can't go stale.

    Source: Su et al. 2021, https://arxiv.org/abs/2104.09864, eq. 15.
    """
    position_T = torch.arange(start, start + tokens, device=device, dtype=torch.float32)
    channel_H = torch.arange(0, head_dim, 2, device=device, dtype=torch.float32)
    angle_TH = torch.outer(position_T, theta ** (-channel_H / head_dim))
    return angle_TH.cos(), angle_TH.sin()


def rotate(x_BNTH: Tensor, cos_TH: Tensor, sin_TH: Tensor) -> Tensor:
    """Turn channel pairs (h, h + H/2) by minus the angle of their position: nanochat's sign convention."""
    first, second = x_BNTH.chunk(2, dim=-1)
    cos_TH, sin_TH = cos_TH.to(x_BNTH.dtype), sin_TH.to(x_BNTH.dtype)
    return torch.cat((first * cos_TH + second * sin_TH, second * cos_TH - first * sin_TH), dim=-1)


def attend(q_BNTH: Tensor, k_BNSH: Tensor, v_BNSH: Tensor, before: int) -> Tensor:
    """Attention of T queries, the first of which stands at position `before`, to keys at positions 0 … S-1."""
    if before == 0:
        return F.scaled_dot_product_attention(q_BNTH, k_BNSH, v_BNSH, is_causal=True)
    if q_BNTH.shape[2] == 1:
        return F.scaled_dot_product_attention(q_BNTH, k_BNSH, v_BNSH)
    mask_TS = torch.ones(q_BNTH.shape[2], k_BNSH.shape[2], dtype=torch.bool, device=q_BNTH.device).tril(before)
    return F.scaled_dot_product_attention(q_BNTH, k_BNSH, v_BNSH, attn_mask=mask_TS)


def soften(logits: Tensor, cap: float | None) -> Tensor:
    """Logits squashed into (-cap, cap).

    Source: Gemma 2, https://arxiv.org/abs/2408.00118, section 2.
    """
    return logits if cap is None else cap * torch.tanh(logits / cap)


def cross_entropy(x_RD: Tensor, table_VD: Tensor, y_R: Tensor, cap: float | None, reduction: Reduction = "mean",
                  chunk_rows: int | None = None, kernel: Kernel | None = None) -> Tensor:
    """Cross-entropy in nats of the softcapped logits of R rows against targets; a target of -1 doesn't count.

    "mean" is over the targets that count, "sum" over the rows, "none" gives [R] with 0 where nothing counts.  At most
    `chunk_rows` × V logits exist at a time (None: `sizing.chunk_rows`), and for "mean" and "sum" the gradients
    are made in the same pass, so that nothing of size R × V waits for the backward pass.  `kernel` is
    `loss_and_gradient` or a compiled version of it.

    >>> x_RD, table_VD = torch.eye(2), torch.zeros(8, 2)
    >>> cross_entropy(x_RD, table_VD, torch.tensor([3, -1]), 15.0).item() == torch.tensor(8.0).log().item()
    True
    """
    kind = x_RD.device.type
    chunk_rows = chunk_rows or sizing.chunk_rows(table_VD.shape[0], kind)
    if torch.is_autocast_enabled(kind):    # in-place products, as below, are not cast by themselves
        x_RD = x_RD.to(torch.get_autocast_dtype(kind))
    if reduction == "none":
        chunks = zip(x_RD.split(chunk_rows), y_R.split(chunk_rows), strict=True)
        return torch.cat([F.cross_entropy(soften(F.linear(x, table_VD.to(x.dtype)).float(), cap), y, ignore_index=-1,
                                          reduction="none") for x, y in chunks])
    total = _ChunkedLoss.apply(x_RD, table_VD, y_R, cap, chunk_rows, kernel or loss_and_gradient)
    return total if reduction == "sum" else total / (y_R >= 0).sum()


class _ChunkedLoss(torch.autograd.Function):
    """Sum of the cross-entropies; the gradients for a loss of 1 are made chunk by chunk in the forward pass."""

    @staticmethod
    def forward(ctx: Any, x_RD: Tensor, table_VD: Tensor, y_R: Tensor, cap: float | None, chunk_rows: int,
                kernel: Kernel) -> Tensor:
        total = torch.zeros((), device=x_RD.device)
        dx_RD, dtable_VD = torch.empty_like(x_RD), torch.zeros_like(table_VD)
        cast_VD = table_VD.to(x_RD.dtype)
        for x, y, dx in zip(x_RD.split(chunk_rows), y_R.split(chunk_rows), dx_RD.split(chunk_rows), strict=True):
            loss, dlogits = kernel(x @ cast_VD.T, y, cap)
            total += loss
            torch.mm(dlogits, cast_VD, out=dx)
            if x.dtype == dtable_VD.dtype:
                dtable_VD.addmm_(dlogits.T, x)
            else:
                dtable_VD += dlogits.T @ x
            del dlogits    # before the next ones come
        ctx.save_for_backward(dx_RD, dtable_VD)
        return total

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, dtotal: Tensor) -> tuple[Tensor | None, ...]:
        dx_RD, dtable_VD = ctx.saved_tensors
        return dx_RD * dtotal.to(dx_RD.dtype), dtable_VD * dtotal, None, None, None, None


def loss_and_gradient(logits_RV: Tensor, y_R: Tensor, cap: float | None) -> tuple[Tensor, Tensor]:
    """Summed cross-entropy, in float32, of R rows of raw logits and its gradient [R, V] with respect to them.

    With z = cap·tanh(logits / cap) the gradient is (softmax(z) - onehot(y))·(1 - tanh²).  Softcapped logits are
    bounded, so their exponentials are summed as they are; tanh is taken from the exponential, the one function of
    the kind that a CPU computes fast.  Where logits aren't bounded, the largest of a row is subtracted first.
    Two tensors of the size of the logits are made and changed in place; the conversions from and to the precision of
    the logits are in here, for compiled they cost no pass of their own.
    """
    counts_R1 = (y_R >= 0)[:, None]
    index_R1 = y_R.clamp(min=0)[:, None]
    if cap is None:
        z_RV, slope_RV = logits_RV - logits_RV.amax(1, keepdim=True).float(), None
    else:
        tanh_RV = (logits_RV.float() * (2 / cap)).exp_().add_(1).reciprocal_().mul_(-2).add_(1)
        z_RV, slope_RV = tanh_RV * cap, tanh_RV.square_().neg_().add_(1)
        if cap > 50:
            z_RV.sub_(z_RV.amax(1, keepdim=True))
    target_R1 = z_RV.gather(1, index_R1)
    exp_RV = z_RV.exp_()
    sum_R1 = exp_RV.sum(1, keepdim=True)
    loss = torch.where(counts_R1, sum_R1.log() - target_R1, 0.0).sum()
    gradient_RV, one_R1 = exp_RV.mul_(counts_R1 / sum_R1), counts_R1.float()
    if slope_RV is not None:
        gradient_RV, one_R1 = gradient_RV.mul_(slope_RV), slope_RV.gather(1, index_R1) * counts_R1
    return loss, gradient_RV.scatter_add_(1, index_R1, -one_R1).to(logits_RV.dtype)

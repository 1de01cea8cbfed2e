"""The GPT of the course.

Exactly the October-2025 nanochat architecture: embedding → RMSNorm → L × (attention, MLP) → RMSNorm → head → softcap.
No bias, no norm weights, RoPE then QK-norm, ReLU² in the MLP: `12·L·D² + 2·V·D` parameters (tied: `12·L·D² + V·D`).

Mixed precision without autocast, the same on every device: weights are float32, and each `Linear` casts its own to the
type of its input.  `GPT.dtype` is that type.

Letters in shapes: B batch, T tokens, D dim, F mlp, V vocabulary, L layers, N heads, H head dim.

Source: https://github.com/karpathy/nanochat (nanochat/gpt.py, October 2025).  Tests compare logits and gradients with
`transformers.NanoChatForCausalLM`.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from tinylib.config import GPTConfig
from tinylib.kv_cache import KVCache
from tinylib.loss import Kernel, Reduction, cross_entropy, softcap, softcap_cross_entropy_fwd_bwd

NORM_EPS = 1e-6


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

    def forward(self, x_BTD: Tensor, rope: tuple[Tensor, Tensor], mask: Tensor | None = None,
                cache: KVCache | None = None, layer: int = 0) -> Tensor:
        q_BNTH, k_BNTH, v_BNTH = (self._heads(part(x_BTD)) for part in (self.query, self.key, self.value))
        q_BNTH, k_BNTH = rms_norm(apply_rotary_emb(q_BNTH, *rope)), rms_norm(apply_rotary_emb(k_BNTH, *rope))
        start_pos: int | Tensor = 0
        if cache is not None:
            start_pos = cache.start
            k_BNTH, v_BNTH = cache.extend(layer, k_BNTH, v_BNTH)
        y_BNTH = attention(q_BNTH, k_BNTH, v_BNTH, start_pos, mask)
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

    def forward(self, x_BTD: Tensor, rope: tuple[Tensor, Tensor], mask: Tensor | None = None,
                cache: KVCache | None = None, layer: int = 0) -> Tensor:
        dtype = rope[0].dtype
        x_BTD = x_BTD + self.attention(rms_norm(x_BTD).to(dtype), rope, mask, cache, layer)
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
        self._compiled_trunk: Callable[[Tensor, Tensor | None], Tensor] | None = None
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
                reduction: Reduction = "mean", segment_BT: Tensor | None = None) -> Tensor:
        """Logits [B, T, V] in float32, or with targets `y_BT` (-1: ignored) the loss in nats, reduced as asked.

        With `segment_BT`, the number of each token's document, attention doesn't cross the documents of a row.
        """
        x_BTD = self.hidden(x_BT, cache, segment_BT)
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

    def hidden(self, x_BT: Tensor, cache: KVCache | None = None, segment_BT: Tensor | None = None) -> Tensor:
        """Normed output of the last block, [B, T, D] in `dtype`."""
        # The lookup stays out of the compiled graph, whose backward pass would add to the table atomically on a GPU.
        x_BTD = self.wte(x_BT).to(self.stream_dtype)
        compiled = x_BT.shape == self._compiled_shape and cache is None and (torch.is_grad_enabled() or x_BT.is_cuda)
        same_BTT = None if segment_BT is None else segment_BT.unsqueeze(1) == segment_BT.unsqueeze(2)
        mask_B1TT = None if same_BTT is None else same_BTT.tril().unsqueeze(1)
        return self._compiled_trunk(x_BTD, mask_B1TT) if compiled else self.trunk(x_BTD, mask_B1TT, cache)

    def trunk(self, x_BTD: Tensor, mask: Tensor | None = None, cache: KVCache | None = None) -> Tensor:
        """Everything between embedding and head: norm, blocks, norm; [B, T, D] in `dtype`."""
        start_pos = 0 if cache is None else cache.start
        tables = rope_table(start_pos, x_BTD.shape[1], self.config.head_dim, self.config.rope_theta, x_BTD.device)
        rope = tables[0].to(self.dtype), tables[1].to(self.dtype)
        x_BTD = rms_norm(x_BTD)
        for layer, block in enumerate(self.blocks):
            if self.recompute and torch.is_grad_enabled():
                x_BTD = checkpoint(block, x_BTD, rope, mask, use_reentrant=False, preserve_rng_state=False)
            else:
                x_BTD = block(x_BTD, rope, mask, cache, layer)
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


def attention(q_BNTH: Tensor, k_BNSH: Tensor, v_BNSH: Tensor, start_pos: int | Tensor = 0,
              mask: Tensor | None = None) -> Tensor:
    """Causal attention of T queries at positions `start_pos` … to S keys at positions 0 … S-1, or as `mask` says.

    `start_pos` is a tensor [B] where the sequences have different lengths.
    """
    if mask is not None:
        return F.scaled_dot_product_attention(q_BNTH, k_BNSH, v_BNSH, attn_mask=mask)
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

"""One decoding step in few operations, because starting an operation costs more than its arithmetic on one token.

Against the model's own forward pass: one product for query, key and value; queries and keys are rotated and normed
together; residual additions belong to the products; and weights are kept transposed, as products of few rows read them
fastest on a CPU.  At batch 1 it is 2.5 times as fast at micro and 1.6 at goldilocks (benchmarks/RESULTS.md).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from tinylib.model import GPT, KVCache, rms_norm, rope_table, softcap


class DecodingStep:
    """Logits of the next token of each sequence in a KV cache: `model(x_B1, cache=cache)[:, -1]`, up to rounding.

    Holds copies of the weights as they are now.  In float16, whose residual stream is float32, it calls the model.
    """

    def __init__(self, model: GPT) -> None:
        def transposed(*weights: Tensor) -> Tensor:
            return torch.cat(weights).detach().to(model.dtype).t().contiguous()

        self.model = model
        self.plain = model.stream_dtype != model.dtype
        self.layers = [] if self.plain else [
            (transposed(block.attention.query.weight, block.attention.key.weight, block.attention.value.weight),
             transposed(block.attention.output.weight), transposed(block.mlp.up.weight),
             transposed(block.mlp.down.weight)) for block in model.blocks]
        self.head_DV = None if self.plain else transposed(model.unembedding)

    @torch.no_grad()
    def __call__(self, ids_B: Tensor, cache: KVCache) -> Tensor:
        """Logits [B, V] in float32 after `ids_B`, whose keys and values are appended to the cache."""
        if self.plain:
            return self.model(ids_B[:, None], cache=cache)[:, -1]
        config, start, dtype = self.model.config, cache.start, self.model.dtype
        cos, sin = rope_table(start, 1, config.head_dim, config.rope_theta, ids_B.device)
        cos, sin = torch.cat((cos, cos), -1).to(dtype), torch.cat((sin, -sin), -1).to(dtype)
        mask = None
        if isinstance(start, Tensor):
            mask = torch.arange(max(cache.lengths) + 1, device=ids_B.device) <= start[:, None, None, None]
        x_BD = rms_norm(self.model.wte(ids_B).to(dtype))
        for layer, (qkv, output, up, down) in enumerate(self.layers):
            qkv_B3NH = (rms_norm(x_BD) @ qkv).view(-1, 3, config.n_head, config.head_dim)
            qk_B2NH = qkv_B3NH[:, :2]
            qk_B2NH = rms_norm(qk_B2NH * cos + qk_B2NH.roll(config.head_dim // 2, -1) * sin)
            keys, values = cache.extend(layer, qk_B2NH[:, 1, :, None], qkv_B3NH[:, 2, :, None])
            y_BN1H = F.scaled_dot_product_attention(qk_B2NH[:, 0, :, None], keys, values, attn_mask=mask)
            x_BD = torch.addmm(x_BD, y_BN1H.flatten(1), output)
            x_BD = torch.addmm(x_BD, (rms_norm(x_BD) @ up).relu_().square_(), down)
        cache.advance(1)
        return softcap((rms_norm(x_BD) @ self.head_DV).float(), config.softcap)

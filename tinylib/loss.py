"""Chunked cross-entropy of softcapped logits, with the gradients computed in the forward pass.

At most one chunk of the logits [R, V] exists at a time, and nothing of their size is kept for the backward pass.

Letters in shapes: R rows (tokens of a batch), D dim, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from tinylib import sizing

Reduction = Literal["mean", "sum", "none"]
Kernel = Callable[[Tensor, Tensor, float | None], tuple[Tensor, Tensor]]


def softcap(logits: Tensor, cap: float | None) -> Tensor:
    """Softcap: cap·tanh(logits / cap), which lies in (-cap, cap); None leaves the logits as they are.

    Source: Gemma 2, https://arxiv.org/abs/2408.00118, section 2.
    """
    return logits if cap is None else cap * torch.tanh(logits / cap)


def cross_entropy(x_RD: Tensor, table_VD: Tensor, y_R: Tensor, cap: float | None, reduction: Reduction = "mean",
                  chunk_rows: int | None = None, kernel: Kernel | None = None) -> Tensor:
    """Cross-entropy in nats of the softcapped logits `x_RD @ table_VD.T` against targets `y_R`; -1 ignores a row.

    "mean" averages over the rows that are not ignored; "none" returns [R], with 0 for ignored rows.  At most
    `chunk_rows` × V logits exist at a time (None: `sizing.chunk_rows`).  For "mean" and "sum" the forward pass computes
    the gradients too.  `kernel` is `softcap_cross_entropy_fwd_bwd` or a compiled version of it.

    >>> x_RD, table_VD = torch.eye(2), torch.zeros(8, 2)
    >>> cross_entropy(x_RD, table_VD, torch.tensor([3, -1]), 15.0).item() == torch.tensor(8.0).log().item()
    True
    """
    chunk_rows = min(chunk_rows or sizing.chunk_rows(table_VD.shape[0], _gpu_bytes(x_RD.device)), len(x_RD))
    if reduction == "none":
        chunks = zip(x_RD.split(chunk_rows), y_R.split(chunk_rows), strict=True)
        return torch.cat([_row_losses(F.linear(x, table_VD.to(x.dtype)), y, cap) for x, y in chunks])
    total = _ChunkedLoss.apply(x_RD, table_VD, y_R, cap, chunk_rows, kernel or softcap_cross_entropy_fwd_bwd)
    return total if reduction == "sum" else total / (y_R >= 0).sum()


def _row_losses(logits_RV: Tensor, y_R: Tensor, cap: float | None) -> Tensor:
    if cap is None or torch.is_grad_enabled() or logits_RV.device.type != "cpu":
        capped_RV = softcap(logits_RV.float(), cap)
    else:
        capped_RV = _tanh(logits_RV, cap).mul_(cap)
    return F.cross_entropy(capped_RV, y_R, ignore_index=-1, reduction="none")


def _tanh(logits_RV: Tensor, cap: float) -> Tensor:
    """tanh(logits / cap) in float32, from exp, because CPUs vectorize exp; autograd can't follow it."""
    return (logits_RV.float() * (2 / cap)).exp_().add_(1).reciprocal_().mul_(-2).add_(1)


def _gpu_bytes(device: torch.device) -> int | None:
    has_memory = device.type == "cuda" and torch.cuda.is_available()    # a fake GPU has none
    return torch.cuda.get_device_properties(device).total_memory if has_memory else None


class _ChunkedLoss(torch.autograd.Function):
    """Summed cross-entropy; the forward pass computes the gradients chunk by chunk, for an incoming gradient of 1."""

    @staticmethod
    def forward(ctx: Any, x_RD: Tensor, table_VD: Tensor, y_R: Tensor, cap: float | None, chunk_rows: int,
                kernel: Kernel) -> Tensor:
        total = torch.zeros((), device=x_RD.device)
        dx_RD, dtable_VD = torch.empty_like(x_RD), torch.zeros_like(table_VD)
        cast_VD = table_VD.to(x_RD.dtype)
        for x, y, dx in zip(x_RD.split(chunk_rows), y_R.split(chunk_rows), dx_RD.split(chunk_rows), strict=True):
            # A compiled kernel would be compiled again for the rows that are left over.
            whole = kernel if len(x) == chunk_rows else softcap_cross_entropy_fwd_bwd
            loss, dlogits = whole(x @ cast_VD.T, y, cap)
            total += loss
            torch.mm(dlogits, cast_VD, out=dx)
            if x.dtype == dtable_VD.dtype:
                dtable_VD.addmm_(dlogits.T, x)
            else:
                dtable_VD += dlogits.T @ x
            del dlogits    # so that two chunks never coexist
        ctx.save_for_backward(dx_RD, dtable_VD)
        return total

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, dtotal: Tensor) -> tuple[Tensor | None, ...]:
        dx_RD, dtable_VD = ctx.saved_tensors
        return (dx_RD.float() * dtotal).to(dx_RD.dtype), dtable_VD * dtotal, None, None, None, None


def softcap_cross_entropy_fwd_bwd(logits_RV: Tensor, y_R: Tensor, cap: float | None) -> tuple[Tensor, Tensor]:
    """Summed cross-entropy (float32) of raw logits, and its gradient [R, V] with respect to them.

    With z = cap·tanh(logits / cap) the gradient is (softmax(z) - onehot(y))·(1 - tanh²).  Logits with a small cap are
    bounded, so the exponentials need no maximum subtracted; otherwise it is the row's.  Two tensors of the size of the
    logits are allocated and changed in place.  The casts from and to the precision of the logits are inside, so that
    the compiler fuses them.
    """
    counts_R1 = (y_R >= 0).unsqueeze(1)
    index_R1 = y_R.clamp(min=0).unsqueeze(1)
    if cap is None:
        z_RV, slope_RV = logits_RV - logits_RV.amax(1, keepdim=True).float(), None
    else:
        tanh_RV = _tanh(logits_RV, cap)
        z_RV, slope_RV = tanh_RV * cap, tanh_RV.square_().neg_().add_(1)
        if cap > 50:
            z_RV.sub_(z_RV.amax(1, keepdim=True))
    target_R1 = z_RV.gather(1, index_R1)
    exp_RV = z_RV.exp_()
    sum_R1 = exp_RV.sum(1, keepdim=True)
    loss = torch.where(counts_R1, sum_R1.log() - target_R1, 0.0).sum()
    gradient_RV = exp_RV.mul_(counts_R1 / sum_R1)
    if torch.compiler.is_compiling():    # a comparison fuses; the compiler's scatter would be atomic and in float32
        id_V = torch.arange(exp_RV.shape[1], device=y_R.device, dtype=torch.int32)    # int64 takes up to twice the time
        gradient_RV = gradient_RV - (id_V == y_R.to(torch.int32).unsqueeze(1)).float()
    else:
        gradient_RV.scatter_add_(1, index_R1, -counts_R1.float())
    return loss, (gradient_RV if slope_RV is None else gradient_RV.mul_(slope_RV)).to(logits_RV.dtype)

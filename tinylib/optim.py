"""Optimizers by parameter role, learning-rate schedule, gradient scaling: Muon for matrices, AdamW for tables.

Parameter groups follow the roles in `GPTConfig.tensors()`, not shapes, so Muon never gets a table, and a tied table is
one tensor in one group.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from tinylib.checks import UserError
from tinylib.config import TrainConfig
from tinylib.model import GPT

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
"""Coefficients of the quintic iteration.  Source: Jordan 2024, https://kellerjordan.github.io/posts/muon."""


class Muon(torch.optim.Optimizer):
    """Muon: Nesterov momentum, then Newton–Schulz orthogonalization, so that an update has singular values near 1.

    Matrices of one shape are orthogonalized as one batch, split among the processes; all processes end with the same
    weights and momenta.

    Source: Jordan 2024, https://kellerjordan.github.io/posts/muon; learning rate times √max(1, rows / columns).
    """

    def __init__(self, params: Iterable[Tensor], lr: float, momentum: float = 0.95, weight_decay: float = 0.0,
                 dtype: torch.dtype = torch.float32) -> None:
        """`dtype` is the precision of the Newton–Schulz iteration; bfloat16 suffices."""
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})
        self._dtype = dtype
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.ndim != 2:
                    raise ValueError(f"Muon: a tensor of shape {tuple(weight.shape)} is not a matrix: give it to AdamW")
                self.state[weight]["momentum"] = torch.zeros_like(weight)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update every matrix from its `.grad`; `closure` must be None."""
        for group in self.param_groups:
            for weights in _by_shape(group["params"]):
                self._update(weights, group)

    def _update(self, weights: list[Tensor], group: dict[str, Any]) -> None:
        momentum, rate = group["momentum"], group["lr"]
        buffers = [self.state[weight]["momentum"] for weight in weights]
        gradients = [weight.grad for weight in weights]
        torch._foreach_lerp_(buffers, gradients, 1 - momentum)
        nesterov_KMN = torch.stack(gradients).lerp_(torch.stack(buffers), momentum)
        updates = _shared(nesterov_KMN, self._dtype).unbind()
        rows, columns = weights[0].shape
        if group["weight_decay"]:
            torch._foreach_mul_(weights, 1 - rate * group["weight_decay"])
        torch._foreach_add_(weights, list(updates), alpha=-rate * max(1.0, rows / columns) ** 0.5)


def newton_schulz(x_KMN: Tensor, dtype: torch.dtype = torch.float32, steps: int = 5) -> Tensor:
    """Newton–Schulz orthogonalization of K matrices [M, N]: singular values move to about 0.7 … 1.2.

    >>> x_KMN = torch.randn(2, 4, 8, generator=torch.Generator().manual_seed(0))
    >>> singular = torch.linalg.svdvals(newton_schulz(x_KMN))
    >>> bool((singular > 0.5).all() and (singular < 1.3).all())
    True
    """
    a, b, c = NEWTON_SCHULZ
    tall = x_KMN.shape[1] > x_KMN.shape[2]
    x = (x_KMN.mT if tall else x_KMN).to(dtype)
    x = x / (x.flatten(1).norm(dim=1)[:, None, None] + 1e-7)
    for _ in range(steps):
        square = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(square, square, square, beta=b, alpha=c), x, beta=a)
    return (x.mT if tall else x).to(x_KMN.dtype)


def _shared(x_KMN: Tensor, dtype: torch.dtype) -> Tensor:
    """`newton_schulz` with the K matrices split among the processes and the results all-gathered."""
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return newton_schulz(x_KMN, dtype)
    world, count = dist.get_world_size(), len(x_KMN)
    share = -(-count // world)
    mine = x_KMN[dist.get_rank() * share:(dist.get_rank() + 1) * share]
    done = x_KMN.new_zeros((share, *x_KMN.shape[1:]), dtype=dtype)
    if len(mine):
        done[:len(mine)] = newton_schulz(mine, dtype)
    gathered = x_KMN.new_empty((world * share, *x_KMN.shape[1:]), dtype=dtype)
    gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor    # its name before torch 2.13
    gather(gathered, done)
    return gathered[:count].to(x_KMN.dtype)


def _by_shape(weights: Iterable[Tensor]) -> Iterator[list[Tensor]]:
    groups: dict[torch.Size, list[Tensor]] = defaultdict(list)
    for weight in weights:
        groups[weight.shape].append(weight)
    yield from groups.values()


@dataclass(frozen=True)
class Group:
    """Parameter group: tensors of one role with one optimizer."""

    role: str
    optimizer: str
    """"Muon" or "AdamW"."""
    lr: float
    """Peak learning rate."""
    weight_decay: float
    names: tuple[str, ...]


def groups(config: TrainConfig) -> tuple[Group, ...]:
    """Parameter groups of a run, one per role; each tensor is in exactly one.  Only matrices have weight decay.

    >>> from tinylib.config import PRESETS
    >>> [(group.role, group.optimizer, len(group.names)) for group in groups(TrainConfig(PRESETS["nano"]))]
    [('embedding', 'AdamW', 1), ('matrix', 'Muon', 24), ('unembedding', 'AdamW', 1)]
    """
    names: dict[str, list[str]] = defaultdict(list)
    for spec in config.model.tensors():
        names[spec.role].append(spec.name)
    width = (config.model.dim / 768) ** -0.5
    rates = {"embedding": config.embedding_lr * width, "unembedding": config.unembedding_lr * width,
             "tied": config.tied_lr * width, "matrix": config.matrix_lr}
    muon = {"matrix"} if config.matrix_optimizer == "muon" else set()
    return tuple(Group(role, "Muon" if role in muon else "AdamW", rates[role],
                       config.weight_decay if role == "matrix" else 0.0, tuple(members))
                 for role, members in names.items())


def learning_rate(step: int, config: TrainConfig) -> float:
    """Multiplier of all learning rates at `step`: linear warm-up, constant, linear warm-down towards zero.

    >>> config = TrainConfig(steps=10, warmup_fraction=0.2, warmdown_fraction=0.5)
    >>> [learning_rate(step, config) for step in range(10)]
    [0.5, 1.0, 1.0, 1.0, 1.0, 1.0, 0.8, 0.6, 0.4, 0.2]
    """
    warmup, warmdown = config.warmup_fraction * config.steps, config.warmdown_fraction * config.steps
    rise = (step + 1) / warmup if warmup else 1.0
    fall = (config.steps - step) / warmdown if warmdown else 1.0
    return min(1.0, rise, fall)


def muon_momentum(step: int, config: TrainConfig) -> float:
    """Momentum warm-up of Muon: from 0.85 linearly to `config.muon_momentum` in min(300, steps / 5) steps."""
    warmup = min(300, config.steps / 5)
    return 0.85 + (config.muon_momentum - 0.85) * min(1.0, step / warmup)


class Optimizer:
    """One optimizer per parameter group, with their schedule; the state is a flat dictionary of tensors."""

    def __init__(self, model: GPT, config: TrainConfig, dtype: torch.dtype = torch.float32) -> None:
        """`dtype` is the precision of Newton–Schulz; weights and state are float32."""
        self._config = config
        self._names = {weight: name for name, weight in model.named_parameters()}
        weights = dict(model.named_parameters())
        self._parts: list[tuple[torch.optim.Optimizer, Group]] = []
        for group in groups(config):
            self._parts.append((_make(group, [weights[name] for name in group.names], config, dtype), group))

    def step(self, step: int) -> float:
        """Update the weights with the learning rates of `step`; returns the multiplier of the rates."""
        multiplier = learning_rate(step, self._config)
        for optimizer, group in self._parts:
            settings = optimizer.param_groups[0]
            settings["lr"] = group.lr * multiplier
            if group.optimizer == "Muon":
                settings["momentum"] = muon_momentum(step, self._config)
            optimizer.step()
        if self._config.embedding_dtype == "bfloat16":
            wte = next(weight for weight, name in self._names.items() if name == "wte.weight")
            wte.data.copy_(wte.bfloat16())
        return multiplier

    def state(self) -> dict[str, Tensor]:
        """Optimizer state by name: "blocks.0.mlp.up.weight/momentum", "wte.weight/exp_avg" …"""
        return {f"{self._names[weight]}/{key}": value
                for optimizer, _ in self._parts for weight, values in optimizer.state.items()
                for key, value in values.items()}

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Copy in a state that `state` returned; raises UserError if a tensor is missing or has another shape."""
        own = self.state()
        wrong = [name for name in sorted(own) if name not in state or state[name].shape != own[name].shape]
        if wrong:
            raise UserError(f"optimizer state does not fit the model: {', '.join(wrong)} missing or of another shape: "
                            "resume with the model and matrix_optimizer of the checkpoint")
        for name, value in own.items():
            value.copy_(state[name])


def flat_gradient(model: GPT) -> Tensor:
    """One tensor for every gradient, in the order of the model, and the loss; each `.grad` is a view into it."""
    weights = list(model.parameters())
    flat = torch.zeros(sum(weight.numel() for weight in weights) + 1, device=weights[0].device)
    for weight, part in zip(weights, flat[:-1].split([weight.numel() for weight in weights]), strict=True):
        weight.grad = part.view_as(weight)
    return flat


class GradScaler:
    """Dynamic loss scaling for float16, whose smallest positive number is 6e-8.

    If gradients overflow, the scale is halved and the update skipped; after `patience` finite updates it doubles.
    bfloat16 and float32 have the exponent range to do without: for them the scale stays 1.

    Source: Micikevicius et al. 2018, https://arxiv.org/abs/1710.03740, section 3.2.

    >>> scale = GradScaler(torch.float16, first=4.0)
    >>> scale.update(finite=False), scale.value
    (False, 2.0)
    """

    def __init__(self, dtype: torch.dtype, first: float = 2.0**16, patience: int = 2000) -> None:
        self.scales = dtype == torch.float16
        self.value = first if self.scales else 1.0
        self.good = 0
        """Consecutive updates with finite gradients."""
        self._patience = patience

    def update(self, finite: bool) -> bool:
        """Adapt the scale to whether the gradients are finite; returns False if the update must be skipped.

        A scale of 1 can't be lowered: then the training is at fault, and the caller has to end it.
        """
        if not finite and self.value > 1.0:
            self.value, self.good = self.value / 2, 0
            return False
        self.good += 1
        if self.scales and self.good % self._patience == 0:
            self.value *= 2
        return True


def _make(group: Group, weights: list[Tensor], config: TrainConfig, dtype: torch.dtype) -> torch.optim.Optimizer:
    if group.optimizer == "Muon":
        return Muon(weights, lr=group.lr, momentum=config.muon_momentum, weight_decay=group.weight_decay, dtype=dtype)
    adamw = torch.optim.AdamW(weights, lr=group.lr, betas=config.adam_betas, eps=config.adam_eps,
                              weight_decay=group.weight_decay, fused=True)
    for weight in weights:    # AdamW creates its state at the first update, which float16 may skip before a checkpoint
        adamw.state[weight] = {"step": torch.zeros((), device=weight.device),
                               "exp_avg": torch.zeros_like(weight), "exp_avg_sq": torch.zeros_like(weight)}
    return adamw

"""Helpers that several test files share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from tinylib.config import ConfigError, GPTConfig
from tinylib.model import GPT


def randomised(config: GPTConfig, seed: int = 0, std: float | None = None) -> GPT:
    """A model without a zero weight, so that every path counts.

    Weights have standard deviation `std`.  None scales each by its fan-in, and the head five times as much, so that
    many logits are in the bend of the softcap.
    """
    with torch.device("meta"):
        model = GPT(config)
    model = model.to_empty(device="cpu")
    generator = torch.Generator().manual_seed(seed)
    for name, weight in model.named_parameters():
        gain = 5.0 if weight is model.unembedding else 1.0
        fan_in = 1 if name == "wte.weight" and not config.tied else weight.shape[1]
        scale = gain / fan_in**0.5 if std is None else std
        weight.data.uniform_(-1, 1, generator=generator).mul_(scale * 3**0.5)
    return model


def problems(function: Callable[..., Any], *arguments: Any, **keywords: Any) -> list[str]:
    """The problems in the ConfigError that a call must raise."""
    with pytest.raises(ConfigError) as error:
        function(*arguments, **keywords)
    return error.value.problems

"""Parity: every preset has the logits and gradients of `transformers.NanoChatForCausalLM` with the same weights."""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import replace

import psutil
import pytest
import torch
import torch.nn.functional as F
from helpers import randomised
from torch import Tensor
from transformers import NanoChatForCausalLM
from transformers.models.nanochat.modeling_nanochat import NanoChatRotaryEmbedding

from tinylib import sizing
from tinylib.config import PRESETS, GPTConfig
from tinylib.export import hf_config, hf_name, hf_state_dict
from tinylib.model import GPT

TOKENS = 2, 24
"""Sequences, and tokens of each: few, because the tables take most of the time and memory."""
LARGE = ("nanochat-d20", "nanochat-d26", "nanochat-d32")


def peer_of(model: GPT) -> NanoChatForCausalLM:
    """The model of `transformers` on the same memory, so that both together need 7.5 GB for d32."""
    config = hf_config(model.config)
    with torch.device("meta"):
        peer = NanoChatForCausalLM(config).eval()
    missing = peer.load_state_dict(hf_state_dict(model), strict=False, assign=True).missing_keys
    assert missing == (["lm_head.weight"] if model.config.tied else [])
    peer.tie_weights()
    peer.model.rotary_emb = NanoChatRotaryEmbedding(config)    # `meta` left nothing in its buffers
    assert not [name for name, tensor in (*peer.named_parameters(), *peer.named_buffers()) if tensor.is_meta]
    return peer


def compare(config: GPTConfig, shape: tuple[int, int] = TOKENS) -> None:
    """Logits agree to 1e-4 and gradients to 1e-3 of their norm; each of ours is freed once it is compared."""
    model = randomised(config, seed=config.dim)
    peer = peer_of(model)
    x_BT = torch.randint(config.vocab_size, shape, generator=torch.Generator().manual_seed(1))
    theirs, ours = peer(input_ids=x_BT).logits, model(x_BT).detach()
    assert ours.std() > 2 and ours.abs().max() > 0.8 * (config.softcap or 15), "the softcap must matter"
    assert (ours - theirs).abs().max() < 1e-4

    F.cross_entropy(theirs[:, :-1].flatten(0, 1), x_BT[:, 1:].flatten()).backward()
    differences: dict[str, float] = {}
    for name, weight in model.named_parameters():
        weight.register_post_accumulate_grad_hook(_comparing(name, peer.get_parameter(hf_name(name)), differences))
    model(x_BT[:, :-1], x_BT[:, 1:]).backward()
    assert differences.keys() == {spec.name for spec in config.tensors()}
    assert max(differences.values()) <= 1e-3, {name: value for name, value in differences.items() if value > 1e-3}


def _comparing(name: str, peer: Tensor, differences: dict[str, float]) -> Callable[[Tensor], None]:
    def compare_and_free(weight: Tensor) -> None:
        assert weight.grad is not None and peer.grad is not None and peer.grad.norm() > 0
        differences[name] = float((weight.grad - peer.grad).norm() / peer.grad.norm())
        weight.grad = None

    return compare_and_free


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("name", [name for name in PRESETS if name not in LARGE])
def test_a_preset_equals_transformers(name: str, tied: bool) -> None:
    compare(replace(PRESETS[name], tied=tied))


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("name", LARGE)
def test_a_large_preset_equals_transformers(name: str, tied: bool) -> None:
    config = replace(PRESETS[name], tied=tied)
    # Shared weights, the gradients of `transformers`, and the one table of ours whose gradient is being compared.
    gc.collect()
    needed = 4 * (2 * sizing.parameters(config).total + 2 * config.vocab_size * config.dim) + 1.5e9
    if psutil.virtual_memory().available < needed:
        pytest.skip(f"{name} needs {needed / 1e9:.1f} GB of free memory; this machine has "
                    f"{psutil.virtual_memory().total / 1e9:.1f} GB")
    compare(config)


@pytest.mark.parametrize("softcap", [15.0, 3.0, None])
@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
def test_the_whole_context_equals_transformers_with_any_softcap(tied: bool, softcap: float | None) -> None:
    config = replace(PRESETS["nano"], vocab_size=97, tied=tied, softcap=softcap)
    compare(config, (1, config.seq_len))

"""Configurations: presets, the table of tensors, validation, the JSON round trip."""

from __future__ import annotations

import dataclasses
import json
import random
import re

import pytest
from helpers import problems

from tinylib.config import PRESETS, ConfigError, GPTConfig, TrainConfig, from_dict, from_json, to_json


def test_presets_are_the_twelve_shapes():
    shapes = {name: (c.depth, c.dim, c.n_head, c.head_dim, c.vocab_size) for name, c in PRESETS.items()}
    assert shapes == {
        "goldilocks": (4, 512, 8, 64, 24_576), "extremist": (29, 192, 3, 64, 65_536),
        "conventional": (7, 384, 6, 64, 32_768), "conservative-25m": (3, 192, 2, 96, 65_536),
        "balanced-25m": (6, 384, 3, 128, 16_384), "efficient-25m": (7, 448, 4, 112, 8_192),
        "nanochat-d20": (20, 1280, 10, 128, 65_536), "nanochat-d26": (26, 1664, 13, 128, 65_536),
        "nanochat-d32": (32, 2048, 16, 128, 65_536), "nano": (4, 64, 1, 64, 3_072),
        "micro": (4, 128, 2, 64, 6_144), "mini": (4, 256, 4, 64, 12_288)}
    assert not any(config.tied for config in PRESETS.values())
    assert {config.seq_len for config in PRESETS.values()} == {2048}


@pytest.mark.parametrize("tied", [False, True])
def test_table_of_tensors(tied: bool):
    tensors = GPTConfig(depth=3, dim=128, vocab_size=1000, tied=tied).tensors()
    assert len({tensor.name for tensor in tensors}) == len(tensors) == 3 * 6 + (1 if tied else 2)
    tables = [(tensor.name, tensor.role) for tensor in tensors if tensor.role != "matrix"]
    assert tables == ([("wte.weight", "tied")] if tied else
                      [("wte.weight", "embedding"), ("lm_head.weight", "unembedding")])
    assert all(tensor.shape == (1000, 128) for tensor in tensors if tensor.role != "matrix")


def test_every_problem_of_a_model_is_named_at_once():
    found = problems(GPTConfig, depth=0, dim=-64, vocab_size=2.5, seq_len=True, rope_theta=float("nan"), softcap=0)
    assert [problem.split("=")[0] for problem in found] == \
        ["depth", "dim", "vocab_size", "seq_len", "rope_theta", "softcap"]
    assert all("use " in problem for problem in found)


def test_a_head_that_does_not_divide_the_width_gets_the_nearest_legal_values():
    with pytest.raises(ConfigError, match=r"dim=500 .* head_dim=64: use dim=448 or 512, or a head_dim that"):
        GPTConfig(dim=500)
    with pytest.raises(ConfigError, match=r"dim=30 .*: use dim=64, or a head_dim that divides 30, such as 30"):
        GPTConfig(dim=30)
    with pytest.raises(ConfigError, match=r"head_dim=63 .*use 62 or 64"):
        GPTConfig(dim=504, head_dim=63)


def test_every_problem_of_a_run_is_named_at_once():
    found = problems(TrainConfig, steps=0, device_batch_size=0, embedding_lr=-1, grad_clip=float("inf"),
                     warmdown_fraction=2, keep=0)
    assert sorted(problem.split("=")[0] for problem in found) == \
        ["device_batch_size", "embedding_lr", "grad_clip", "keep", "steps", "warmdown_fraction"]


@pytest.mark.parametrize(("change", "message"), [
    ({"device": "gpu"}, "device='gpu' is not a choice: use auto, cpu, cuda or mps"),
    ({"compile": True}, "compile=True is not a choice"), ({"seed": -1}, "seed=-1 is not a whole number of at least 0"),
    ({"adam_betas": (0.9,)}, "use (0.8, 0.95)"), ({"recompute": "yes"}, "recompute='yes' is not a choice"),
    ({"weight_decay": -1.0}, "weight_decay=-1.0 is not a number from 0 to 1: use 0"),
    ({"data": ""}, "data='' is not a folder's name"), ({"model": "nano"}, "use PRESETS[name] or GPTConfig"),
    ({"warmup_fraction": 0.5, "warmdown_fraction": 0.75}, "use 0.5 or less for the second")])
def test_every_field_of_a_run_has_its_rule(change, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        TrainConfig(**change)


def test_a_batch_that_does_not_divide_gets_the_nearest_legal_totals():
    with pytest.raises(ConfigError, match=r"total_batch_size=500000 .* use 458752, 524288 or 589824"):
        TrainConfig(total_batch_size=500_000)


def random_config(generator: random.Random) -> GPTConfig:
    head_dim = 2 * generator.randint(1, 64)
    return GPTConfig(generator.randint(1, 40), head_dim * generator.randint(1, 20), generator.randint(1, 200_000),
                     head_dim, generator.randint(1, 4096), generator.random() < 0.5, generator.uniform(1, 1e6),
                     generator.choice([None, 15.0, 30.0]))


def test_json_round_trip():
    generator = random.Random(0)
    for _ in range(50):
        model = random_config(generator)
        assert from_json(GPTConfig, to_json(model)) == model
        micro = model.seq_len * 4
        run = TrainConfig(model=model, total_batch_size=micro * generator.randint(1, 8), device_batch_size=4,
                          eval_every=generator.choice([None, 10]), grad_clip=generator.choice([None, 1.0]))
        assert from_json(TrainConfig, to_json(run)) == run
    assert set(json.loads(to_json(run))) == {field.name for field in dataclasses.fields(TrainConfig)}


def test_an_unknown_field_is_an_error_that_lists_the_known_ones():
    with pytest.raises(ConfigError, match=r"n_layer=4 is not a field: fields are depth, dim"):
        from_dict(GPTConfig, {"n_layer": 4})
    with pytest.raises(ConfigError, match=r"GPTConfig: width=3"):
        from_dict(TrainConfig, {"model": {"width": 3}})


def test_configurations_are_frozen_and_hashable():
    with pytest.raises(dataclasses.FrozenInstanceError):
        GPTConfig().depth = 5  # type: ignore[misc]
    assert len({GPTConfig(), GPTConfig(), GPTConfig(tied=True), TrainConfig(), TrainConfig()}) == 3

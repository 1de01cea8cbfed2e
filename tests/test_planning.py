"""The plan of a batch and of a run, against a published one."""

from __future__ import annotations

import random
import re
from dataclasses import replace

import pytest
from helpers import problems

from tinylib import sizing
from tinylib.config import PRESETS, ConfigError
from tinylib.hardware import ACCELERATORS

GOLDILOCKS, D32 = PRESETS["goldilocks"], PRESETS["nanochat-d32"]


def test_plan_batch_is_exact_or_names_the_nearest_totals():
    generator = random.Random(3)
    for _ in range(2000):
        batch, seq_len, world = (generator.randint(1, 12) for _ in range(3))
        total = generator.randint(1, 3000)
        micro = batch * seq_len * world
        try:
            steps = sizing.plan_batch(total, batch, seq_len, world)
        except ConfigError as error:
            named = [int(word) for word in re.findall(r"\d+", str(error).rsplit(": use ", 1)[1])]
            legal = sorted(range(micro, total + 4 * micro, micro), key=lambda value: abs(value - total))
            assert len(set(named)) == 3
            assert [abs(value - total) for value in sorted(named, key=lambda value: abs(value - total))] == \
                [abs(value - total) for value in legal[:3]]
            assert all(sizing.plan_batch(value, batch, seq_len, world) >= 1 for value in named)
        else:
            assert steps >= 1 and steps * micro == total


def test_plan_reproduces_nanochat_d32():
    plan = sizing.plan(D32, nproc_per_node=8, mfu=0.509, usd_per_device_hour=3)
    assert (plan.steps, plan.accumulation_steps, plan.tokens) == (71_680, 4, 37_580_963_840)
    assert plan.device_batch_size == 8 <= plan.largest_batch < 16    # as published: 8 fill 78 of 80 GB, 16 do not fit
    assert 65e9 < plan.memory.total < 78e9    # less than theirs, because our loss holds less
    assert plan.step_s - plan.communication_s == pytest.approx(1.572, rel=0.02)    # the published MFU is of whole steps
    assert plan.communication_s < 0.025 * plan.step_s
    assert plan.flops == pytest.approx(4.539628e20, rel=1e-5)
    assert plan.train_s == 71_680 * plan.step_s
    published = sizing.PUBLISHED["nanochat-d32"]
    assert 0.9 * published.usd < plan.cost_usd < published.usd    # which holds more than training
    assert 0.9 * published.hours < plan.train_s / 3600 < published.hours
    assert plan.mfu == pytest.approx(0.509, rel=0.03) and plan.mfu < 0.509
    assert plan.step_s * plan.mfu * 8 * 989e12 == pytest.approx(plan.flops / plan.steps)


def test_plan_of_goldilocks():
    plan = sizing.plan(GOLDILOCKS)
    assert (plan.tokens, plan.steps, plan.text_shards) == (754_974_720, 1440, 15)
    assert plan.characters == pytest.approx(3.62e9, rel=0.01) and plan.token_bytes == 2 * plan.tokens
    assert plan.table()["text shards"] == "15 (1.5 GB compressed)"
    assert plan.is_assumed and "assumed" in plan.table()["MFU"]
    assert "assumed" not in sizing.plan(GOLDILOCKS, mfu=0.3).table()["MFU"]
    large = sizing.plan(replace(PRESETS["nano"], vocab_size=65_537))
    assert large.token_bytes == 4 * large.tokens
    assert sizing.plan(PRESETS["nano"], tokens=1).steps == 1


@pytest.mark.parametrize(("vocab_size", "padded"), [(50_257, 50_304), (50_304, 50_304), (65, 128), (64, 64)])
def test_a_vocabulary_that_tensor_cores_dislike_is_named(vocab_size, padded):
    plan = sizing.plan(replace(PRESETS["nano"], vocab_size=vocab_size))
    assert plan.vocab_padded == padded
    assert plan.table().get("vocabulary", f"use {padded:,}").endswith(f"use {padded:,}")
    assert ("vocabulary" in plan.table()) == (vocab_size != padded)


def test_every_figure_has_a_name():
    figures = sizing.plan(GOLDILOCKS, nproc_per_node=8).figures()
    assert figures["steps"] == 1440 and figures["world_size"] == 8 and figures["memory"].total > 0
    assert {"config", "step_s", "train_s", "cost_usd", "mfu", "largest_batch", "communication_s"} < set(figures)


def test_the_micro_batch_is_the_largest_legal_one():
    for config in (GOLDILOCKS, PRESETS["nanochat-d20"], D32):
        for devices in (1, 2, 8):
            for recompute in (False, True):
                plan = sizing.plan(config, nproc_per_node=devices, recompute=recompute)
                shares = plan.total_batch_size // (config.seq_len * devices)
                legal = [size for size in range(1, shares + 1) if shares % size == 0 and size <= plan.largest_batch]
                assert plan.device_batch_size == max(legal)
                assert plan.memory.total <= plan.accelerator.memory_bytes
                assert plan.device_batch_size * devices * config.seq_len * plan.accumulation_steps == 524_288


def test_recomputing_saves_memory_and_costs_time():
    keeping, again = (sizing.plan(D32, nproc_per_node=8, device_batch_size=8, recompute=flag)
                      for flag in (False, True))
    assert again.memory.total < keeping.memory.total and again.flops == keeping.flops
    compute_s = [some.step_s - some.communication_s for some in (again, keeping)]
    assert 1.25 < compute_s[0] / compute_s[1] < 4 / 3
    assert again.mfu * again.step_s == pytest.approx(keeping.mfu * keeping.step_s)


def test_communication_comes_on_top_of_compute():
    one, eight = (sizing.plan(GOLDILOCKS, nproc_per_node=count) for count in (1, 8))
    assert one.communication_s == 0
    # 16 matrices of 512 × 512, and 4 each of 2,048 × 512 and 512 × 2,048: of these, eight processes gather eight.
    gradients, updates = 4 * 37_748_736, 2 * 512**2 * (16 + 2 * 4 * 8)    # float32 and bfloat16
    assert eight.communication_s == pytest.approx((2 * gradients + updates) * 7 / 8 / 450e9)
    nodes = sizing.plan(GOLDILOCKS, nproc_per_node=8, nnodes=4, mfu=1.0)
    updates = 2 * 512**2 * (32 + 2 * 4 * 32)
    assert nodes.world_size == 32
    assert nodes.communication_s == pytest.approx((2 * gradients + updates) * 31 / 32 / 400e9), "eight links a machine"
    lonely = sizing.plan(GOLDILOCKS, nproc_per_node=1, nnodes=2)
    assert lonely.communication_s == pytest.approx((2 * gradients + 2 * 12_582_912) / 2 / 50e9)
    ideal_s = sizing.flops_per_token(GOLDILOCKS) * 524_288 / (32 * 989e12)
    assert nodes.step_s == pytest.approx(ideal_s + nodes.communication_s)
    assert nodes.mfu == pytest.approx(ideal_s / nodes.step_s) and nodes.mfu < 0.8
    many = sizing.plan(GOLDILOCKS, nproc_per_node=8, nnodes=32)
    assert many.communication_s > many.step_s / 2, "an all-reduce takes as long for ever less compute"
    assert nodes.cost_usd == pytest.approx(nodes.train_s / 3600 * 32 * ACCELERATORS["H100"].usd_per_hour)


def test_the_table_of_hardware():
    table = sizing.plans(PRESETS["nanochat-d20"], nproc_per_node=8)
    assert list(table.index) == list(ACCELERATORS) and table["source of the peak"].str.len().min() > 10
    assert table.loc["H100", "hours"] == pytest.approx(sizing.plan(PRESETS["nanochat-d20"], nproc_per_node=8).train_s
                                                       / 3600)
    assert not table["micro-batch"].str.contains("recomputing").any()
    large = sizing.plans(D32, ["B200", "RTX 4090", "L40S"])
    assert large["micro-batch"].tolist()[1] == "does not fit" and large["hours"].isna().tolist() == [False, True, False]
    tight = sizing.plans(D32, ["H100"], device_batch_size=16)
    assert tight.loc["H100", "micro-batch"] == "16 (recomputing)"


def test_three_conventions_of_what_a_parameter_is():
    table = 12_582_912
    assert {name: sizing.token_budget(GOLDILOCKS, name) for name in sizing.BUDGETS} == \
        {"all": 20 * 3 * table, "blocks": 20 * table, "blocks+head": 11 * 2 * table}
    tied = replace(GOLDILOCKS, tied=True)
    assert sizing.token_budget(tied, "all") == 20 * 2 * table
    assert sizing.token_budget(tied, "blocks+head") == sizing.token_budget(GOLDILOCKS, "blocks+head")


def test_tiers_rise_and_the_published_runs_are_theirs():
    assert [tier.flops for tier in sizing.TIERS] == sorted(tier.flops for tier in sizing.TIERS)
    for tier in sizing.TIERS:
        spent = 20.0 * sizing.parameters(PRESETS[tier.example]).total * sizing.flops_per_token(PRESETS[tier.example])
        assert spent == pytest.approx(tier.flops, rel=0.03)
        assert tier.example in sizing.tier(spent) and sizing.tier(spent)[0] in "01"
    assert sizing.published().index.tolist() == [tier.example for tier in sizing.TIERS]


def test_bad_input_is_named_all_at_once_with_what_would_do():
    assert len(problems(sizing.plan_batch, 0, -1, 2.5, True)) == 4
    found = problems(sizing.plan, GOLDILOCKS, device="TPU", mfu=1.5, tokens=0, characters_per_token=0, budget="kaplan",
                     nproc_per_node=0, nnodes=1.5, usd_per_device_hour=-1)
    for field in ("device='TPU'", "mfu=1.5", "tokens=0", "characters_per_token=0", "budget='kaplan'",
                  "nproc_per_node=0", "nnodes=1.5", "usd_per_device_hour=-1"):
        assert any(problem.startswith(field) and ": use " in problem for problem in found), field
    assert "H100" in found[0] and "blocks+head" in found[1]
    total, size = problems(sizing.plan, GOLDILOCKS, total_batch_size=500_000, device_batch_size=999)
    assert ": use 2045952" in total and "use at most 462 or recompute" in size
    assert "use another device" in problems(sizing.plan, D32, device="RTX 4090")[0]
    assert [problem.split(" ")[0] for problem in problems(sizing.plans, GOLDILOCKS, ["TPU", "H100", "abacus"])] == \
        ["devices='TPU'", "devices='abacus'"]
    assert problems(sizing.token_budget, GOLDILOCKS, "kaplan") and problems(sizing.tier, 0)

"""Closed forms against the hand-made table, the table of tensors, PyTorch's own counters and a published run."""

from __future__ import annotations

import random
import subprocess
import sys
import time
from dataclasses import replace

import pytest

from tinylib import sizing
from tinylib.config import PRESETS, ConfigError, GPTConfig

# preset | L D N H V | wte | blocks | total | split % | total tied | FLOPs/token | tokens | training FLOPs
REFERENCE = """
goldilocks       |  4  512  8  64 24576 |  12582912 |   12582912 |   37748736 | 33.33 33.33 33.33 |   25165824 |   201326592 |  0.755B | 1.520e17
extremist        | 29  192  3  64 65536 |  12582912 |   12828672 |   37994496 | 33.12 33.76 33.12 |   25411584 |   289308672 |  0.760B | 2.198e17
conventional     |  7  384  6  64 32768 |  12582912 |   12386304 |   37552128 | 33.51 32.98 33.51 |   24969216 |   215875584 |  0.751B | 1.621e17
conservative-25m |  3  192  2  96 65536 |  12582912 |    1327104 |   26492928 | 47.50 5.01 47.50  |   13910016 |    97615872 |  0.530B | 5.172e16
balanced-25m     |  6  384  3 128 16384 |   6291456 |   10616832 |   23199744 | 27.12 45.76 27.12 |   16908288 |   158072832 |  0.464B | 7.334e16
efficient-25m    |  7  448  4 112  8192 |   3670016 |   16859136 |   24199168 | 15.17 69.67 15.17 |   20529152 |   200245248 |  0.484B | 9.692e16
nanochat-d20     | 20 1280 10 128 65536 |  83886080 |  393216000 |  560988160 | 14.95 70.09 14.95 |  477102080 |  3491758080 | 11.220B | 3.918e19
nanochat-d26     | 26 1664 13 128 65536 | 109051904 |  863895552 | 1081999360 | 10.08 79.84 10.08 |  972947456 |  6900940800 | 21.640B | 1.493e20
nanochat-d32     | 32 2048 16 128 65536 | 134217728 | 1610612736 | 1879048192 | 7.14 85.71 7.14   | 1744830464 | 12079595520 | 37.581B | 4.540e20
nano             |  4   64  1  64  3072 |    196608 |     196608 |     589824 | 33.33 33.33 33.33 |     393216 |     8650752 |     12M | 1.0e14
micro            |  4  128  2  64  6144 |    786432 |     786432 |    2359296 | 33.33 33.33 33.33 |    1572864 |    22020096 |     47M | 1.0e15
mini             |  4  256  4  64 12288 |   3145728 |    3145728 |    9437184 | 33.33 33.33 33.33 |    6291456 |    62914560 |  0.189B | 1.2e16
""".strip().splitlines()  # noqa: E501


@pytest.mark.parametrize("line", REFERENCE, ids=lambda line: line.split()[0])
def test_specifications_are_the_reference_digit_for_digit(line: str):
    name, shape, wte, blocks, total, split, tied, flops, tokens, training = (part.strip() for part in line.split("|"))
    sheet = sizing.specifications().loc[name]
    assert sheet[["depth", "dim", "n_head", "head_dim", "vocab_size"]].tolist() == [int(word) for word in shape.split()]
    assert (sheet.wte, sheet.lm_head, sheet.blocks) == (int(wte), int(wte), int(blocks))
    assert (sheet.total, sheet.total_tied, sheet.flops_per_token) == (int(total), int(tied), int(flops))
    percents = sheet[["wte_percent", "blocks_percent", "lm_head_percent"]]
    assert [f"{percent:.2f}" for percent in percents] == split.split()
    assert tokens == (f"{sheet.tokens / 1e9:.3f}B" if tokens.endswith("B") else f"{sheet.tokens / 1e6:.0f}M")
    decimals = len(training.split("e")[0].split(".")[1])
    assert training == f"{sheet.training_flops:.{decimals}e}".replace("e+", "e")


def test_specifications_hold_exactly_the_presets():
    assert sizing.specifications().index.tolist() == list(PRESETS) == [line.split()[0] for line in REFERENCE]


def random_config(generator: random.Random, tied: bool) -> GPTConfig:
    head_dim = generator.choice([2, 16, 64, 96, 128])
    return GPTConfig(generator.randint(1, 48), head_dim * generator.randint(1, 24), generator.randint(1, 300_000),
                     head_dim, generator.randint(1, 8192), tied)


@pytest.mark.parametrize("tied", [False, True])
def test_closed_form_is_the_sum_of_the_tensors(tied: bool):
    generator = random.Random(tied)
    for _ in range(300):
        config = random_config(generator, tied)
        count, tensors = sizing.parameters(config), config.tensors()
        sums = {role: sum(tensor.size for tensor in tensors if tensor.role == role)
                for role in ("embedding", "unembedding", "tied", "matrix")}
        assert count.total == count.wte + count.blocks + count.lm_head == sum(sums.values())
        assert (count.wte, count.lm_head) == (sums["embedding"] + sums["tied"], sums["unembedding"])
        assert (count.blocks, count.per_layer * config.depth) == (sums["matrix"], sums["matrix"])
        other = sizing.parameters(replace(config, tied=not tied))
        assert (count.total_tied, count.total_untied) == (other.total_tied, other.total_untied)
        assert other.total == (count.total_untied if tied else count.total_tied)
        assert sum(count.split.values()) == pytest.approx(100)


def test_balanced_family():
    for depth, dim in ((4, 64), (4, 512), (16, 256), (64, 128), (1, 1024)):
        config = sizing.balanced(depth, dim)
        assert sizing.parameters(config).split == dict.fromkeys(("wte", "blocks", "lm_head"), 100 / 3)
        assert sizing.parameters(config).total == 36 * depth * dim**2
    for name in ("goldilocks", "mini", "micro", "nano"):  # tied and grown back to the same size: twice the depth
        config = PRESETS[name]
        assert sizing.parameters(replace(config, depth=8, tied=True)).total == sizing.parameters(config).total


def test_tying_saves_a_table_and_no_flops():
    generator = random.Random(2)
    for _ in range(50):
        untied = random_config(generator, tied=False)
        tied = replace(untied, tied=True)
        saved = sizing.parameters(untied).total - sizing.parameters(tied).total
        assert saved == untied.vocab_size * untied.dim
        for convention in ("palm", "causal"):
            assert sizing.flops_per_token(tied, convention=convention) == \
                sizing.flops_per_token(untied, convention=convention)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("tokens", [16, 80])
def test_flops_equal_pytorch_s_counter(tied: bool, tokens: int):
    torch = pytest.importorskip("torch")
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    from tinylib.model import GPT

    config = GPTConfig(depth=3, dim=64, vocab_size=500, head_dim=32, seq_len=tokens, tied=tied)
    x_BT = torch.randint(config.vocab_size, (2, tokens))
    model = GPT(config)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(x_BT).square().mean().backward()
    assert counter.get_total_flops() == 2 * tokens * sizing.flops_per_token(config)
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(x_BT)
    assert counter.get_total_flops() == 2 * sizing.prefill_flops(config)


def test_causal_convention_counts_every_pair_that_attends():
    config = GPTConfig(depth=2, dim=64, vocab_size=100)
    pairs = sum(1 for query in range(37) for key in range(37) if key <= query)
    attention = 2 * 2 * config.depth * config.dim * pairs  # two products of 2·D FLOPs for each pair in each layer
    matrices = 2 * 37 * (sizing.parameters(config).blocks + sizing.parameters(config).lm_head)
    assert sizing.prefill_flops(config, 37, "causal") == matrices + attention
    decoded = sum(sizing.decode_flops(config, context) for context in range(1, 38))
    assert decoded == sizing.prefill_flops(config, 37, "causal")


def measured_peak(config: GPTConfig, batch_size: int) -> int:
    """Bytes of all tensors at the peak of the second micro-batch of a step, gradients of the first in place."""
    import torch
    from torch._subclasses import FakeTensorMode
    from torch.distributed._tools.mem_tracker import MemTracker

    from tinylib.model import GPT

    tracker = MemTracker()
    with FakeTensorMode(), tracker:  # shapes and lifetimes without the arithmetic
        model = GPT(config)
        tracker.track_external(model)
        x_BT = torch.zeros(batch_size, config.seq_len, dtype=torch.long)
        model(x_BT, x_BT).backward()
        tracker.reset_mod_stats()
        model(x_BT, x_BT).backward()
    return tracker.get_tracker_snapshot("peak")[torch.device("cpu")]["Total"]


@pytest.mark.parametrize(("config", "batch_size"), [
    (GPTConfig(4, 128, 6144, seq_len=256), 8), (GPTConfig(4, 128, 6144, seq_len=256, tied=True), 8),
    (GPTConfig(6, 64, 1024, seq_len=128), 16), (GPTConfig(2, 256, 2048, head_dim=128, seq_len=512), 2)], ids=str)
def test_memory_is_what_a_tracker_of_tensors_sees(config: GPTConfig, batch_size: int):
    pytest.importorskip("torch")
    memory = sizing.memory(config, batch_size)
    assert memory.total - memory.optimizer == pytest.approx(measured_peak(config, batch_size), rel=0.15)


def test_activations_are_what_autograd_keeps():
    torch = pytest.importorskip("torch")
    from tinylib.model import GPT

    for config in (GPTConfig(1, 128, 8, seq_len=64), GPTConfig(3, 128, 8, head_dim=32, seq_len=64)):
        model, kept = GPT(config), {}
        weights = {weight.untyped_storage().data_ptr() for weight in model.parameters()}

        def pack(tensor: torch.Tensor, kept: dict = kept, weights: set = weights) -> torch.Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in weights:
                kept[storage.data_ptr()] = storage.nbytes()
            return tensor

        x_BT = torch.zeros(4, 64, dtype=torch.long)
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            model(x_BT, x_BT)
        assert sum(kept.values()) == pytest.approx(sizing.activation_bytes(config, 4), rel=0.02)


def test_bytes():
    goldilocks = PRESETS["goldilocks"]
    assert sizing.weight_bytes(goldilocks) == 150_994_944
    assert sizing.optimizer_bytes(goldilocks) == 4 * (2 * 2 * 12_582_912 + 12_582_912)
    assert sizing.optimizer_bytes(replace(goldilocks, tied=True)) == 4 * (2 * 12_582_912 + 12_582_912)
    assert sizing.kv_cache_bytes(goldilocks, batch_size=3, context=100, bytes_per_value=2) == 2 * 4 * 3 * 100 * 512 * 2


def test_plan_batch_is_exact_or_names_the_nearest_totals():
    generator = random.Random(3)
    for _ in range(2000):
        batch, seq_len, world = (generator.randint(1, 12) for _ in range(3))
        total = generator.randint(1, 3000)
        micro = batch * seq_len * world
        try:
            steps = sizing.plan_batch(total, batch, seq_len, world)
        except ConfigError as error:
            named = [int(word) for word in str(error).rsplit(": ", 1)[1].split(", ")]
            legal = sorted(range(micro, total + 4 * micro, micro), key=lambda value: abs(value - total))
            assert len(set(named)) == 3
            assert [abs(value - total) for value in sorted(named, key=lambda value: abs(value - total))] == \
                [abs(value - total) for value in legal[:3]]
            assert all(sizing.plan_batch(value, batch, seq_len, world) >= 1 for value in named)
        else:
            assert steps >= 1 and steps * micro == total


def test_plan_reproduces_nanochat_d32():
    plan = sizing.plan(PRESETS["nanochat-d32"], device_batch_size=8, world_size=8, mfu=0.509)
    assert (plan.steps, plan.accumulation_steps, plan.tokens) == (71_680, 4, 37_580_963_840)
    assert plan.step_s == pytest.approx(1.572, rel=0.02)
    assert plan.flops == pytest.approx(4.539628e20, rel=1e-5)
    assert plan.train_s == pytest.approx(71_680 * 1.572, rel=0.02)
    assert 0.9 * 800 < plan.cost_usd < 800  # the published 800 $ hold more than training
    assert plan.step_s * plan.mfu * 8 * 989e12 == pytest.approx(plan.flops / plan.steps)


def test_plan_of_goldilocks():
    plan = sizing.plan(PRESETS["goldilocks"])
    assert (plan.tokens, plan.steps, plan.text_shards) == (754_974_720, 1440, 15)
    assert plan.characters == pytest.approx(3.62e9, rel=0.01) and plan.download_bytes == 1.5e9
    assert plan.token_bytes == 2 * plan.tokens
    assert plan.mfu_is_assumed and "assumed" in plan.table()["MFU"]
    assert "assumed" not in sizing.plan(PRESETS["goldilocks"], mfu=0.3).table()["MFU"]
    assert sizing.plan(replace(PRESETS["nano"], vocab_size=65_537)).token_bytes == \
        4 * sizing.plan(replace(PRESETS["nano"], vocab_size=65_537)).tokens
    assert sizing.plan(PRESETS["nano"], tokens=1).steps == 1


def test_three_conventions_of_what_a_parameter_is():
    goldilocks, table = PRESETS["goldilocks"], 12_582_912
    assert {name: sizing.token_budget(goldilocks, name) for name in sizing.BUDGETS} == \
        {"all": 20 * 3 * table, "blocks": 20 * table, "blocks+head": 11 * 2 * table}
    tied = replace(goldilocks, tied=True)
    assert sizing.token_budget(tied, "all") == 20 * 2 * table
    assert sizing.token_budget(tied, "blocks+head") == sizing.token_budget(goldilocks, "blocks+head")


def test_search_finds_the_three_by_itself():
    found = sizing.search()
    assert found.preset[0] == "goldilocks"
    named = found.set_index("preset")[["depth", "dim", "vocab_size", "per_layer", "off_percent"]]
    expected = {"extremist": (442_368, 0.01), "goldilocks": (3_145_728, 0.66), "conventional": (1_769_472, 1.18)}
    for name, (per_layer, off) in expected.items():
        assert named.loc[name, "per_layer"] == per_layer
        assert round(abs(named.loc[name, "off_percent"]), 2) == off
        assert tuple(named.loc[name, ["depth", "dim", "vocab_size"]]) == \
            (PRESETS[name].depth, PRESETS[name].dim, PRESETS[name].vocab_size)
        assert found.index[found.preset == name][0] < 10


def test_search_lists_every_exact_third_of_the_goldilocks_size():
    found = sizing.search(min_depth=1)
    exact = found[(found.imbalance == 0) & (found.total == 37_748_736)]
    assert set(zip(exact.depth, exact.dim, exact.vocab_size, strict=True)) == \
        {(1, 1024, 12_288), (4, 512, 24_576), (16, 256, 49_152), (64, 128, 98_304)}


@pytest.mark.parametrize("tied", [False, True])
def test_search_equals_counting_one_by_one(tied: bool):
    arguments = {"total": 2e6, "head_dim": 32, "vocab_sizes": range(500, 9000, 500), "max_depth": 12, "tied": tied}
    found = sizing.search(**arguments, tolerance=0.03)
    by_hand = {}
    for depth in range(3, 13):
        for dim in range(32, 2000, 32):
            for vocab_size in arguments["vocab_sizes"]:
                config = GPTConfig(depth, dim, vocab_size, 32, tied=tied)
                if abs(sizing.parameters(config).total - 2e6) <= 0.03 * 2e6:
                    by_hand[depth, dim, vocab_size] = config
    assert set(zip(found.depth, found.dim, found.vocab_size, strict=True)) == set(by_hand) and len(by_hand) > 20
    for row in found.itertuples():
        config = by_hand[row.depth, row.dim, row.vocab_size]
        count = sizing.parameters(config)
        assert (row.wte, row.blocks, row.lm_head, row.total, row.total_tied) == \
            (count.wte, count.blocks, count.lm_head, count.total, count.total_tied)
        assert (row.per_layer, row.flops_per_token) == (count.per_layer, sizing.flops_per_token(config))
        assert row.imbalance == pytest.approx(abs(count.split["blocks"] - (50 if tied else 100 / 3)))
    assert found.imbalance.is_monotonic_increasing


def test_search_takes_another_split():
    best = sizing.search(blocks_percent=70).iloc[0]
    assert best.blocks_percent == pytest.approx(70, abs=1)


def test_a_million_shapes_in_two_seconds():
    vocab_sizes = range(256, 131_073, 128)
    assert len(vocab_sizes) * 62 * (1016 // 64) > 0.9e6
    start_s = time.process_time()
    sizing.search(vocab_sizes=vocab_sizes)
    assert time.process_time() - start_s < 2


def problems(function, *arguments, **keywords) -> list[str]:
    with pytest.raises(ConfigError) as error:
        function(*arguments, **keywords)
    return error.value.problems


def test_bad_input_is_named_all_at_once():
    goldilocks = PRESETS["goldilocks"]
    assert len(problems(sizing.plan_batch, 0, -1, 2.5, True)) == 4
    found = problems(sizing.search, total=-1, head_dim=7, vocab_sizes=[0], min_depth=0, max_depth=-1,
                     blocks_percent=100)
    for field in ("total=-1", "head_dim=7", "vocab_sizes[0]=0", "min_depth=0", "max_depth=-1", "blocks_percent=100"):
        assert any(problem.startswith(field) for problem in found), field
    assert "use 6 or 8" in " ".join(found)
    assert len(problems(sizing.plan, goldilocks, device="TPU", mfu=1.5, tokens=0, characters_per_token=0)) == 4
    assert "H100" in problems(sizing.plan, goldilocks, device="TPU")[0]
    assert "blocks+head" in problems(sizing.token_budget, goldilocks, "kaplan")[0]
    assert "palm" in problems(sizing.flops_per_token, goldilocks, convention="exact")[0]
    assert "context=0" in problems(sizing.kv_cache_bytes, goldilocks, context=0)[0]
    assert "batch_size=0" in problems(sizing.memory, goldilocks, 0)[0]


def test_a_search_without_result_names_the_nearest_size():
    message = problems(sizing.search, total=1000)[0]
    nearest = int(message.split("holds ")[1].split(":")[0])
    assert nearest == sizing.parameters(GPTConfig(3, 64, 4096)).total
    assert (sizing.search(total=nearest).total == nearest).any()


def test_sizing_works_without_torch():
    code = ("import sys; sys.modules['torch'] = None\nfrom tinylib import sizing\n"
            "from tinylib.config import PRESETS\n"
            "assert sizing.search().preset[0] == 'goldilocks'\n"
            "sizing.plan(PRESETS['nanochat-d32']).table(), sizing.specifications()\n"
            "sizing.memory(PRESETS['nano'], 1)\n")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr

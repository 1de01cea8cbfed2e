"""Closed forms against the hand-made table, the table of tensors, PyTorch's own counters."""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers import problems
from torch.utils.flop_counter import FlopCounterMode

from tinylib import sizing
from tinylib.config import PRESETS, GPTConfig
from tinylib.optim import newton_schulz

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


@pytest.mark.parametrize("tied", [False, True])
def test_the_sheet_of_many_shapes_is_that_of_each(tied: bool):
    generator = random.Random(tied)
    configs = [replace(random_config(generator, tied), seq_len=512) for _ in range(50)]
    for head_dim in {config.head_dim for config in configs}:
        some = [config for config in configs if config.head_dim == head_dim]
        columns = [np.array([getattr(config, field) for config in some]) for field in ("depth", "dim", "vocab_size")]
        many = sizing.sheet(sizing.Shapes(*columns, head_dim, 512, tied), batch_size=3)
        for nth, config in enumerate(some):
            one = sizing.sheet(config, batch_size=3)
            assert one == {name: np.broadcast_to(figures, len(some))[nth] for name, figures in many.items()}
            assert one["optimizer_bytes"] == 4 * sum((1 if tensor.role == "matrix" else 2) * tensor.size
                                                     for tensor in config.tensors())


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

    from tinylib.model import GPT

    config = GPTConfig(depth=3, dim=64, vocab_size=500, head_dim=32, seq_len=tokens, tied=tied)
    x_BT = torch.randint(config.vocab_size, (2, tokens))
    model = GPT(config)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(x_BT).square().mean().backward()
    assert counter.get_total_flops() == 2 * tokens * sizing.flops_per_token(config)
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(x_BT)
    assert counter.get_total_flops() == 2 * sizing.sheet(config)["prefill_flops"]


def test_causal_convention_counts_every_pair_that_attends():
    config = GPTConfig(depth=2, dim=64, vocab_size=100)
    pairs = sum(1 for query in range(37) for key in range(37) if key <= query)
    attention = 2 * 2 * config.depth * config.dim * pairs  # two products of 2·D FLOPs for each pair in each layer
    matrices = 2 * 37 * (sizing.parameters(config).blocks + sizing.parameters(config).lm_head)
    assert 37 * sizing.flops_by_part(config, 37, "causal").forward == matrices + attention
    assert sum(sizing.decode_flops(config, context) for context in range(1, 38)) == matrices + attention


def test_bad_input_is_named_all_at_once():
    goldilocks = PRESETS["goldilocks"]
    assert "palm" in problems(sizing.flops_per_token, goldilocks, convention="exact")[0]
    assert "context=0" in problems(sizing.decode_flops, goldilocks, context=0)[0]
    assert "batch_size=0" in problems(sizing.memory, goldilocks, 0)[0]


@pytest.mark.parametrize("tied", [False, True])
def test_the_operations_of_a_step_have_the_flops_of_the_formula(tied: bool):
    config = GPTConfig(depth=3, dim=96, vocab_size=1000, head_dim=32, seq_len=64, tied=tied)
    table, token = sizing.operations(config, batch_size=5), sizing.flops_by_part(config)
    products = table["flops"].filter(regex="query|MLP|head")
    assert products.sum() == 3 * 5 * 64 * (token.blocks + token.lm_head)
    assert table.loc["attention", "flops"] == 3.5 / 2 * 5 * 64 * token.attention    # the causal half, scores again
    weights = sizing.weight_bytes(config) - 4 * 12 * 3 * 96**2
    assert table.loc["AdamW", "bytes"] == 7 * weights
    assert (table["bytes"] > 0).all()


def test_newton_schulz_has_the_flops_that_are_counted():
    config = GPTConfig(depth=2, dim=64, vocab_size=300, head_dim=32, seq_len=16)
    with FlopCounterMode(display=False) as counter:
        for spec in config.tensors():
            if spec.role == "matrix":
                newton_schulz(torch.ones(1, *spec.shape))
    assert counter.get_total_flops() == sizing.operations(config, 1).loc["Muon", "flops"]

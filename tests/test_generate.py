"""Sampling: with a KV cache as without, in batches as alone, and by the filters of `transformers`."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers import randomised
from transformers import AutoModelForCausalLM
from transformers.generation import (
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from tinylib import checkpoint
from tinylib.checks import ConfigError
from tinylib.export import export_transformers
from tinylib.generate import Engine, Request, candidates, generate, generate_batch, generate_ids, sample
from tinylib.sampling import Sampling
from tinylib.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def tokenizer(tiny_shards) -> Tokenizer:
    return Tokenizer.load(tiny_shards / "tokenizer")


@pytest.fixture
def model(tiny):
    return randomised(tiny.model, std=0.3).eval()


def test_generation_with_a_cache_is_generation_without(model) -> None:
    cached = list(generate_ids(model, [5, 6, 7], max_tokens=29, temperature=0))
    ids = [5, 6, 7]
    for _ in range(29):
        ids.append(int(model(torch.tensor([ids]))[0, -1].argmax()))
    assert cached == ids[3:]
    assert len(list(generate_ids(model, [5], max_tokens=100))) == 100, "sampling continues past the context"


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_logits_of_a_batch_of_different_lengths_are_those_of_full_passes(tiny, tied, dtype) -> None:
    """In half precision both are rounded, so the step may be as far from float32 as a full pass is."""
    exact = randomised(replace(tiny.model, tied=tied), std=0.3).eval()
    model = copy.deepcopy(exact).to(dtype)
    model.dtype = dtype
    batch, generator, seen = Engine(model), torch.Generator().manual_seed(0), []
    for size in (1, 9, 4, 17, 9):
        batch.add(torch.randint(300, (size,), generator=generator).tolist(), Sampling(temperature=0, max_tokens=8))
    next_logits = batch._next_logits
    batch._next_logits = lambda *what: seen.append(next_logits(*what)) or seen[-1]
    for _ in range(8):
        batch.step()
    apart, rounding = [], []
    for row, request in enumerate(batch.requests):
        with torch.no_grad():
            expected, whole = (some(torch.tensor([request.ids]))[0, request.prompt - 1:-1] for some in (exact, model))
        apart.append(torch.stack([logits_BV[row] for logits_BV in seen]) - expected)
        rounding.append(whole - expected)
    assert torch.cat(apart).abs().max() < max(1e-4, 1.3 * torch.cat(rounding).abs().max())


def test_rows_join_and_leave_and_get_the_ids_that_they_get_alone(model) -> None:
    chosen = [Sampling(max_tokens=20, temperature=0), Sampling(max_tokens=45, seed=3, top_k=7),
              Sampling(max_tokens=11, seed=4, top_p=0.7, top_k=None), Sampling(max_tokens=30, seed=5, min_p=0.1),
              Sampling(max_tokens=25, temperature=1.5, seed=6, repetition_penalty=1.3)]
    prompts = [[1], [2, 3, 4, 5, 6, 7, 8], list(range(40)), [9, 9], list(range(50, 62))]
    alone = [list(generate_ids(model, ids, **vars(how))) for ids, how in zip(prompts, chosen, strict=True)]
    batch, waiting, done = Engine(model, max_rows=3), [4, 3, 2, 1, 0], {}
    numbers = {}
    while waiting or batch.requests:
        while waiting and len(batch.requests) < 3:
            number = waiting.pop()
            numbers[batch.add(prompts[number], chosen[number])] = number
        batch.step()
        for request in [request for request in batch.requests if request.finished]:
            done[numbers[request]] = request.ids[request.prompt:]
            batch.remove(request)
    assert [done[number] for number in range(5)] == alone
    with pytest.raises(ConfigError, match="max_rows=1 requests are there: remove one first"):
        (full := Engine(model, 1)).add([1], chosen[0]), full.add([1], chosen[0])
    with pytest.raises(ConfigError, match="start from at least one id"):
        Engine(model).add([], chosen[0])


@pytest.mark.parametrize("how", [
    Sampling(temperature=0.7, top_k=None), Sampling(temperature=1.3, top_k=5), Sampling(top_k=None, top_p=0.8),
    Sampling(top_k=None, min_p=0.2), Sampling(temperature=2.0, top_k=30, top_p=0.9, min_p=0.05),
    Sampling(top_k=3, top_p=0.01)])
def test_filters_keep_what_those_of_transformers_keep(how) -> None:
    logits_BV = torch.randn(20, 50, generator=torch.Generator().manual_seed(0)) * 2
    theirs = TemperatureLogitsWarper(how.temperature)(None, logits_BV)
    for used, warper in ((how.top_k, lambda: TopKLogitsWarper(how.top_k)), (how.top_p < 1, lambda: TopPLogitsWarper(
            how.top_p)), (how.min_p, lambda: MinPLogitsWarper(how.min_p))):
        theirs = warper()(None, theirs) if used else theirs
    for logits_V, expected_V in zip(logits_BV, theirs.softmax(-1), strict=True):
        ids, probability_K = candidates(logits_V, how)
        assert torch.allclose(torch.zeros(50).index_copy(0, ids, probability_K), expected_V, atol=1e-6)


@pytest.mark.parametrize("top_k", [1, 2, 5])
def test_top_k_samples_from_exactly_k_ids_though_their_logits_tie(top_k: int) -> None:
    ids, probability_K = candidates(torch.tensor([0.0, 3.0, 3.0, 3.0, 3.0, 1.0]), Sampling(top_k=top_k))
    assert len(ids) == top_k and set(ids.tolist()) <= {1, 2, 3, 4, 5} and (probability_K > 0).all()


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("penalty", [1.0, 1.4])
def test_greedy_text_is_that_of_transformers(tiny, tmp_path, tokenizer, tied, penalty) -> None:
    model = randomised(replace(tiny.model, tied=tied), std=0.3).eval()
    checkpoint.save(tmp_path / "step", model, tokenizer=Path(tiny.data) / "tokenizer")
    theirs = AutoModelForCausalLM.from_pretrained(export_transformers(tmp_path / "step", tmp_path / "hub"))
    for prompt in ("", "Return the", "größe"):
        ids = torch.tensor([[tokenizer.bos, *tokenizer.encode(prompt)]])
        expected = theirs.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=20,
                                   eos_token_id=None, repetition_penalty=penalty)[0, ids.shape[1]:].tolist()
        assert list(generate_ids(model, ids[0].tolist(), max_tokens=20, temperature=0,
                                 repetition_penalty=penalty)) == expected


def test_the_penalty_is_that_of_transformers() -> None:
    logits_V, seen = torch.tensor([2.0, -1.0, 1.0, 0.5]), [0, 1, 1]
    expected = RepetitionPenaltyLogitsProcessor(2.0)(torch.tensor([seen]), logits_V[None].clone())[0].argmax()
    request = Request(seen, Sampling(temperature=0, repetition_penalty=2.0), 3, torch.Generator())
    assert sample(logits_V, request) == expected


def text_of(model, tokenizer, ids: list[int], monkeypatch, **sampling) -> list[str]:
    """The pieces of text where the model gives these ids."""
    script = iter(ids)
    monkeypatch.setattr("tinylib.generate.sample", lambda logits_V, request: torch.tensor(next(script)))
    return list(generate(model, tokenizer, "Return", **sampling))


def test_characters_that_tokens_split_come_out_whole(model, tokenizer, monkeypatch) -> None:
    ids = list("a größe 語🎈!".encode())    # the first 256 ids are the bytes
    assert tokenizer.decode(ids) == "a größe 語🎈!"
    pieces = text_of(model, tokenizer, ids, monkeypatch, max_tokens=len(ids))
    assert "".join(pieces) == "a größe 語🎈!" and "\ufffd" not in "".join(pieces)
    cut = ids[:-2]    # in the middle of the last character
    assert "".join(text_of(model, tokenizer, cut, monkeypatch, max_tokens=len(cut))).endswith("語\ufffd")


@pytest.mark.parametrize("stop, expected", [
    (("größe",), "Return a "), (("zz", "a g"), "Return "), ((" grö", "größ"), "Return a"), (("nothing",), "all")])
def test_text_ends_before_a_stop_string(model, tokenizer, monkeypatch, stop, expected) -> None:
    text = "Return a größe and more"
    ids = [token for character in text for token in tokenizer.encode(character)]
    pieces = text_of(model, tokenizer, ids, monkeypatch, max_tokens=len(ids), stop=stop)
    assert "".join(pieces) == (text if expected == "all" else expected)


def test_text_ends_with_the_document(model, tokenizer, monkeypatch) -> None:
    ids = [*tokenizer.encode("one"), tokenizer.bos, *tokenizer.encode("two")]
    assert "".join(text_of(model, tokenizer, ids, monkeypatch, max_tokens=9, stop=("es",))) == "one"


def test_prompts_of_any_length_and_seeds(model, tokenizer) -> None:
    for prompt in ("", "a", "the sum of a list of names " * 9):
        text = "".join(generate(model, tokenizer, prompt, max_tokens=20, seed=4))
        assert text == "".join(generate(model, tokenizer, prompt, max_tokens=20, seed=4))
    assert "".join(generate(model, tokenizer, "a", max_tokens=0)) == ""
    chosen = [Sampling(max_tokens=30, seed=seed) for seed in range(5)]
    texts = [""] * 5
    for index, piece in generate_batch(model, tokenizer, ["Return"] * 5, chosen, max_rows=2):
        texts[index] += piece
    assert texts == ["".join(generate(model, tokenizer, "Return", max_tokens=30, seed=seed)) for seed in range(5)]
    assert len(set(texts)) > 1


@pytest.mark.parametrize("wrong, message", [
    ({"temperature": -1}, "temperature=-1"), ({"top_p": 0}, "top_p=0"), ({"top_k": 0}, "top_k=0"),
    ({"min_p": 1.5}, "min_p=1.5"), ({"repetition_penalty": 0}, "repetition_penalty=0"), ({"stop": ("",)}, "stop="),
    ({"max_tokens": -1}, "max_tokens=-1"), ({"temperature": float("nan")}, "temperature=nan")])
def test_a_filter_out_of_range_is_named(wrong, message) -> None:
    with pytest.raises(ConfigError, match=message):
        Sampling(**wrong)

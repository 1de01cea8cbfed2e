"""The report: counts by hand, costs by sizing's own formula, the cheapest vocabulary by an optimizer of scipy."""

from __future__ import annotations

import base64
import hashlib
import inspect
import json
import re
import socket
import unicodedata
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiktoken
import tiktoken.load
import tiktoken.registry
from scipy.optimize import minimize_scalar
from tiktoken_ext import openai_public

from tinylib import sizing
from tinylib.config import PRESETS
from tinylib.course.samples import ARTICLE_1, kinds
from tinylib.tokenizer import Curve, Tokenizer, by_kind, compression, curve, known_encodings, report
from tinylib.tokenizer.report import _ENCODINGS

TEXTS = [f"Line {n} says that {n} squared is {n * n}, which is {'even' if n % 2 == 0 else 'odd'}." for n in range(400)]
MICRO = PRESETS["micro"]


@pytest.fixture(scope="module")
def trained() -> Tokenizer:
    return Tokenizer.train(TEXTS, vocab_size=380)


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    """tiktoken with an empty cache of its own, and with nothing remembered."""
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(tiktoken.registry, "ENCODINGS", {})
    return tmp_path


def test_compression_counts_by_hand(trained):
    texts = ["the that", "", "héé"]
    found = compression(trained, texts)
    tokens = sum(len(trained.encode(text)) for text in texts)
    assert found == {"documents": 3, "characters": 11, "bytes": 13, "tokens": tokens,
                     "characters_per_token": 11 / tokens, "bytes_per_token": 13 / tokens}
    assert compression(trained, [])["tokens"] == 0


def test_truncating_equals_a_shorter_training(trained):
    for size in (265, 266, 300, 380):
        assert trained.truncate(size).fingerprint == Tokenizer.train(TEXTS, size).fingerprint
    for size in (264, 381):
        with pytest.raises(ValueError, match=f"vocab_size={size} is not a whole number from 265 to 380"):
            trained.truncate(size)


def test_fewer_tokens_are_allowed_on_request():
    found = Tokenizer.train(["the cat and the hat"], 5_000, fewer=True)
    with pytest.raises(ValueError, match=f"it reached {found.vocab_size}: use at most {found.vocab_size}, or more"):
        Tokenizer.train(["the cat and the hat"], 5_000)


def test_progress_shows_characters_and_the_share_of_max_chars(capsys):
    Tokenizer.train(TEXTS, 300, progress=True)
    assert "characters/s" in (shown := capsys.readouterr().err) and "%" not in shown
    Tokenizer.train(TEXTS, 300, max_chars=10_000, progress=True)
    assert "100%" in (shown := capsys.readouterr().err) and "10.0k/10.0k" in shown
    Tokenizer.train(TEXTS, 300)
    assert capsys.readouterr() == ("", "")
    with pytest.raises(ValueError, match="max_chars=0 is not a whole number of at least 1"):
        Tokenizer.train(TEXTS, 300, max_chars=0)


# Kinds of text


def test_the_samples_are_what_they_are_called():
    scripts = {"German": "LATIN", "Greek": "GREEK", "Russian": "CYRILLIC", "Hebrew": "HEBREW", "Arabic": "ARABIC",
               "Hindi": "DEVANAGARI", "Chinese": "CJK", "Japanese": ("CJK", "HIRAGANA"), "Korean": "HANGUL"}
    assert scripts.keys() == ARTICLE_1.keys()
    for language, text in ARTICLE_1.items():
        assert all(unicodedata.name(char).startswith(scripts[language]) for char in text if char.isalpha()), language
        assert unicodedata.is_normalized("NFC", text) and 40 <= len(text) < 250
    found = kinds(TEXTS)
    assert list(found) == ["English", "code", "other scripts", "numbers"] and found["English"] == TEXTS
    assert all(compile(text, "code", "exec") for text in found["code"])
    assert sum(map(str.isalpha, "".join(found["numbers"]))) == 0


def test_by_kind_counts_every_tokenizer_on_every_kind(trained):
    single = tiktoken.Encoding("bytes", pat_str=r"(?s:.)", mergeable_ranks={bytes([n]): n for n in range(256)},
                               special_tokens={"<|end|>": 256})
    table = by_kind({"ours": trained, "bytes": single}, {"words": iter(["the <|end|>"]), "scripts": ["é字"]})
    assert table[["kind", "tokenizer", "vocab_size", "tokens"]].values.tolist() == [
        ["words", "ours", 380, len(trained.encode("the <|end|>"))], ["words", "bytes", 257, 11],
        ["scripts", "ours", 380, len(trained.encode("é字"))], ["scripts", "bytes", 257, 5]]
    assert table.bytes_per_token.tolist()[1::2] == [1, 1] and table.characters_per_token.tolist()[3] == 2 / 5


@pytest.fixture
def no_network(monkeypatch):
    def connect(*_):
        raise AssertionError("a connection was tried")

    monkeypatch.setattr(socket.socket, "connect", connect)


def test_missing_encodings_are_named_with_the_way_to_fetch_them(cache, no_network):
    found, note = known_encodings()
    assert found == {} and "\n" not in note
    assert "tiktoken.get_encoding('gpt2'); tiktoken.get_encoding('cl100k_base')" in note


def test_encodings_are_read_from_tiktokens_cache(cache, no_network, monkeypatch):
    """A vocabulary of bytes, where tiktoken looks for that of GPT-4, in its format and under its hashes."""
    file = b"\n".join(base64.b64encode(bytes([value])) + b" %d" % value for value in range(256))
    _, address = _ENCODINGS["GPT-4"]
    (cache / hashlib.sha1(address.encode()).hexdigest()).write_bytes(file)
    tiktoken.registry._find_constructors()
    monkeypatch.setitem(tiktoken.registry.ENCODING_CONSTRUCTORS, "cl100k_base", lambda: {
        "name": "cl100k_base", "pat_str": r"(?s:.)", "special_tokens": {}, "mergeable_ranks":
            tiktoken.load.load_tiktoken_bpe(address, expected_hash=hashlib.sha256(file).hexdigest())})
    found, note = known_encodings()
    assert list(found) == ["GPT-4"] and found["GPT-4"].n_vocab == 256 and "GPT-2," in note and "GPT-4" not in note


def test_the_addresses_are_those_of_tiktoken():
    for name, *addresses in _ENCODINGS.values():
        assert re.findall(r'"(https://[^"]+)"', inspect.getsource(getattr(openai_public, name))) == addresses


# The curve


def power_law(exponents: list[float], sizes: tuple[int, ...] = (1024, 4096, 16384, 65536)) -> Curve:
    """Documents of a million bytes whose bytes per token grow like a power of the vocabulary."""
    tokens = np.array([[1e6 / (0.5 * size**exponent) for exponent in exponents] for size in sizes])
    return Curve(sizes, tokens, np.full(len(exponents), 10**6), np.full(len(exponents), 10**6))


def test_the_curve_counts_every_document(trained):
    found = curve(trained, iter(TEXTS[:20]), vocab_sizes=(300, 350, 5_000))
    assert found.vocab_sizes == (300, 350, 380)
    assert found.tokens_VN.tolist() == [[len(trained.truncate(size).encode(text)) for text in TEXTS[:20]]
                                        for size in found.vocab_sizes]
    assert found.bytes_N.tolist() == found.characters_N.tolist() == [len(text) for text in TEXTS[:20]]
    assert found.bytes_per_token(350) == pytest.approx(found.bytes_N.sum() / found.tokens_VN[1].sum())
    assert found.bytes_per_token(300) < found.bytes_per_token(320) < found.bytes_per_token(350)


@pytest.mark.parametrize("config", [MICRO, replace(MICRO, tied=True), PRESETS["goldilocks"]])
def test_the_table_says_what_sizing_says(config):
    table = power_law([0.2]).table(config, text_bytes=2e9)
    for vocab_size, row in table.iterrows():
        model = replace(config, vocab_size=vocab_size)
        count = sizing.parameters(model)
        assert row["bytes_per_token"] == row["characters_per_token"] == pytest.approx(0.5 * vocab_size**0.2)
        assert row["embedding_parameters"] == count.total - count.blocks
        assert row["embedding_percent"] == pytest.approx(100 - count.split["blocks"])
        assert row["flops_per_token"] == sizing.flops_per_token(model, int(row["context"]))
        assert row["flops"] == pytest.approx(row["flops_per_token"] * row["tokens"])
        assert row["tokens"] * row["bytes_per_token"] == pytest.approx(2e9)
        reach = config.seq_len * config.vocab_size**0.2
        assert row["context"] * vocab_size**0.2 == pytest.approx(reach, rel=0.003)
    assert table["cost"].min() == 1 and (table["flops"] / table["cost"]).std() < 1e-3 * table["flops"].min()


@pytest.mark.parametrize("dim", [64, 128, 512, 1024])
def test_the_cheapest_vocabulary_is_the_minimum_of_the_cost(dim):
    config = replace(MICRO, dim=dim, head_dim=64)

    def cost(octave: float) -> float:
        covers = 0.5 * 2 ** (0.2 * octave)
        reach = config.seq_len * 0.5 * config.vocab_size**0.2
        blocks = 12 * config.depth * dim**2
        return (6 * (blocks + dim * 2**octave) + 12 * config.depth * dim * reach / covers) / covers

    exact = 2 ** minimize_scalar(cost, bounds=(10, 16), method="bounded").x
    found = power_law([0.2, 0.2]).cheapest(config)
    assert found.vocab_size == pytest.approx(exact, rel=0.01) and found.low == found.high == found.vocab_size
    for edge in found.flat:
        on_edge = edge in (1_024, 65_536)
        assert cost(np.log2(edge)) / cost(np.log2(exact)) == pytest.approx(1.01, abs=0.002) or on_edge
    assert not found.at_edge


def test_documents_that_differ_make_the_answer_uncertain():
    same, mixed = power_law([0.2] * 12), power_law([0.15, 0.25] * 6)
    wide, narrow = mixed.cheapest(MICRO), same.cheapest(MICRO)
    assert narrow.low == narrow.high and wide.low < wide.vocab_size < wide.high
    longer = power_law([0.15, 0.25] * 120).cheapest(MICRO)
    assert longer.high - longer.low < 0.5 * (wide.high - wide.low)
    assert mixed.cheapest(MICRO) == wide
    lengths = np.geomspace(1, 100, 12)    # documents that only differ in length say the same
    unequal = Curve(same.vocab_sizes, same.tokens_VN * lengths, same.characters_N * lengths, same.bytes_N * lengths)
    assert unequal.cheapest(MICRO) == narrow


def test_an_edge_is_said_to_be_one():
    found = power_law([0.2], sizes=(1_024, 1_200)).cheapest(PRESETS["goldilocks"])
    assert found.at_edge and found.vocab_size == 1_200 and "at the edge of what was measured" in str(found)
    with pytest.raises(ValueError, match=r"vocab_sizes=\(1024,\) are too few for a curve: measure two or more"):
        power_law([0.2], sizes=(1_024,)).cheapest(MICRO)


def test_the_smooth_curve_meets_what_was_not_measured():
    """Between sizes a factor two apart, on real merges: within one per cent."""
    modules = [file.read_text(encoding="utf-8") for file in sorted(Path(sizing.__file__).parent.parent.glob("**/*.py"))]
    held_out = modules[::5]
    larger = Tokenizer.train([text for text in modules if text not in held_out], 4_096)
    some = curve(larger, held_out, (512, 1_024, 2_048))
    for size in (724, 1_448, 2_896):
        measured = curve(larger, held_out, (size,)).bytes_per_token(size)
        assert some.bytes_per_token(size) == pytest.approx(measured, rel=0.01)


def test_the_report_holds_all_of_it(trained, cache):
    facts, text = report(trained, iter(TEXTS), iter(TEXTS[:50]), MICRO, kinds())
    facts = json.loads(json.dumps(facts, default=vars))
    assert facts.items() >= compression(trained, TEXTS[:50]).items() and "GPT-2" in facts["note"]
    assert [row["kind"] for row in facts["kinds"]] == ["held out", "code", "other scripts", "numbers"]
    assert 380 in [row["vocab_size"] for row in facts["vocabularies"]]
    for part in ("other scripts", "ours", facts["note"], f"{facts['decision']['low']:,}", "embedding_parameters"):
        assert part in text
    with pytest.raises(ValueError, match="held_out has no documents"):
        report(trained, TEXTS, [], MICRO, {})

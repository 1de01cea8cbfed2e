"""The tokenizer: the same ids as rustbpe, tiktoken and tokenizers give, exact round trips, clear refusals."""

import json
import random
import re
import subprocess
import sys

import numpy as np
import pytest
import rustbpe
import tiktoken
import tokenizers

from tinylib import tokenizer as room
from tinylib.tokenizer import MAX_RUN, PATTERN, SPECIAL_TOKENS, Tokenizer, compression

STRANGE = [" ", "  ", "\n", "\t", "\r\n", "\x0b", "\x00", "\x1c", "\x7f", "\x85", "\xa0", "\u1680", "\u2028", "\u3000",
           "\u200b", "\u200d", "\ufeff", "\ufffe", "\U0010ffff", "'s", "'LL", "’s", "ſ", "K", "İ", "ß", "é", "e\u0301",
           "日本語", "한국", "العربية", "हिन्दी", "๓", "Ⅳ", "²", "½", "1234567", "0", "...", "!!??", "👩‍👩‍👧", "🇩🇪",
           "\ue000", "_", "__init__", "Word", "word", "def f(x):", "<|bos|>", "<|user_start|>", "<|", "|>",
           "<|output_end", "Ġ", "Ċ"]


def text_of(seed, words=3_000):
    chance = random.Random(seed)
    stems = ["".join(chance.choices("etaoinshrdlu", k=chance.randint(1, 8))) for _ in range(400)]
    parts = chance.choices([*stems, *STRANGE], k=words)
    return " ".join(parts)


def hostile(count, seed=0):
    """Strings out of strange parts, random characters and long runs, never a lone surrogate."""
    chance = random.Random(seed)
    planes = [(0, 0x80), (0x80, 0x800), (0x800, 0xd800), (0xe000, 0x10000), (0x10000, 0x110000)]
    for _ in range(count):
        parts = chance.choices(STRANGE, k=chance.randint(0, 12))
        parts += [chr(chance.randrange(*chance.choice(planes))) for _ in range(chance.randint(0, 12))]
        if chance.random() < 0.2:
            parts.append(chance.choice([" ", "\n", "\t", "7", "a", "!", "\u3000"]) * chance.randint(1, 300))
        chance.shuffle(parts)
        yield "".join(parts)


@pytest.fixture(scope="module")
def trained():
    return Tokenizer.train([text_of(0), text_of(1)], vocab_size=1_000)


def test_training_equals_rustbpe(trained):
    reference = rustbpe.Tokenizer()
    reference.train_from_iterator([text_of(0), text_of(1)], 1_000 - len(SPECIAL_TOKENS), pattern=PATTERN)
    assert trained.tokens == tuple(bytes(word) for word, _ in reference.get_mergeable_ranks())
    assert trained.vocab_size == 1_000 and len(trained.tokens) == 991


def test_ids_equal_rustbpe_tiktoken_and_tokenizers_on_hostile_strings(trained, tmp_path):
    reference = rustbpe.Tokenizer()
    reference.train_from_iterator([text_of(0), text_of(1)], 1_000 - len(SPECIAL_TOKENS), pattern=PATTERN)
    plain = tiktoken.Encoding("plain", pat_str=PATTERN, special_tokens={},
                              mergeable_ranks={bytes(word): rank for word, rank in reference.get_mergeable_ranks()})
    trained.save_huggingface(tmp_path / "tokenizer.json")
    exported = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    exported.encode_special_tokens = True
    strings = list(hostile(1_500))
    for text, ids in zip(strings, trained.encode_batch(strings), strict=True):
        assert ids == reference.encode(text) == plain.encode_ordinary(text), ascii(text)
        assert ids == exported.encode(text, add_special_tokens=False).ids, ascii(text)
        assert trained.decode(ids) == text == exported.decode(ids)
        assert trained.token_bytes[ids].sum() == len(text.encode())
        assert max(ids, default=0) < len(trained.tokens)


def test_the_export_knows_the_special_tokens(trained, tmp_path):
    trained.save_huggingface(tmp_path / "tokenizer.json")
    exported = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert exported.get_vocab_size() == trained.vocab_size
    assert {name: exported.token_to_id(name) for name in SPECIAL_TOKENS} == trained.special_ids


def test_every_byte_and_every_plane_round_trips(trained):
    for value in range(256):
        assert trained.decode_bytes([trained.tokens.index(bytes([value]))]) == bytes([value])
    for start in range(0, 0x110000, 0x1000):
        text = "".join(chr(code) for code in range(start, start + 0x1000) if not 0xD800 <= code < 0xE000)
        assert trained.decode(trained.encode(text)) == text


def test_the_special_tokens_come_last(trained):
    assert list(trained.special_ids) == list(SPECIAL_TOKENS)
    assert list(trained.special_ids.values()) == list(range(991, 1_000))
    assert trained.bos == 991 and trained.decode([trained.bos]) == "<|bos|>"
    assert trained.token_bytes.dtype == np.int64 and trained.token_bytes[991:].tolist() == [0] * 9


def test_text_never_yields_a_special_id(trained):
    for name in SPECIAL_TOKENS:
        ids = trained.encode(f"{name} x{name}")
        assert max(ids) < trained.bos and trained.decode(ids) == f"{name} x{name}"


def test_numbers_are_cut_after_two_digits():
    found = Tokenizer.train(["1234 12345 5678 " * 50], vocab_size=269)
    assert max(len(word) for word in found.tokens if word.isdigit()) == 2


def test_merges_rebuild_the_vocabulary(trained):
    rebuilt = [bytes([value]) for value in range(256)]
    order = list(trained.tokens[:256])
    assert sorted(order) == rebuilt
    for left, right in trained.merges():
        order.append(order[left] + order[right])
    assert tuple(order) == trained.tokens


# Disk


def test_saved_as_text_and_loaded_exactly(trained, tmp_path):
    trained.save(tmp_path / "t")
    loaded = Tokenizer.load(tmp_path / "t")
    assert loaded.tokens == trained.tokens and loaded.fingerprint == trained.fingerprint
    assert [file.suffix for file in (tmp_path / "t").iterdir()] == [".json"]
    content = json.loads(next((tmp_path / "t").iterdir()).read_text(encoding="utf-8"))
    assert content["pattern"] == PATTERN and content["special_tokens"] == list(SPECIAL_TOKENS)
    strings = list(hostile(50, seed=5))
    assert loaded.encode_batch(strings) == trained.encode_batch(strings)


def test_the_fingerprint_tells_tokenizers_apart(trained):
    assert Tokenizer.train([text_of(0), text_of(1)], vocab_size=999).fingerprint != trained.fingerprint
    assert Tokenizer(trained.tokens, pattern=r"\s+|\S+").fingerprint != trained.fingerprint
    assert Tokenizer(trained.tokens).fingerprint == trained.fingerprint


def test_a_failed_save_leaves_the_old_one(trained, tmp_path, monkeypatch):
    trained.save(tmp_path)
    monkeypatch.setattr("pathlib.Path.replace", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        Tokenizer.train([text_of(2)], vocab_size=300).save(tmp_path)
    assert len(list(tmp_path.iterdir())) == 1
    assert Tokenizer.load(tmp_path).fingerprint == trained.fingerprint


@pytest.mark.parametrize("change,message", [
    ({"version": 2}, r"version=2 in .* is not 1"),
    ({"tokens": ["a"]}, "tokens lacks 255 of the 256 single bytes"),
])
def test_a_strange_file_is_refused(trained, tmp_path, change, message):
    trained.save(tmp_path)
    file = next(tmp_path.iterdir())
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(ValueError, match=message):
        Tokenizer.load(tmp_path)


def test_a_missing_tokenizer_says_what_to_run(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no tokenizer in .*nowhere: run notebook 02, or python -m tinylib"):
        Tokenizer.load(tmp_path / "nowhere")


# Bad input


@pytest.mark.parametrize("vocab_size,message", [
    (100, "vocab_size=100 has no room for 256 bytes and 9 special tokens: use 265 or more"),
    (264, "use 265 or more"),
    (5_000, r"vocab_size=5000 is more than this text can fill, it reached \d+: use at most \d+, or more text"),
])
def test_a_vocabulary_that_does_not_fit(vocab_size, message):
    with pytest.raises(ValueError, match=message):
        Tokenizer.train(["the cat and the hat"], vocab_size=vocab_size)


def test_what_the_error_advises_works():
    with pytest.raises(ValueError, match="it reached") as error:
        Tokenizer.train(["the cat and the hat"], vocab_size=5_000)
    reached = int(re.search(r"at most (\d+)", str(error.value))[1])
    assert Tokenizer.train(["the cat and the hat"], vocab_size=reached).vocab_size == reached


@pytest.mark.parametrize("texts", [[], [""], ["", ""]])
def test_no_text_at_all_fills_265(texts):
    assert Tokenizer.train(texts, vocab_size=265).encode("a") == [97]
    with pytest.raises(ValueError, match="it reached 265"):
        Tokenizer.train(texts, vocab_size=266)


def test_a_lone_surrogate_is_refused_in_training_and_encoding(trained):
    for use in (trained.encode, lambda text: trained.encode_batch([text]), lambda text: Tokenizer.train([text], 265)):
        with pytest.raises(ValueError, match=r"text holds the lone surrogate '\\ud83d' at character 2"):
            use("ab\ud83dcd")


def test_an_id_outside_the_vocabulary(trained):
    for number in (-1, 1_000):
        with pytest.raises(ValueError, match=f"id={number} is not in this vocabulary: ids go from 0 to 999"):
            trained.decode([number])


@pytest.mark.parametrize("run", [" ", "\t", " \t", "\u3000", "\r", "a", "!", "1", "\n", "\x1c"])
def test_a_million_of_one_character(trained, run):
    text = "start" + run * (1_000_000 // len(run)) + "end"
    assert trained.decode(trained.encode(text)) == text
    Tokenizer.train([text, "ab ab"], vocab_size=266)


def test_runs_up_to_the_limit_are_not_cut(trained):
    """The ids are those of tiktoken up to MAX_RUN, wherever the run lies; above, those of its pieces."""
    raw = trained._encoding.encode_ordinary
    for before in ("", "x", "x" * 1000, "y " * 3000):
        for length in (MAX_RUN - 1, MAX_RUN):
            text = before + "x" + " " * length + "word"
            assert room._pieces(text) == [text] and trained.encode(text) == raw(text)
        text = before + "x" + " " * (2 * MAX_RUN + 5) + "word"
        pieces = room._pieces(text)
        assert "".join(pieces) == text
        assert [len(piece) for piece in pieces[1:]] == [MAX_RUN, 5 + len("word")]
        assert trained.encode(text) == [number for piece in pieces for number in raw(piece)]


def test_whitespace_is_that_of_unicode():
    """As another regular expression engine sees it; Python's own \\s takes four control characters more."""
    split = tokenizers.pre_tokenizers.Split(tokenizers.Regex(r"\s"), "removed")
    blank = {code for code in range(0x3100) if not split.pre_tokenize_str(chr(code))}
    assert blank == {code for code in range(0x3100) if room._BLANK.fullmatch(chr(code))}
    assert 0x1c not in blank and re.match(r"\s", "\x1c")


# Compression


def test_compression_counts_by_hand(trained):
    texts = ["the that", "", "héé"]
    found = compression(trained, texts)
    tokens = sum(len(trained.encode(text)) for text in texts)
    assert found == {"documents": 3, "characters": 11, "bytes": 13, "tokens": tokens,
                     "characters_per_token": 11 / tokens, "bytes_per_token": 13 / tokens}
    assert compression(trained, [])["tokens"] == 0


def test_max_chars_trains_on_the_first_part_only():
    cut = Tokenizer.train(iter([text_of(0), text_of(1)]), vocab_size=400, max_chars=5_000)
    assert cut.fingerprint == Tokenizer.train([text_of(0)[:5_000]], vocab_size=400).fingerprint


def test_batches_stream_and_hold_every_text():
    def endless():
        while True:
            yield "ab"

    assert len(next(room.batched(endless(), characters=300))) == 101
    texts = [str(number) for number in range(1_000)]
    assert [text for batch in room.batched(texts, characters=100) for text in batch] == texts


def test_torch_is_not_needed():
    code = "import sys; sys.modules['torch'] = None; from tinylib.tokenizer import Tokenizer as T; " \
           "print(T.train(['ab'], 266).encode('ab'))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "[256]\n"


def test_figures_draw_what_was_measured():
    import pandas as pd

    from tinylib import plots

    table = pd.DataFrame({"vocab_size": [384, 768, 1536], "characters_per_token": [1.7, 2.3, 2.9],
                          "table_parameters": [24_576, 49_152, 98_304]})
    left, right = plots.compression_curve(table, blocks=196_608, chosen=768).axes
    assert left.lines[0].get_ydata().tolist() == [1.7, 2.3, 2.9]
    assert right.lines[0].get_ydata().tolist() == [0.024576, 0.049152, 0.098304]
    assert set(right.lines[1].get_ydata()) == {0.196608}
    axes, = plots.cost_of_text(pd.DataFrame({"narrow": [2.0, 1.0, 4.0]}, index=[384, 768, 1536]), chosen=768).axes
    assert axes.lines[0].get_ydata().tolist() == [2, 1, 4] and axes.lines[1].get_xdata() == [768]
    axes, = plots.token_lengths([1, 1, 2, 40], [1, 1, 1, 2], longest=3).axes
    assert [bar.get_height() for bar in axes.patches] == [50, 25, 25, 75, 25, 0]

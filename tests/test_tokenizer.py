"""The tokenizer: special tokens, merges, disk, training on a stream, clear errors."""

import json
import random
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tokenizers

from tinylib.tokenizer import PATTERN, SPECIAL_TOKENS, Tokenizer, batch_texts

STRANGE = ["  ", "\n", "\t", "\xa0", "'s", "é", "日本語", "1234567", "...", "👩‍👩‍👧", "__init__", "Word", "<|bos|>"]


def text_of(seed, words=3_000):
    chance = random.Random(seed)
    stems = ["".join(chance.choices("etaoinshrdlu", k=chance.randint(1, 8))) for _ in range(400)]
    return " ".join(chance.choices([*stems, *STRANGE], k=words))


@pytest.fixture(scope="module")
def trained():
    return Tokenizer.train([text_of(0), text_of(1)], vocab_size=1_000)


def test_every_byte_round_trips(trained):
    for value in range(256):
        assert trained.decode_bytes([trained.tokens.index(bytes([value]))]) == bytes([value])


def test_the_export_knows_the_special_tokens(trained, tmp_path):
    trained.save_huggingface(tmp_path / "tokenizer.json")
    exported = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert exported.get_vocab_size() == trained.vocab_size
    assert {name: exported.token_to_id(name) for name in SPECIAL_TOKENS} == trained.special_ids


def test_the_special_tokens_come_last(trained):
    assert list(trained.special_ids) == list(SPECIAL_TOKENS)
    assert list(trained.special_ids.values()) == list(range(991, 1_000))
    assert trained.bos == 991 and trained.decode([trained.bos]) == "<|bos|>"
    assert trained.token_bytes.dtype == np.int64 and trained.token_bytes[991:].tolist() == [0] * 9


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
    assert loaded.encode(text_of(5)) == trained.encode(text_of(5))


def test_the_fingerprint_tells_tokenizers_apart(trained):
    assert Tokenizer.train([text_of(0), text_of(1)], vocab_size=999).fingerprint != trained.fingerprint
    assert Tokenizer(trained.tokens).fingerprint == trained.fingerprint


def test_a_failed_save_leaves_the_old_one(trained, tmp_path, monkeypatch):
    trained.save(tmp_path)
    monkeypatch.setattr("pathlib.Path.replace", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        Tokenizer.train([text_of(2)], vocab_size=300).save(tmp_path)
    assert len(list(tmp_path.iterdir())) == 1
    assert Tokenizer.load(tmp_path).fingerprint == trained.fingerprint


@pytest.mark.parametrize("change,message", [
    ({"version": 2}, r"version=2 in .* is not this library's 1"),
    ({"pattern": r"\s+"}, r"pattern='\\\\s\+' in .* is not this library's .* train the tokenizer again"),
    ({"special_tokens": ["<|bos|>"]}, r"special_tokens=\['<\|bos\|>'\] in .* is not this library's"),
    ({"tokens": [*map(chr, range(128)), *map(chr, range(0xdc80, 0xdd00)), "a"]}, "and nothing twice"),
    ({"tokens": ["a"]}, "tokens must hold each of the 256 single bytes"),
])
def test_a_strange_file_is_an_error(trained, tmp_path, change, message):
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
    (100, r"vocab_size=100 is not .* of at least 265 \(256 bytes and the special tokens\): use 265 or more"),
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


def test_an_id_outside_the_vocabulary(trained):
    for number in (-1, 1_000):
        with pytest.raises(ValueError, match=f"id={number} is not in this vocabulary: ids go from 0 to 999"):
            trained.decode([number])


# A stream


def test_max_chars_trains_on_the_first_part_only():
    cut = Tokenizer.train(iter([text_of(0), text_of(1)]), vocab_size=400, max_chars=5_000)
    assert cut.fingerprint == Tokenizer.train([text_of(0)[:5_000]], vocab_size=400).fingerprint


def test_batches_stream_and_hold_every_text():
    def endless():
        while True:
            yield "ab"

    assert len(next(batch_texts(endless(), characters=300))) == 101
    texts = [str(number) for number in range(1_000)]
    assert [text for batch in batch_texts(texts, characters=100) for text in batch] == texts


def test_torch_is_not_needed():
    code = "import sys; sys.modules['torch'] = None; from tinylib.tokenizer import Tokenizer as T; " \
           "print(T.train(['ab'], 266).encode('ab'))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "[256]\n"


@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="reads memory from /proc")
def test_memory_does_not_grow_with_the_text():
    """Five times the text of the same words: the same peak, within a tenth of the text."""
    code = """
import random, sys
from pathlib import Path
from tinylib.tokenizer import Tokenizer
chance, words = random.Random(0), ["".join(random.Random(n).choices("etaoinsr", k=8)) for n in range(3_000)]
def texts(count):
    for _ in range(count):
        yield " ".join(chance.choices(words, k=3_000))
Tokenizer.train(texts(int(sys.argv[1])), 2_000)
print([line.split()[1] for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")][0])
"""
    peaks = [int(subprocess.run([sys.executable, "-c", code, str(count)], capture_output=True, text=True,
                                check=True).stdout) * 1024 for count in (300, 1_500)]
    assert peaks[1] - peaks[0] < 0.1 * 1_200 * 3_000 * 9

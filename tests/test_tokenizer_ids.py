"""Ids: those of rustbpe, of tiktoken with the pattern itself, and of the exported file in tokenizers, for any text."""

from __future__ import annotations

import itertools
import random
import unicodedata

import pytest
import rustbpe
import tiktoken
import tokenizers

from tinylib.tokenizer import PATTERN, SPECIAL_TOKENS, Tokenizer, pretokenize, words

SCALARS = [chr(code) for code in range(0x110000) if not 0xD800 <= code < 0xE000]
STRANGE = [" ", "  ", "\n", "\t", "\r\n", "\x0b", "\x00", "\x1c", "\x7f", "\x85", "\xa0", "\u1680", "\u2028", "\u3000",
           "\u200b", "\u200d", "\ufeff", "\ufffe", "\U0010ffff", "'s", "'LL", "’s", "ſ", "'ſ", "K", "İ", "ß", "é",
           "e\u0301", "日本語", "한국", "العربية", "हिन्दी", "๓", "Ⅳ", "²", "½", "1234567", "0", "...", "!!??", "👩‍👩‍👧",
           "🇩🇪", "\ue000", "_", "__init__", "Word", "word", "def f(x):", *SPECIAL_TOKENS, "<|", "|>", "<|output_end",
           "<|bos|", "<|BOS|>", "< |bos|>", "Ġ", "Ċ"]
BLANK = " \t\n\r\x0b\x0c\x1c\x85\xa0\u2003\u2028\u3000\u200b"
EMOJI = "👩👨👧👦🏽🏿❤💻🏳🌈🇩🇪🇯\u200d\ufe0f\u20e3#1"
RIGHT_TO_LEFT = "שלום עולם مرحبا ٣٤ \u200f\u200e\u202e\u2066\u2069 abc 12"
COMBINING = [char for char in SCALARS[:0x10000] if unicodedata.combining(char)]


def every_code_point():
    """All scalar values, each once, in strings of 257."""
    for start in range(0, len(SCALARS), 257):
        yield "".join(SCALARS[start:start + 257])


def controls():
    """Every control character alone, doubled, and between letters, digits, blanks and signs."""
    for char in (char for char in SCALARS[:0x100] if unicodedata.category(char) == "Cc"):
        yield from (char, char * 2, f"a{char}b", f" {char} x", f"1{char}2", f"!{char}\n{char}!")


def runs():
    """Runs of one character or two, between neighbours that could go with them."""
    for char, length in itertools.product([*BLANK, " \t", "\r\n", "7", "a", "!", "é", "字", "\u0301"], (2, 3, 65, 300)):
        yield from (char * length, f"x{char * length}x", f"!{char * length}1", f"\n{char * length}\n'")
    yield from (f"x{char * 4_096}word" for char in " \t")


def drawn(count: int, *, seed: int = 0):
    """Random strings: strange parts, characters of every plane, blanks, emoji, marks, right-to-left, broken UTF-8."""
    chance = random.Random(seed)
    planes = [(0, 0x80), (0x80, 0x800), (0x800, 0xd800), (0xe000, 0x10000), (0x10000, 0x110000)]
    for _ in range(count):
        parts = chance.choices(STRANGE, k=chance.randint(0, 12))
        parts += [chr(chance.randrange(*chance.choice(planes))) for _ in range(chance.randint(0, 12))]
        chance.shuffle(parts)
        yield "".join(parts)
        yield "".join(chance.choices(BLANK * 5 + "xxxX11!!'", k=chance.randint(1, 40)))
        yield "".join(chance.choices(EMOJI, k=12)) + "".join(chance.choices("aé 字", k=4)) + "".join(
            chance.choices(COMBINING, k=chance.randint(1, 9)))
        yield "".join(chance.choices(RIGHT_TO_LEFT, k=20)) + chance.choice(STRANGE)
        yield chance.randbytes(chance.randint(1, 60)).decode("utf-8", "replace")


def text_of(seed: int) -> str:
    chance = random.Random(seed)
    stems = ["".join(chance.choices("etaoinshrdlu", k=chance.randint(1, 8))) for _ in range(400)]
    return " ".join(chance.choices([*stems, *STRANGE], k=3_000)) + "   ".join(drawn(50, seed=seed))


TEXTS = [text_of(0), text_of(1)]


@pytest.fixture(scope="module")
def trained() -> Tokenizer:
    return Tokenizer.train(TEXTS, vocab_size=1_000)


@pytest.fixture(scope="module")
def reference() -> rustbpe.Tokenizer:
    """rustbpe with the pattern itself, on whole texts."""
    found = rustbpe.Tokenizer()
    found.train_from_iterator(TEXTS, 1_000 - len(SPECIAL_TOKENS), pattern=PATTERN)
    return found


@pytest.fixture(scope="module")
def plain(reference) -> tiktoken.Encoding:
    """tiktoken with the pattern itself."""
    return tiktoken.Encoding("plain", pat_str=PATTERN, special_tokens={},
                             mergeable_ranks={bytes(word): rank for word, rank in reference.get_mergeable_ranks()})


@pytest.fixture(scope="module")
def exported(trained, tmp_path_factory) -> tokenizers.Tokenizer:
    file = tmp_path_factory.mktemp("exported") / "tokenizer.json"
    trained.save_huggingface(file)
    found = tokenizers.Tokenizer.from_file(str(file))
    found.encode_special_tokens = True
    return found


def test_training_equals_rustbpe(trained, reference):
    assert trained.tokens == tuple(bytes(word) for word, _ in reference.get_mergeable_ranks())
    assert trained.vocab_size == 1_000 and len(trained.tokens) == 991


@pytest.mark.parametrize("strings", [every_code_point, controls, runs, lambda: drawn(600)],
                         ids=["every code point", "controls", "runs", "drawn"])
def test_ids_equal_those_of_three_libraries(trained, reference, plain, exported, strings):
    texts = list(strings())
    theirs = exported.encode_batch(texts, add_special_tokens=False)
    for text, ids, there in zip(texts, trained.encode_batch(texts), theirs, strict=True):
        assert trained.encode_array(text).tolist() == ids
        assert ids == reference.encode(text) == plain.encode_ordinary(text) == there.ids, ascii(text)
        assert trained.decode(ids) == text == exported.decode(ids)
        assert trained.token_bytes[ids].sum() == len(text.encode())
        assert max(ids, default=0) < trained.bos


def test_the_strings_are_as_many_and_as_strange_as_they_should_be():
    counts = [len(list(strings)) for strings in (every_code_point(), controls(), runs(), drawn(600))]
    assert sum(counts) > 5_000 and len(SCALARS) == 1_112_064 == sum(map(len, every_code_point()))


def test_splitting_at_blanks_keeps_the_words():
    """By the regex module, an engine of its own, on both patterns."""
    import regex

    texts = [*drawn(400, seed=1), *runs(), *controls()]
    for text in texts:
        pieces = pretokenize.split_at_blanks(text)
        assert "".join(pieces) == text
        found = [word for piece in pieces for word in regex.findall(pretokenize.PLAIN, piece)]
        assert found == words(text), ascii(text)


def test_blanks_are_those_of_the_regular_expressions():
    """To tiktoken's engine and to the one of tokenizers; Python's own \\s takes four control characters more."""
    ours = set(pretokenize._BLANKS + " \r\n")
    ranks = {bytes([value]): value for value in range(256)}
    found = tiktoken.Encoding("blanks", pat_str=r"\s", mergeable_ranks=ranks, special_tokens={})
    assert set(found.decode(found.encode_ordinary("".join(SCALARS)))) == ours
    split = tokenizers.pre_tokenizers.Split(tokenizers.Regex(r"\s"), "removed")
    left = {char for word, _ in split.pre_tokenize_str("".join(SCALARS[:0x4000])) for char in word}
    assert set(SCALARS[:0x4000]) - left == ours and "\x1c".isspace() and "\x1c" not in ours


@pytest.mark.parametrize(("run", "length"), [(" ", 1_000_000), (" \t", 300_000), ("\u3000", 100_000), ("\n", 300_000),
                                             ("a", 300_000), ("!", 300_000), ("1", 100_000), ("字", 100_000)])
def test_a_run_of_any_length(trained, exported, run, length):
    """Where the pattern itself overflows the stacks of tiktoken and rustbpe; tokenizers uses another engine."""
    text = "start" + run * (length // len(run)) + "end"
    ids = trained.encode(text)
    assert trained.decode(ids) == text and ids == exported.encode(text, add_special_tokens=False).ids


@pytest.mark.parametrize("run", [" ", "a", "\n", "acgt" * 1_000])
def test_training_survives_a_run_of_a_million(run):
    text = "start" + run * (1_000_000 // len(run)) + "end"
    found = Tokenizer.train([text, "ab ab ab"], vocab_size=270)
    assert found.decode(found.encode(text)) == text


def test_text_never_yields_a_special_id(trained):
    for name in SPECIAL_TOKENS:
        ids = trained.encode(f"{name} x{name}")
        assert max(ids) < trained.bos and trained.decode(ids) == f"{name} x{name}"


@pytest.mark.parametrize("surrogate", ["\ud800", "\udbff", "\udc00", "\udfff", "\ud83d\ude00"])
def test_a_lone_surrogate_is_an_error_in_training_and_encoding(trained, surrogate):
    """Also two that would be a pair in UTF-16: Python never holds a character so.  tiktoken takes all of these."""
    for use in (trained.encode, lambda text: trained.encode_batch([text]), lambda text: Tokenizer.train([text], 265)):
        with pytest.raises(ValueError, match=r"text holds the lone surrogate '\\ud[0-9a-f]+' at character 2"):
            use(f"ab{surrogate}cd")


def test_threads_change_nothing(trained):
    texts = [*drawn(200, seed=4), *TEXTS]
    assert trained.encode_batch(texts, threads=1) == trained.encode_batch(texts, threads=3) == [
        trained.encode(text) for text in texts]
    assert trained.encode_batch([]) == trained.encode_batch(iter([]), threads=2) == []

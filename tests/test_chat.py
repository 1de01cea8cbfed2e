"""Conversations, their shards with a loss mask, fine-tuning, answers, the terminal and the evaluation of answers."""

from __future__ import annotations

import dataclasses
import io
import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import problems, randomised

from tinylib import chat, corpus
from tinylib.chat import Chat, fine_tuning, gain, quiz, terminal
from tinylib.checkpoint import load_model, save
from tinylib.checks import ConfigError, UserError
from tinylib.cli import main
from tinylib.config import GPTConfig, TrainConfig
from tinylib.corpus import Document
from tinylib.corpus.questions import conversations
from tinylib.course.talk import Talk
from tinylib.evaluate import score
from tinylib.generate import generate_batch
from tinylib.sampling import Sampling
from tinylib.shards import Batch, Shards, build_conversations
from tinylib.tokenizer import Tokenizer, check_messages, in_answer, render, render_prompt
from tinylib.train import train

TEXT = ["What does the cat do?  The cat sat on the mat, and the hat sat on the cat.  Which module is it in?"]
SHAPE = GPTConfig(depth=2, dim=32, vocab_size=300, head_dim=16, seq_len=64)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(TEXT, 290)


def talk(*turns: str, name: str = "talk") -> Document:
    """A conversation whose turns alternate, the user's first."""
    return Document(name, json.dumps([{"role": ("user", "assistant")[place % 2], "content": turn}
                                      for place, turn in enumerate(turns)]))


def messages(document: Document) -> list[dict[str, str]]:
    return json.loads(document.text)


# Rendering


def test_render_token_by_token(tokenizer: Tokenizer) -> None:
    ids = render(tokenizer, messages(talk("the cat", "sat", "the mat", "<|bos|> on")))
    special, text = tokenizer.special_ids, tokenizer.encode
    assert ids == [special["<|bos|>"],
                   special["<|user_start|>"], *text("the cat"), special["<|user_end|>"],
                   special["<|assistant_start|>"], *text("sat"), special["<|assistant_end|>"],
                   special["<|user_start|>"], *text("the mat"), special["<|user_end|>"],
                   special["<|assistant_start|>"], *text("<|bos|> on"), special["<|assistant_end|>"]]
    assert ids.count(special["<|bos|>"]) == 1, "a special token's name in a text is text"


def test_loss_mask_is_the_assistants_tokens(tokenizer: Tokenizer) -> None:
    """nanochat's mask: 1 for the text of an answer and its end, 0 for the rest."""
    ids = render(tokenizer, messages(talk("the cat", "sat on", "the mat", "hat")))
    learned, inside = [], False
    for number in ids:
        learned.append(inside)
        if number == tokenizer.special_ids["<|assistant_start|>"]:
            inside = True
        if number == tokenizer.special_ids["<|assistant_end|>"]:
            inside = False
    mask_BT = in_answer(tokenizer, np.array([ids[:-1]]))
    assert mask_BT[0].tolist() == learned[1:]
    targets = [number for number, mask in zip(ids[1:], mask_BT[0], strict=True) if mask]
    assert tokenizer.decode(targets) == "sat on<|assistant_end|>hat<|assistant_end|>"


def test_a_system_message_joins_the_first_question() -> None:
    turns = check_messages([{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"},
                            {"role": "assistant", "content": "Yo"}])
    assert [turn["content"] for turn in turns] == ["Be brief.\n\nHi", "Yo"]


@pytest.mark.parametrize(("wrong", "said"), [
    ([], "at least one"), ("hello", "no list of messages"),
    ([{"role": "user"}], r"messages\[0\]=.* no role and content"),
    ([{"role": "user", "content": 3}], r"messages\[0\]"), ([None], r"messages\[0\]"),
    ([{"role": "assistant", "content": "a"}], r"messages\[0\].role='assistant' is not 'user'"),
    ([{"role": "user", "content": "a"}] * 2, r"messages\[1\].role='user' is not 'assistant'"),
    ([{"role": "system", "content": "a"}], r"messages\[0\].role='system' is not 'user'"),
    ([{"role": "system", "content": "a"}, {"role": "user", "content": "b"}, {"role": "tool", "content": "c"}],
     r"messages\[2\].role='tool'")])
def test_what_is_no_conversation_is_named(wrong: object, said: str) -> None:
    with pytest.raises(UserError, match=said):
        check_messages(wrong)


def test_a_prompt_drops_the_oldest_turns(tokenizer: Tokenizer) -> None:
    turns = messages(talk("the cat", "sat", "the hat", "mat", "on"))
    whole = render_prompt(tokenizer, turns)
    assert whole == [*render(tokenizer, turns), tokenizer.special_ids["<|assistant_start|>"]]
    assert render_prompt(tokenizer, turns, len(whole)) == whole
    assert render_prompt(tokenizer, turns, len(whole) - 1) == render_prompt(tokenizer, turns[2:])
    last = render_prompt(tokenizer, turns[4:])
    assert render_prompt(tokenizer, turns, len(last)) == last
    with pytest.raises(UserError, match=f"has {len(last)} tokens with its special ones, more than the {len(last) - 1}"):
        render_prompt(tokenizer, turns, len(last) - 1)
    with pytest.raises(UserError, match="nothing to answer"):
        render_prompt(tokenizer, turns[:2])


def test_a_system_message_stays_when_turns_are_dropped(tokenizer: Tokenizer) -> None:
    turns = messages(talk("the cat", "sat", "the hat", "mat", "on"))
    system = {"role": "system", "content": "do"}
    shorter = render_prompt(tokenizer, [system, *turns[2:]])
    assert render_prompt(tokenizer, [system, *turns], len(shorter)) == shorter
    assert tokenizer.decode(shorter).startswith("<|bos|><|user_start|>do\n\nthe hat<|user_end|>")


# Questions out of the documentation


def test_questions_of_a_module() -> None:
    found = list(conversations("pathlib", [
        ("", "Object-oriented filesystem paths.\n\nThis module …"),
        ("class Path(PurePath)", "A path that can be read."),
        ("Path.exists(self, *, follow_symlinks=True)", "Whether this path exists.\n\nMore."),
        ("Path._private(self)", "Whether nobody should ask."), ("short(x)", "Short."),
        ("odd(x)", ":param x: what reStructuredText has instead of a sentence.")]))
    asked = {turns[0]["content"]: [turn["content"] for turn in turns[1:]] for turns in map(messages, found)}
    assert asked == {
        "What is the module `pathlib` for?": ["Object-oriented filesystem paths."],
        "What is `pathlib.Path`?": ["A path that can be read.", "Which module is it in?", "`pathlib`"],
        "Which module has the class `Path`?": ["`pathlib`", "What is it?", "A path that can be read."],
        "What does `pathlib.Path.exists` do?": ["Whether this path exists.", "Which module is it in?", "`pathlib`"],
        "Which module has `Path.exists`?": ["`pathlib`", "What does it do?", "Whether this path exists."],
        "How is `pathlib.Path.exists` called?": ["`Path.exists(self, *, follow_symlinks=True)`", "What does it do?",
                                                 "Whether this path exists."]}
    assert len({document.name for document in found}) == len(found)


def test_built_in_conversations_are_split_by_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "lib").mkdir()
    for number in range(60):
        (tmp_path / "lib" / f"part{number}.py").write_text(
            f'"""Module number {number} of a library."""\ndef run():\n    """Run what number {number} holds."""\n')
    monkeypatch.setattr("tinylib.corpus.installed_docs.installed",
                        lambda with_packages: [corpus.installed_docs.Source(tmp_path / "lib", "small")])
    monkeypatch.setenv("TINYLIB_HOME", str(tmp_path))
    made = corpus.load("pyqa-stdlib")
    modules = {split: {document.name.split(":")[0] for document in made.documents(split)} for split in corpus.SPLITS}
    assert modules["val"] and not modules["train"] & modules["val"]
    assert len(modules["train"] | modules["val"]) == 60
    assert sum(made.manifest["splits"][split]["documents"] for split in corpus.SPLITS) == 240
    assert next(messages(document)[0]["role"] for document in made.documents("val")) == "user"


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_files_of_messages(tmp_path: Path, suffix: str) -> None:
    import pyarrow
    import pyarrow.parquet

    rows = [{"messages": messages(talk(f"the cat {number}", "sat"))} for number in range(3)]
    file = tmp_path / f"talks{suffix}"
    if suffix == ".jsonl":
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), file)
    found = [messages(document) for split in corpus.SPLITS
             for document in corpus.load(file).documents(split)]
    assert sorted(found, key=str) == sorted((row["messages"] for row in rows), key=str)


# Shards


def packed(tokenizer: Tokenizer, folder: Path, documents: list[Document], seq_len: int = 64) -> Shards:
    return build_conversations({"train": documents, "val": documents[:3]}, tokenizer, folder, seq_len)


def test_packing_cuts_no_conversation(tokenizer: Tokenizer, tmp_path: Path) -> None:
    documents = [talk(f"the cat {'sat ' * (number % 5)}", f"the mat {number}") for number in range(40)]
    shards = packed(tokenizer, tmp_path / "shards", documents)
    assert shards.packed == 64 and shards.documents == 40
    windows, found = shards.windows(64), []
    targets = [y_T for _, y_BT in shards.in_order(64) for y_T in y_BT.tolist()]
    for ids, y_T in zip(shards.ids().reshape(-1, 64).tolist(), targets, strict=True):
        assert ids[0] == tokenizer.bos, "a window begins with a conversation"
        text = [part for part in tokenizer.decode(ids).split("<|bos|>") if part]
        found += text
        answers = tokenizer.decode([target for target in y_T if target >= 0]).split("<|assistant_end|>")
        assert answers[:-1] == [part.split("<|assistant_start|>")[1].removesuffix("<|assistant_end|>")
                                for part in text], "the targets are the answers of the window, each whole"
    whole = [tokenizer.decode(render(tokenizer, messages(document))).removeprefix("<|bos|>") for document in documents]
    assert sorted(found) == sorted(whole)
    fewest = math.ceil(sum(len(render(tokenizer, messages(document))) for document in documents) / 64)
    assert windows <= 1.25 * fewest, "little is padding"


def test_targets_of_a_batch_are_counted_with_the_mask(tokenizer: Tokenizer, tmp_path: Path) -> None:
    shards = packed(tokenizer, tmp_path / "shards", [talk("the cat", f"sat {number}") for number in range(60)])
    for step in range(4):
        batch = Batch(step, 6, 64, seed=3)
        assert shards.targets(batch) == int((shards.batch(batch)[1] >= 0).sum()) > 0


def test_a_long_conversation_is_cut_and_its_next_window_is_no_answer(tokenizer: Tokenizer, tmp_path: Path) -> None:
    long = talk("cat", "mat hat " * 100)
    shards = packed(tokenizer, tmp_path / "shards", [long, long, talk("hat " * 100, "lost"), long])
    assert shards.documents == 3, "one whose answer lies behind the cut is left out"
    for _, y_BT in shards.in_order(64):
        assert (y_BT != tokenizer.bos).all()
        assert (y_BT[:, -1] == -1).all()


def test_packed_shards_have_one_context(tokenizer: Tokenizer, tmp_path: Path) -> None:
    shards = packed(tokenizer, tmp_path / "shards", [talk("the cat", "sat")] * 3)
    assert problems(shards.windows, 32) == [
        f"seq_len=32 is not the 64 into which the conversations in {tmp_path / 'shards'} are packed: use seq_len=64, "
        "or build them again"]


@pytest.mark.parametrize(("document", "said"), [
    (Document("talks:7", "no JSON"), "talks:7 is no conversation"), (Document("talks:8", "[3]"), "talks:8 is no conv"),
    (talk("the cat"), "split 'train' has no conversation with an answer"),
    (talk("cat", "\ud800"), "talk is no conversation")])
def test_documents_that_are_no_conversations(tokenizer: Tokenizer, tmp_path: Path, document: Document,
                                             said: str) -> None:
    with pytest.raises(UserError, match=said):
        build_conversations({"train": [document]}, tokenizer, tmp_path / "shards", 64)
    assert not (tmp_path / "shards").exists()


# Fine-tuning


@pytest.fixture(scope="module", params=[False, True], ids=["untied", "tied"])
def tuned(request: pytest.FixtureRequest, tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory
          ) -> tuple[Path, Path, list[Document]]:
    """A base checkpoint, the one that was fine-tuned from it, and the conversations."""
    folder = tmp_path_factory.mktemp("tuned")
    documents = [talk(f"Which module is `{name}` in?", f"`{name}`")
                 for name in ("cat", "hat", "mat", "sat", "the", "on", "do")]
    shards = packed(tokenizer, folder / "shards", documents)
    shape = dataclasses.replace(SHAPE, tied=request.param)
    base = save(folder / "base", randomised(shape, std=0.02), tokenizer=folder / "shards" / "tokenizer")
    config = fine_tuning(TrainConfig(shape, total_batch_size=128, device_batch_size=2), base, lr_scale=1,
                         data=str(shards.folder), run_dir=str(folder / "run"), steps=200, compile="off",
                         eval_every=None, save_every=None)
    summary = train(config)
    assert summary.state == "finished"
    return base, folder / "run" / "checkpoints" / "step_000200", documents


def test_fine_tuning_teaches_the_answers(tuned: tuple[Path, Path, list[Document]], tokenizer: Tokenizer) -> None:
    base, after, documents = tuned
    tables = [quiz(load_model(folder), tokenizer, documents) for folder in (base, after)]
    rows = gain(*tables)
    assert tables[0].exact.mean() == 0 and tables[1].exact.mean() > 0.8
    assert rows.loc["bits per byte"].high < 0 < rows.loc["exact match"].low


def test_fine_tuning_changes_only_what_it_says() -> None:
    base = TrainConfig(SHAPE, total_batch_size=128, device_batch_size=2)
    config = fine_tuning(base, "base", lr_scale=0.1, steps=3)
    changed = {field.name for field in dataclasses.fields(base)
               if getattr(base, field.name) != getattr(config, field.name)}
    assert changed == {"init_from", "steps", "embedding_lr", "unembedding_lr", "tied_lr", "matrix_lr",
                       "warmdown_fraction"}
    assert config.matrix_lr == 0.1 * base.matrix_lr and config.warmdown_fraction == 1


def test_a_resumed_fine_tuning_ends_where_a_straight_one_does(tuned: tuple[Path, Path, list[Document]],
                                                              tmp_path: Path) -> None:
    base, _, _ = tuned
    config = fine_tuning(TrainConfig(load_model(base).config, total_batch_size=128, device_batch_size=2), base,
                         data=str(base.parent / "shards"), run_dir=str(tmp_path / "run"), steps=8, compile="off",
                         eval_every=None, save_every=4)
    train(config)
    last = tmp_path / "run" / "checkpoints" / "step_000008"
    straight = load_model(last).state_dict()
    shutil.rmtree(last)
    train(config, resume=True)
    assert all(torch.equal(weight, straight[name]) for name, weight in load_model(last).state_dict().items())


def test_packed_shards_hold_no_texts(tuned: tuple[Path, Path, list[Document]]) -> None:
    with pytest.raises(UserError, match="packed conversations, not texts"):
        Shards(tuned[0].parent / "shards").texts()


def test_another_context_is_one_clear_error(tuned: tuple[Path, Path, list[Document]], tmp_path: Path) -> None:
    base, _, _ = tuned
    shape = dataclasses.replace(load_model(base).config, seq_len=32)
    config = TrainConfig(shape, total_batch_size=128, device_batch_size=2, data=str(base.parent / "shards"),
                         run_dir=str(tmp_path / "run"), compile="off")
    with pytest.raises(ConfigError, match="seq_len=32 is not the 64"):
        train(config)


# Evaluation of answers


def test_quiz_bits_are_those_of_the_shards(tuned: tuple[Path, Path, list[Document]], tokenizer: Tokenizer) -> None:
    """Packed, several in a window, each conversation costs what it costs alone: attention doesn't cross them."""
    base, after, documents = tuned
    model, shards = load_model(after), build_conversations({"val": documents}, tokenizer, base.parent / "all", 64)
    result, table = score(model, shards), quiz(model, tokenizer, documents)
    assert shards.windows(64) < len(documents) == shards.documents
    assert table.bytes.sum() == result.bytes == sum(len(messages(document)[1]["content"]) for document in documents)
    assert table.bits.sum() == pytest.approx(result.text_nats / math.log(2), rel=1e-5)


def test_quiz_answers_are_greedy_with_the_true_history(tuned: tuple[Path, Path, list[Document]],
                                                       tokenizer: Tokenizer) -> None:
    model, document = load_model(tuned[1]), talk("the cat", "sat", "the hat", "mat")
    table = quiz(model, tokenizer, [document, talk("hat " * 100, "mat")], max_tokens=5)
    assert list(table.turn) == [1, 2] and list(table.reference) == ["sat", "mat"], "too long a conversation is left out"
    for row, turns in ((0, 1), (1, 3)):
        prompt = render_prompt(tokenizer, messages(document)[:turns])
        alone = "".join(piece for _, piece in generate_batch(model, tokenizer, [prompt],
                                                             [Sampling(max_tokens=5, temperature=0)]))
        assert table.answer[row] == alone
    with pytest.raises(UserError, match="no conversation fits"):
        quiz(model, tokenizer, [talk("hat " * 100, "mat")])


def test_gain_refuses_different_questions(tuned: tuple[Path, Path, list[Document]], tokenizer: Tokenizer) -> None:
    model, documents = load_model(tuned[1]), tuned[2]
    with pytest.raises(UserError, match="different questions"):
        gain(quiz(model, tokenizer, documents[:2]), quiz(model, tokenizer, documents[2:4]))


# Chat


class Script:
    """Lines of a user; an exception class among them is raised."""

    def __init__(self, *lines: str | type[BaseException]) -> None:
        self.left = [*lines, EOFError]

    def __call__(self) -> str:
        line = self.left.pop(0)
        if isinstance(line, str):
            return line
        raise line


@pytest.fixture
def chatting(tokenizer: Tokenizer) -> Chat:
    return Chat(randomised(SHAPE), tokenizer, Sampling(max_tokens=8, temperature=0))


def say(chatting: Chat, *lines: str | type[BaseException]) -> str:
    out = io.StringIO()
    terminal(chatting, Script(*lines), out)
    return out.getvalue()


def test_history_is_part_of_the_next_prompt(chatting: Chat, tokenizer: Tokenizer) -> None:
    first, second = "".join(chatting.ask("the cat")), "".join(chatting.ask("the hat"))
    assert [message["content"] for message in chatting.messages] == ["the cat", first, "the hat", second]
    prompt = render_prompt(tokenizer, chatting.messages[:3], 64 - 8)
    assert second == "".join(piece for _, piece in generate_batch(chatting.model, tokenizer, [prompt],
                                                                  [chatting.sampling]))


def test_a_long_chat_goes_on(chatting: Chat) -> None:
    for _ in range(12):
        assert "".join(chatting.ask("the cat sat on the mat"))
    assert len(chatting.messages) == 24


def test_terminal_commands(chatting: Chat) -> None:
    shown = say(chatting, "the cat", "", "/temperature 0.5", "/help", "/temperature hot", "/temperature -1", "/reset",
                "/nonsense")
    assert chatting.sampling.temperature == 0.5 and chatting.messages == []
    assert shown.count(chat.HELP) == 2
    assert "error: /temperature hot" in shown and "temperature=-1.0" in shown


def test_terminal_quits(chatting: Chat) -> None:
    assert say(chatting, "/quit", "the cat") == "" and chatting.messages == []


def test_a_backslash_continues_the_line(chatting: Chat) -> None:
    say(chatting, "the cat\\", "the hat")
    assert chatting.messages[0]["content"] == "the cat\nthe hat"


def test_ctrl_c_stops_the_answer_and_not_the_chat(chatting: Chat, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*arguments: object) -> object:
        yield 0, "the "
        raise KeyboardInterrupt

    whole: Callable[..., object] = chat.generate_batch
    answers = iter([interrupted, whole])
    monkeypatch.setattr(chat, "generate_batch", lambda *arguments: next(answers)(*arguments))
    shown = say(chatting, KeyboardInterrupt, "the cat", "the hat")
    assert shown.startswith("the  (stopped)\n") and len(chatting.messages) == 4
    assert chatting.messages[1]["content"] == "the "


def test_a_terminal_gets_no_control_characters(chatting: Chat, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat, "generate_batch", lambda *arguments: iter([(0, "a\x1b]0;title\x07\n\tb\r\x9b2J")]))
    assert say(chatting, "the cat") == "a\ufffd]0;title\ufffd\n\tb\ufffd\ufffd2J\n"


def test_a_question_that_is_too_long_is_an_error_line(chatting: Chat) -> None:
    assert say(chatting, "hat " * 100).startswith("error: the question has ") and chatting.messages == []


def test_lines_of_a_pipe(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("one\ntwo"))
    line = chat.reader()
    assert [line(), line()] == ["one", "two"]
    with pytest.raises(EOFError):
        line()


def test_padding_never_counts(tuned: tuple[Path, Path, list[Document]], tokenizer: Tokenizer) -> None:
    """A table of several lengths equals tables of single conversations."""
    model = load_model(tuned[1])
    documents = [talk("the cat", "sat"), talk("the cat sat on the hat", "mat", "on", "the mat and the hat")]
    together = quiz(model, tokenizer, documents)
    alone = [quiz(model, tokenizer, [document]) for document in documents]
    assert list(together.bits) == pytest.approx([bits for some in alone for bits in some.bits], rel=1e-5)


def test_the_verb_answers_a_pipe(tuned: tuple[Path, Path, list[Document]], monkeypatch: pytest.MonkeyPatch,
                                 capsys: pytest.CaptureFixture[str]) -> None:
    run, documents = tuned[1].parents[1], tuned[2]
    monkeypatch.setattr("sys.stdin", io.StringIO("".join(f"{messages(some)[0]['content']}\n/reset\n"
                                                         for some in documents)))
    assert main(["chat", str(run), "--temperature", "0", "--device", "cpu"]) == 0
    said, noted = capsys.readouterr()
    known = [messages(some)[1]["content"] for some in documents]
    assert noted == "" and sum(line == answer for line, answer in zip(said.splitlines(), known, strict=True)) > 4


# In a notebook


@pytest.mark.parametrize("widgets", ["on", "off"])
def test_a_chat_in_a_notebook(chatting: Chat, monkeypatch: pytest.MonkeyPatch, widgets: str) -> None:
    monkeypatch.setenv("TINYLIB_WIDGETS", widgets)
    monkeypatch.setattr(chat, "generate_batch", lambda *arguments: iter([(0, "<b>sat"), (0, "</b>")]))
    talking = Talk(chatting)
    if widgets == "on":
        talking.controls["question"].value = "the <i>cat</i>"
        assert "&lt;i&gt;cat" in talking.transcript.value and "&lt;b&gt;sat&lt;/b&gt;" in talking.transcript.value
        assert talking.controls["question"].value == ""
        talking.controls["temperature"].value = 0.5
        assert chatting.sampling.temperature == 0.5
        talking.controls["question"].value = "hat " * 100
        assert "shorten it" in talking.transcript.value
    else:
        talking.ask("the <i>cat</i>")
    assert repr(talking) == "user: the <i>cat</i>\nassistant: <b>sat</b>"
    talking.reset()
    assert repr(talking) == "(a chat)"

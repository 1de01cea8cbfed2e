"""Benchmarks: prompts as written down here by hand, scores equal to those of one plain forward pass a choice."""

from __future__ import annotations

import http.server
import io
import json
import math
import random
import threading
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from helpers import problems, randomised

from tinylib import checkpoint, tasks
from tinylib.checks import UserError
from tinylib.cli import main
from tinylib.model import GPT, KVCache
from tinylib.shards import Shards
from tinylib.tasks.questions import read_items
from tinylib.tasks.scoring import score_task
from tinylib.tokenizer import Tokenizer
from tinylib.train import train

WORDS = ["sum", "name", "type", "number", "list", "string", "Return", "the", "of", "with", "a", "raise", "else"]


@pytest.fixture(scope="module")
def tokenizer(tiny_shards) -> Tokenizer:
    return Tokenizer.load(tiny_shards / "tokenizer")


def some_words(generator: random.Random, least: int, most: int) -> str:
    return " ".join(generator.choices(WORDS, k=generator.randint(least, most)))


def made(kind: str, count: int = 30, shots: int = 3, most: int = 12) -> tasks.Task:
    """A task of random words."""
    generator, items = random.Random(1), []
    for _ in range(count):
        text = [some_words(generator, 1, most) for _ in range(5)]
        items.append({
            "multiple_choice": {"query": text[0], "choices": text[1:4], "gold": generator.randrange(3)},
            "schema": {"context_options": text[:2], "continuation": text[2], "gold": generator.randrange(2)},
            "language_modeling": {"context": f" {text[0]} ", "continuation": text[1].split()[0]},
            "pairs": {"sentence_good": text[0], "sentence_bad": text[1]}}[kind])
    return tasks.Task(kind, kind, items, 0.5, 0 if kind == "pairs" else shots)


def plainly(model: GPT, question: tasks.Question) -> bool:
    """The answer by a whole forward pass of each choice alone."""
    scores = []
    for ids, start in zip(question.sequences, question.starts, strict=True):
        with torch.no_grad():
            logits = model(torch.tensor([ids]))[0, start - 1:-1]
        target = torch.tensor(ids[start:])
        if question.gold is None:
            return bool((logits.argmax(-1) == target).all())
        losses = F.cross_entropy(logits, target, reduction="none")
        scores.append(float(losses.sum() if question.total else losses.mean()))
    return scores.index(min(scores)) == question.gold


# Prompts

def test_a_multiple_choice_prompt(tokenizer) -> None:
    items = [{"query": f"q{number}", "choices": ["yes", "no"], "gold": number % 2} for number in range(4)]
    task = tasks.Task("t", "multiple_choice", items, 0.5, shots=2, delimiter="\nA: ")
    first, second = (items[place] for place in random.Random(1234 + 3).sample([0, 1, 2], 2))
    before = "".join(f"{item['query']}\nA: {item['choices'][item['gold']]}\n\n" for item in (first, second)) + "q3\nA: "
    question = task.question(3, tokenizer, 1_000)
    assert question.sequences == [[tokenizer.bos, *tokenizer.encode(before + choice)] for choice in ("yes", "no")]
    assert question.gold == 1 and len({*question.starts}) == 1
    start = question.starts[0]
    assert question.sequences[0][:start] == question.sequences[1][:start]
    assert question.sequences[0][start] != question.sequences[1][start]


def test_a_schema_prompt_scores_the_continuation(tokenizer) -> None:
    item = {"context_options": ["the sum", "the largest name"], "continuation": "is a number", "gold": 1}
    question = tasks.Task("t", "schema", [item], 0.5).question(0, tokenizer, 1_000)
    assert question.sequences == [[tokenizer.bos, *tokenizer.encode(f"{option} is a number")]
                                  for option in item["context_options"]]
    assert [tokenizer.decode(ids[start:]) for ids, start in zip(question.sequences, question.starts, strict=True)] == [
        " is a number"] * 2


def test_a_language_modeling_prompt_is_stripped_and_asks_for_the_rest(tokenizer) -> None:
    items = [{"context": "  the sum of ", "continuation": "numbers"}, {"context": "a list of", "continuation": "names"}]
    question = tasks.Task("t", "language_modeling", items, 0.0, shots=1).question(0, tokenizer, 1_000)
    whole = "a list of names\n\nthe sum of numbers"
    assert question.gold is None and question.sequences == [[tokenizer.bos, *tokenizer.encode(whole)]]
    assert tokenizer.decode(question.sequences[0][question.starts[0]:]) == " numbers"


def test_a_prompt_is_cropped_from_the_left(tokenizer) -> None:
    task = made("multiple_choice")
    for number in range(len(task.items)):
        whole, cropped = (task.question(number, tokenizer, length) for length in (10_000, 60))
        for ids, start, some, place in zip(whole.sequences, whole.starts, cropped.sequences, cropped.starts,
                                           strict=True):
            assert some == ids[-60:] and ids[start:] == some[place:]
    item = {"query": "the", "choices": ["sum " * 50, "name"], "gold": 0}
    with pytest.raises(UserError, match="item 0 of long: its scored part does not fit a context of 20 tokens"):
        tasks.Task("long", "multiple_choice", [item], 0.5).question(0, tokenizer, 20)


# Scores

@pytest.mark.parametrize("kind", ["multiple_choice", "schema", "language_modeling", "pairs"])
@pytest.mark.parametrize("seq_len, batch_tokens", [(512, 16_384), (512, 300), (64, 1_000)])
def test_answers_are_those_of_plain_forward_passes(tiny, tokenizer, monkeypatch, kind, seq_len, batch_tokens) -> None:
    monkeypatch.setattr("tinylib.tasks.scoring.BATCH_TOKENS", batch_tokens)
    model, task = randomised(replace(tiny.model, seq_len=seq_len)).eval(), made(kind)
    questions = [task.question(number, tokenizer, seq_len) for number in range(len(task.items))]
    if kind == "language_modeling":    # make half of them right
        for question in questions[::2]:
            for place in range(question.starts[0], len(question.sequences[0])):
                with torch.no_grad():
                    likeliest = model(torch.tensor([question.sequences[0][:place]]))[0, -1].argmax()
                question.sequences[0][place] = int(likeliest)
    found = tasks.answers(model, questions)
    assert found == [plainly(model, question) for question in questions] and 0 < sum(found) < len(found)


def test_a_cache_is_selected_with_its_tokens(tiny) -> None:
    model = randomised(tiny.model).eval()
    cache, x_BT = KVCache(model, 2, 4), torch.tensor([[1, 2, 3, 4], [5, 6, 7, 8]])
    with torch.no_grad():
        model.hidden(x_BT, cache)
        chosen = cache.select([1, 0, 1], 6)
        rest = torch.tensor([[9, 10]] * 3)
        found = model.hidden(rest, chosen)
        whole = model.hidden(torch.cat([x_BT[[1, 0, 1]], rest], dim=1))[:, 4:]
    assert torch.allclose(found, whole, atol=1e-5) and (cache.lengths, chosen.lengths) == ([4] * 2, [6] * 3)


def test_the_table_has_chance_and_intervals_and_says_what_it_skips(tiny, tokenizer) -> None:
    model = randomised(replace(tiny.model, seq_len=256)).eval()
    few = replace(made("schema", count=3), name="few")
    table = tasks.evaluate(model, tokenizer, [made("schema"), made("pairs"), few])
    assert table.attrs["skipped"] == {"few": "3 items, and a prompt has 3 of the others"}
    assert table.index.tolist() == ["schema", "pairs"] and len(table.attrs["items"]["schema"]) == 30
    row = table.loc["schema"]
    assert row["low"] < row["accuracy"] < row["high"] and row["centered"] == pytest.approx(2 * row["accuracy"] - 1)
    short = randomised(replace(tiny.model, seq_len=16)).eval()
    cut = tasks.evaluate(short, tokenizer, [made("pairs")])
    answers = cut.attrs["items"]["pairs"]
    assert 0 < answers.count(None) < 30 and cut.loc["pairs", "items"] == 30 - answers.count(None)
    assert cut.attrs["skipped"] == {"pairs": f"{answers.count(None)} of 30 items do not fit the context"}
    assert tasks.compare(table, cut).index.tolist() == ["pairs"]
    mean, low, high = tasks.mean_centered(table)
    assert mean == table["centered"].mean()
    spread = sum(4 * share * (1 - share) / 30 for share in table["accuracy"])
    assert high - low == pytest.approx(2 * 1.96 * math.sqrt(spread) / 2)


def test_runs_are_compared_item_by_item(tiny, tokenizer) -> None:
    some, others = (tasks.evaluate(randomised(replace(tiny.model, seq_len=256), seed).eval(), tokenizer,
                                   [made("schema"), made("pairs")]) for seed in (0, 1))
    found = tasks.compare(some, others)
    pairs = list(zip(some.attrs["items"]["schema"], others.attrs["items"]["schema"], strict=True))
    row = found.loc["schema"]
    assert row["difference"] == pytest.approx(sum(one - two for one, two in pairs) / 30) and row["low"] < row["high"]
    assert (tasks.compare(some, some)["difference"] == 0).all()
    some.attrs["items"]["schema"], others.attrs["items"]["schema"] = [True] * 29 + [False], [False] * 30
    assert tasks.compare(some, others).loc["schema", "better"] == "one"
    assert tasks.compare(others, some).loc["schema", "better"] == "other"


def test_a_suite_is_made_of_any_text(tiny_shards, tiny) -> None:
    generator = random.Random(3)
    texts = ["\n".join(some_words(generator, 6, 12) for _ in range(40)) for _ in range(6)]
    made_here = tasks.suite(texts, 25)
    assert [(task.name, task.kind, len(task.items)) for task in made_here] == [
        ("word order", "pairs", 25), ("next line", "multiple_choice", 25), ("copied word", "language_modeling", 25)]
    assert made_here == tasks.suite(texts, 25) != tasks.suite(texts, 25, seed=1)
    lines = [line for text in texts for line in text.splitlines()]
    order, after, copied = (task.items for task in made_here)
    for item in order:
        assert item["sentence_good"] in lines and sorted(item["sentence_bad"].split()) == sorted(
            item["sentence_good"].split()) and item["sentence_bad"] != item["sentence_good"]
    for item in after:
        assert lines[lines.index(item["query"]) + 1] == item["choices"][item["gold"]]
    for item in copied:
        assert item["continuation"] in item["context"].split()
    with pytest.raises(UserError, match="the texts hold no sentence of 6 to 24 words"):
        tasks.suite(["no line of prose here"])


def test_documents_of_shards_are_decoded(tiny_shards) -> None:
    shards = Shards(tiny_shards, "val")
    texts = shards.texts()
    assert len(texts) == shards.documents and sum(len(text.encode()) for text in texts) == shards.bytes
    assert shards.texts(shards.tokens - 1) == shards.texts()[:-1]
    with pytest.raises(UserError, match="most=3 holds no whole document"):
        shards.texts(3)


# Files

@pytest.fixture
def bundle(tmp_path) -> Path:
    """A folder in the layout of the public one, with two tasks."""
    folder = tmp_path / "eval_bundle"
    (folder / "eval_data" / "words").mkdir(parents=True)
    (folder / "core.yaml").write_text("""icl_tasks:
-
  label: guess
  dataset_uri: words/guess.jsonl
  num_fewshot: [2]
  icl_task_type: multiple_choice
  continuation_delimiter: "\\nAnswer: "
-
  label: go_on
  dataset_uri: words/go_on.jsonl
  num_fewshot: [0]
  icl_task_type: language_modeling
""")
    (folder / "eval_meta_data.csv").write_text("Eval Task,Random baseline\nguess,33.0\ngo_on,0\n")
    for name, kind in (("guess", "multiple_choice"), ("go_on", "language_modeling")):
        lines = [json.dumps(item) for item in made(kind).items]
        (folder / "eval_data" / "words" / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
    return folder


def test_tasks_of_a_bundle(bundle, tokenizer) -> None:
    guess, go_on = tasks.core(bundle, max_per_task=5)
    assert (guess.name, guess.shots, guess.delimiter, guess.chance) == ("guess", 2, "\nAnswer: ", 0.33)
    assert (go_on.kind, go_on.shots, go_on.delimiter) == ("language_modeling", 0, " ")
    items = made("multiple_choice").items
    random.Random(1337).shuffle(items)
    assert guess.items == items[:5]
    assert "max_per_task=0 is not a whole number of at least 1" in problems(lambda: list(tasks.core(bundle, 0)))[0]


@pytest.mark.parametrize("line, message", [
    ("{", "line 2 of .* is no item"), ("[1]", "line 2 of .* is no item"),
    ('{"query": "a", "gold": 0}', "line 2 of .* lacks choices"),
    ('{"query": null, "choices": ["b"], "gold": 0}', "line 2 of .* has query=None, not a str"),
    ('{"query": "a", "choices": ["b", 3], "gold": 0}', "line 2 of .* has choices=.'b', 3., not a list of strings"),
    ('{"query": "a", "choices": ["b"], "gold": -1}', "line 2 of .* lacks a choice number -1"),
    ('{"query": "a", "choices": ["b"], "gold": 1}', "line 2 of .* lacks a choice number 1")])
def test_a_bad_line_is_named(tmp_path, line, message) -> None:
    file = tmp_path / "task.jsonl"
    file.write_text('{"query": "a", "choices": ["b"], "gold": 0}\n' + line + "\n")
    with pytest.raises(UserError, match=message):
        read_items(file, "multiple_choice")


def test_pairs_of_a_folder(tmp_path, tiny, tokenizer) -> None:
    with pytest.raises(FileNotFoundError, match="it holds no"):
        list(tasks.minimal_pairs(tmp_path))
    (tmp_path / "agreement.jsonl").write_text(json.dumps({"sentence_good": "a b", "sentence_bad": "b a"}) + "\n")
    (task,) = tasks.minimal_pairs(tmp_path)
    model = randomised(tiny.model).eval()
    assert (task.name, task.chance) == ("agreement", 0.5)
    assert score_task(model, tokenizer, task) == [plainly(model, task.question(0, tokenizer, 32))]


def test_the_bundle_is_fetched_once(bundle, tmp_path) -> None:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for file in bundle.rglob("*.*"):
            archive.write(file, Path("eval_bundle") / file.relative_to(bundle))

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(packed.getvalue())

        def log_message(self, *words: object) -> None:
            """Say nothing."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/eval_bundle.zip"
        folder = tasks.fetch_bundle(tmp_path / "data" / "eval_bundle", url)
        server.shutdown()
    assert [task.name for task in tasks.core(folder)] == ["guess", "go_on"]
    assert tasks.fetch_bundle(folder, url) == folder    # the server is gone
    with pytest.raises(ConnectionError, match="run it again with a network, or unpack"):
        tasks.fetch_bundle(tmp_path / "other", url)


def test_the_verb(bundle, tiny, tmp_path, capsys) -> None:
    train(replace(tiny, model=replace(tiny.model, seq_len=64), total_batch_size=128))
    pairs = tmp_path / "pairs"
    pairs.mkdir()
    (pairs / "agreement.jsonl").write_text(json.dumps({"sentence_good": "a b", "sentence_bad": "b a"}) + "\n")
    words = ["eval", tiny.run_dir, "--core", str(bundle), "--pairs", str(pairs), "--max-per-task", "4"]
    assert main([*words, "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert [task["task"] for task in facts["core"]["tasks"]] == ["guess", "go_on"]
    assert facts["core"]["low"] <= facts["core"]["centered"] <= facts["core"]["high"]
    assert facts["pairs"]["tasks"][0]["items"] == 1
    assert main(words) == 0
    out = capsys.readouterr().out
    assert "core: mean of centered accuracy" in out and "chance" in out
    assert main(["eval", tiny.run_dir, "--suite"]) == 0 and "word order" in capsys.readouterr().out
    assert checkpoint.read_model_config(Path(tiny.run_dir, "checkpoints", "step_000006")).seq_len == 64


def test_the_verb_on_documents_and_against_baselines(tiny, tmp_path, capsys) -> None:
    def ran(*words: str) -> tuple[int, Any]:
        code = main(["eval", tiny.run_dir, *words, "--json"])
        out, err = capsys.readouterr()
        return code, json.loads(out) if code == 0 else err

    train(tiny)
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    records = [{"text": f"Return the sum of {n} names and a list.", "source": "abc"[n % 3]} for n in range(40)]
    (corpus / "val.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    (corpus / "train.jsonl").write_text(json.dumps({"text": "a b"}) + "\n")
    facts = ran("--corpus", str(corpus), "--by", "source")[1]
    assert [row["source"] for row in facts["source"]] == ["a", "b", "c"] and facts["documents"] == 40
    assert sum(row["bytes"] for row in facts["source"]) == facts["bytes"]
    assert ran("--corpus", str(corpus), "--max-tokens", "30")[1]["documents"] < 5
    facts = ran("--opponents")[1]
    assert facts["with_weights_bits_per_byte"] > facts["bits_per_byte"] and len(facts["opponents"]) == 6
    assert facts["opponents"][0]["difference"] == pytest.approx(
        facts["bits_per_byte"] - facts["opponents"][0]["bits_per_byte"])
    assert ran("--by", "kind") == (1, "error: by='kind' needs the documents' names, which shards don't have: add "
                                      "--corpus\n")
    assert main(["eval", tiny.run_dir, "--opponents"]) == 0 and "5-gram" in capsys.readouterr().out


def test_a_broken_checkpoint_is_an_error(tiny, capsys) -> None:
    train(tiny)
    folder = Path(tiny.run_dir, "checkpoints", "step_000006")
    weights = (folder / "model.safetensors").read_bytes()
    for broken, message in ((weights[:-10], "is damaged"), (b"", "is damaged")):
        (folder / "model.safetensors").write_bytes(broken)
        assert main(["eval", tiny.run_dir, "--suite"]) == 1
        assert message in capsys.readouterr().err
    (folder / "model.safetensors").write_bytes(weights)
    (folder / "config.json").write_text((folder / "config.json").read_text().replace('"dim": 32', '"dim": 64'))
    assert main(["eval", tiny.run_dir, "--suite"]) == 1 and "does not fit the model" in capsys.readouterr().err
    (folder / "config.json").unlink()
    assert main(["eval", tiny.run_dir, "--suite"]) == 1 and "config.json" in capsys.readouterr().err


def test_a_tokenizer_that_is_not_the_models_is_an_error(tiny, tokenizer) -> None:
    model = randomised(replace(tiny.model, vocab_size=tokenizer.vocab_size - 1)).eval()
    with pytest.raises(UserError, match="use the tokenizer of the model's own run"):
        tasks.evaluate(model, tokenizer, [made("pairs")])

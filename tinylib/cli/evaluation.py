"""The verb eval: bits per byte of a run, its baselines, and benchmarks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from tinylib import corpus as corpora
from tinylib.checks import UserError
from tinylib.cli import tables
from tinylib.cli.verbs import Result, RunName, verb
from tinylib.config import DeviceKind
from tinylib.corpus import Document, Split
from tinylib.launch import attach
from tinylib.profiles import home
from tinylib.rundir import RunDirectory
from tinylib.shards import Shards
from tinylib.tokenizer import Tokenizer

if TYPE_CHECKING:
    from tinylib.model import GPT
    from tinylib.tasks import Task


@verb(name="eval")
def evaluate(run: RunName, split: Split = "val", corpus: str | None = None, by: Literal["source", "kind"] | None = None,
             opponents: bool = False, max_tokens: int | None = None, batch_size: int = 8, device: DeviceKind = "auto",
             core: Path | None = None, fetch: bool = False, pairs: Path | None = None, suite: bool = False,
             max_per_task: int | None = None, conversations: str | None = None, base: str | None = None) -> Result:
    """Bits per byte of a run's newest checkpoint; or CORE, pairs, tasks made of the validation text, or answers.

    Args:
        split: split of the shards that the run was trained on, or of the corpus
        corpus: documents of this corpus, each read alone, instead of those shards
        by: a row for each source, or each kind of text, of the corpus
        opponents: compare with n-grams and xz on the same documents; those that learn read the run's training text
        max_tokens: most tokens to evaluate
        batch_size: sequences at once
        core: folder of CORE's tasks, an eval_bundle: score these
        fetch: download that folder, and score it
        pairs: folder of minimal pairs as BLiMP has them: score these
        suite: make three tasks of the run's validation text, and score these
        max_per_task: items of each task, or conversations; None takes all, of a suite or of conversations 200
        conversations: answer the questions of this corpus of conversations
        base: run whose answers to the same questions are compared, such as the one that was fine-tuned
    """
    from tinylib import tasks

    found = attach(run)
    model, tokenizer = found.model(device), Tokenizer.load(found.checkpoint() / "tokenizer")
    facts: dict[str, Any] = {"run": found.path, "checkpoint": found.checkpoint().name}
    if core or fetch or pairs or suite:
        bundle = tasks.fetch_bundle(core or home() / "data" / "eval_bundle") if fetch else core
        chosen = {"core": bundle and tasks.core(bundle, max_per_task),
                  "pairs": pairs and tasks.minimal_pairs(pairs, max_per_task),
                  "suite": suite and tasks.suite(_shards(found, split).texts(), max_per_task or 200)}
        return _benchmarks(facts, model, tokenizer, {name: some for name, some in chosen.items() if some})
    facts["split"] = split
    if conversations:
        return _answers(facts, (model, tokenizer), base and attach(base).model(device), conversations, split,
                        max_per_task or 200)
    if corpus or by or opponents:
        return _documents(facts, model, tokenizer, _chosen(found, tokenizer, corpus, split, max_tokens, by), by,
                          _shards(found, "train").texts(20_000_000) if opponents else None, batch_size)
    return Result(facts | _of_shards(model, _shards(found, split), max_tokens, batch_size))


def _shards(run: RunDirectory, split: str) -> Shards:
    """A split of the shards of a run; ConfigError where they were made with another tokenizer than the run's."""
    shards, tokenizer = Shards(run.read_config()["train"]["data"], split), run.checkpoint() / "tokenizer"
    shards.check_tokenizer(Tokenizer.load(tokenizer).fingerprint, str(tokenizer))
    return shards


def _of_shards(model: GPT, shards: Shards, max_tokens: int | None, batch_size: int) -> dict[str, Any]:
    from tinylib.evaluate import score, unused_probability

    scored = score(model, shards, max_tokens=max_tokens, batch_size=batch_size)
    unused = {} if model.config.vocab_size == shards.vocab_size else {
        "unused_ids_probability": unused_probability(model, shards)}
    return {"bits_per_byte": scored.bits_per_byte, "tokens": scored.tokens, **unused}


def _chosen(run: RunDirectory, tokenizer: Tokenizer, name: str | None, split: Split, max_tokens: int | None,
            by: str | None) -> list[Document]:
    """The first documents of a corpus, or of the run's shards, that have at least `max_tokens`."""
    if by and not name:
        raise UserError(f"by={by!r} needs the documents' names, which shards don't have: add --corpus")
    documents = corpora.load(name).documents(split) if name else (
        Document(f"{split}:{number}", text) for number, text in enumerate(_shards(run, split).texts(20_000_000)))
    chosen, tokens = [], 0
    for document in documents:
        chosen.append(document)
        tokens += 1 + len(tokenizer.encode(document.text))
        if max_tokens and tokens >= max_tokens:
            break
    return chosen


def _documents(facts: dict[str, Any], model: GPT, tokenizer: Tokenizer, documents: list[Document], by: str | None,
               training: list[str] | None, batch_size: int) -> Result:
    """Bits per byte of documents: of all of them, by group, and beside baselines."""
    from tinylib import evaluate, opponents

    table = evaluate.by_document(model, tokenizer, documents, batch_size)
    if table.empty:
        raise UserError("no document was found: choose another split or corpus")
    facts |= evaluate.by_group(table, lambda _: "all").to_dict("records")[0]
    blocks = [tables.facts(facts)]
    if by:
        groups = evaluate.by_group(table, by)
        facts[by] = groups.reset_index(names=by).to_dict("records")
        blocks.append(groups.to_string(float_format="{:.3f}".format))
    if training is not None:
        found = opponents.baselines(tokenizer, [document.text for document in documents], training)
        rows = opponents.against(table.bits, found, table.bytes)
        facts |= {"opponents": rows.reset_index(names="opponent").to_dict("records"),
                  "with_weights_bits_per_byte": opponents.with_weights(model, table.bits.sum(), table.bytes.sum())}
        blocks.append(f"{rows.to_string(float_format='{:.3f}'.format)}\n\nthe model, charged for its own weights: "
                      f"{facts['with_weights_bits_per_byte']:.3f}")
    return Result(facts, "\n\n".join(blocks))


def _answers(facts: dict[str, Any], chat: tuple[GPT, Tokenizer], base: GPT | None, name: str, split: Split,
             most: int) -> Result:
    """Exact matches, overlap and bits per byte of answers, beside those of the base model, and the first few."""
    from tinylib.chat import gain, quiz

    documents = list(islice(corpora.load(name).documents(split), most))
    after = quiz(*chat, documents)
    before = quiz(base, chat[1], documents) if base else after
    rows = gain(before, after) if base else gain(before, after)[["after"]]
    facts |= {"questions": len(after), "answers": rows.reset_index(names="measure").to_dict("records")}
    some = after.head(6)[["question", "reference", "answer"]].to_dict("records")
    shown = "\n\n".join("\n".join(f"{name:9} {text}" for name, text in row.items()) for row in some)
    return Result(facts, f"{len(after)} questions of {len(documents)} conversations\n"
                         f"{rows.to_string(float_format='{:.3f}'.format)}\n\n{shown}")


def _benchmarks(facts: dict[str, Any], model: GPT, tokenizer: Tokenizer,
                chosen: Mapping[str, Iterable[Task]]) -> Result:
    """A table of tasks with chance and intervals, and the mean of each benchmark."""
    from tinylib import tasks

    blocks = []
    for name, some in chosen.items():
        table = tasks.evaluate(model, tokenizer, some)
        if table.empty:
            raise UserError(f"nothing of {name} could be scored: {table.attrs['skipped']}")
        mean, low, high = tasks.mean_centered(table)
        skipped = "".join(f"\nskipped {task}: {why}" for task, why in table.attrs["skipped"].items())
        facts[name] = {"centered": mean, "low": low, "high": high, "skipped": table.attrs["skipped"],
                       "tasks": table.reset_index(names="task").to_dict("records")}
        blocks.append(f"{table.to_string(float_format='{:.3f}'.format)}{skipped}\n\n{name}: mean of centered accuracy "
                      f"{mean:.4f}, 95% interval {low:.4f} to {high:.4f}")
    return Result(facts, "\n\n".join(blocks))

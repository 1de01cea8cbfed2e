"""Questions of benchmarks as token sequences: CORE's three kinds of few-shot prompts, and minimal pairs.

CORE is the benchmark of DCLM: 22 tasks, each scored by accuracy centered on chance, and their mean.  Prompts, few-shot
draws, order of items and cropping are those of nanochat, whose figures are comparable.

Source: Li et al. 2024, https://arxiv.org/abs/2406.11794, section 3.5; nanochat, nanochat/core_eval.py (2025).  Minimal
pairs: Warstadt et al. 2020, https://arxiv.org/abs/1912.00582.
"""

from __future__ import annotations

import csv
import io
import json
import random
import tempfile
import urllib.request
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from tinylib import checks
from tinylib.checks import UserError
from tinylib.files import write_folder
from tinylib.tokenizer import Tokenizer

BUNDLE = "https://karpathy-public.s3.us-west-2.amazonaws.com/eval_bundle.zip"
Kind = Literal["multiple_choice", "schema", "language_modeling", "pairs"]
_FIELDS: dict[str, dict[str, type]] = {
    "multiple_choice": {"query": str, "choices": list, "gold": int},
    "schema": {"context_options": list, "continuation": str, "gold": int},
    "language_modeling": {"context": str, "continuation": str},
    "pairs": {"sentence_good": str, "sentence_bad": str}}


class TooLong(UserError):
    """The scored part of an item alone is longer than the model's context."""


@dataclass(frozen=True)
class Question:
    """One item, ready for a model."""

    sequences: list[list[int]]
    """Ids of every choice with its prompt; of a language-modeling item there is one."""
    starts: list[int]
    """Index of the first scored token in each; scoring goes on to the end."""
    gold: int | None
    """Index of the right choice; None asks whether greedy decoding gives the scored part."""
    total: bool = False
    """Whether choices are compared by the sum of their losses, not by the mean of a token."""


@dataclass(frozen=True)
class Task:
    """A benchmark task: its items, and how a prompt is made of one."""

    name: str
    kind: Kind
    items: list[dict[str, Any]]
    chance: float
    """Expected accuracy of guessing."""
    shots: int = 0
    """Examples in a prompt, drawn from the other items."""
    delimiter: str = " "
    """Between question and answer."""

    def question(self, index: int, tokenizer: Tokenizer, seq_len: int) -> Question:
        """The item at `index` as token sequences of at most `seq_len` ids, each the end of its prompt.

        Raises TooLong where the scored part alone is longer than that.
        """
        item = self.items[index]
        if self.kind == "pairs":    # a tie counts for the first, so that it must be the good one half of the time
            prompts = [item["sentence_good"], item["sentence_bad"]][::-1 if index % 2 else 1]
            return self._cropped(index, [[tokenizer.bos, *tokenizer.encode(text)] for text in prompts], [1, 1], seq_len)
        examples = "".join(f"{''.join(_parts(self.kind, example, self.delimiter))}\n\n"
                           for example in self._examples(index))
        if self.kind == "language_modeling":
            before, after = _parts(self.kind, item, self.delimiter)
            prompts = [(examples + before).strip(), examples + before + after]
        else:
            count = len(item["choices" if self.kind == "multiple_choice" else "context_options"])
            prompts = [examples + "".join(_parts(self.kind, item | {"gold": choice}, self.delimiter))
                       for choice in range(count)]
        ids = [[tokenizer.bos, *tokenizer.encode(text)] for text in prompts]
        if self.kind == "language_modeling":
            if ids[1][:len(ids[0])] != ids[0] or len(ids[1]) == len(ids[0]):
                raise UserError(f"item {index} of {self.name}: the tokens of prompt and answer do not begin with "
                                "those of the prompt")
            return self._cropped(index, ids[1:], [len(ids[0])], seq_len)
        if self.kind == "multiple_choice":
            return self._cropped(index, ids, [common_prefix(ids)] * len(ids), seq_len)
        suffix = common_prefix([some[::-1] for some in ids])
        return self._cropped(index, ids, [len(some) - suffix for some in ids], seq_len)

    def _examples(self, index: int) -> list[dict[str, Any]]:
        """The items that stand before that of `index` in its prompt."""
        others = [other for other in range(len(self.items)) if other != index]
        return [self.items[other] for other in random.Random(1234 + index).sample(others, self.shots)]

    def _cropped(self, index: int, ids: list[list[int]], starts: list[int], seq_len: int) -> Question:
        crops = [max(0, len(some) - seq_len) for some in ids]
        if any(start <= crop for start, crop in zip(starts, crops, strict=True)):
            raise TooLong(f"item {index} of {self.name}: its scored part does not fit a context of {seq_len} tokens")
        gold = {"language_modeling": None, "pairs": index % 2}.get(self.kind, self.items[index].get("gold"))
        return Question([some[crop:] for some, crop in zip(ids, crops, strict=True)],
                        [start - crop for start, crop in zip(starts, crops, strict=True)], gold, self.kind == "pairs")


def _parts(kind: Kind, item: dict[str, Any], delimiter: str) -> tuple[str, str]:
    """The text of an item with its right answer, before and after the place where the scored part begins."""
    if kind == "multiple_choice":
        return f"{item['query']}{delimiter}", str(item["choices"][item["gold"]])
    if kind == "schema":
        return f"{item['context_options'][item['gold']]}{delimiter}", str(item["continuation"])
    return f"{item['context'].strip()}{delimiter}", str(item["continuation"])


def common_prefix(sequences: Sequence[Sequence[int]]) -> int:
    """Length of the longest common beginning.

    >>> common_prefix([[1, 2, 3], [1, 2, 4, 5]])
    2
    """
    length = min(map(len, sequences))
    return next((place for place in range(length) if len({some[place] for some in sequences}) > 1), length)


def core(bundle: str | Path, max_per_task: int | None = None) -> Iterator[Task]:
    """The tasks of CORE in an `eval_bundle` folder, one by one; items are shuffled, then cut to `max_per_task`.

    Raises FileNotFoundError for a missing file and UserError for a line that is no item of its task.
    """
    import yaml

    checks.raise_if("core", [None if max_per_task is None else checks.check_int("max_per_task", max_per_task)])
    bundle = Path(bundle)
    with (bundle / "eval_meta_data.csv").open(encoding="utf-8") as file:
        chance = {row["Eval Task"]: float(row["Random baseline"]) / 100 for row in csv.DictReader(file)}
    for entry in yaml.safe_load((bundle / "core.yaml").read_text(encoding="utf-8"))["icl_tasks"]:
        kind = entry["icl_task_type"]
        items = read_items(bundle / "eval_data" / entry["dataset_uri"], kind)
        random.Random(1337).shuffle(items)
        yield Task(entry["label"], kind, items[:max_per_task], chance[entry["label"]], entry["num_fewshot"][0],
                   entry.get("continuation_delimiter", " "))


def fetch_bundle(folder: str | Path, url: str = BUNDLE) -> Path:
    """Download nanochat's public `eval_bundle` into `folder`, unless it is there; ConnectionError without a network."""
    folder = Path(folder)
    if folder.is_dir():
        return folder
    try:
        with urllib.request.urlopen(url, timeout=60) as answer:
            packed = io.BytesIO(answer.read())
    except OSError as error:
        raise ConnectionError(f"can't fetch {url} ({error}): run it again with a network, or unpack "
                              f"eval_bundle.zip into {folder}") from error
    with write_folder(folder, ()) as part, tempfile.TemporaryDirectory(dir=folder.parent) as unpacked:
        zipfile.ZipFile(packed).extractall(unpacked)
        for path in next(Path(unpacked).glob("*/core.yaml")).parent.iterdir():
            path.replace(part / path.name)
    return folder


def minimal_pairs(folder: str | Path, max_per_task: int | None = None) -> Iterator[Task]:
    """The tasks of a folder of minimal pairs in BLiMP's format, a file each; the first `max_per_task` items of each."""
    files = sorted(Path(folder).glob("*.jsonl"))
    if not files:
        raise FileNotFoundError(f"no minimal pairs in {folder}: it holds no .jsonl")
    for file in files:
        yield Task(file.stem, "pairs", read_items(file, "pairs")[:max_per_task], 0.5)


def read_items(file: Path, kind: Kind) -> list[dict[str, Any]]:
    """The items of a task file, one JSON object a line; UserError for a line that is none of its kind."""
    checks.raise_if(str(file), [checks.check_choice("kind", kind, _FIELDS)])
    items = []
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            item = dict(json.loads(line))
        except (ValueError, TypeError) as error:
            raise UserError(f"line {number} of {file} is no item ({error}): restore the file") from None
        if wrong := _wrong(item, _FIELDS[kind]):
            raise UserError(f"line {number} of {file} {wrong}: restore the file")
        items.append(item)
    return items


def _wrong(item: dict[str, Any], fields: dict[str, type]) -> str | None:
    """Problem with `item` as an item of these fields; None if there is none."""
    for name, kind in fields.items():
        if name not in item:
            return f"lacks {name}"
        value = item[name]
        if not isinstance(value, kind) or (kind is list and not all(isinstance(choice, str) for choice in value)):
            return f"has {name}={value!r:.60}, not a {'list of strings' if kind is list else kind.__name__}"
    choices = item.get("choices" if "choices" in fields else "context_options", [])
    if "gold" in fields and not 0 <= item["gold"] < len(choices):
        return f"lacks a choice number {item['gold']}"
    return None

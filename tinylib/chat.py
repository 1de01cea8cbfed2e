"""Chat: fine-tuning on conversations, answers with their history, a terminal, and an evaluation of answers."""

from __future__ import annotations

import dataclasses
import json
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

import torch
from torch.nn.utils.rnn import pad_sequence

from tinylib.checks import UserError
from tinylib.config import TrainConfig
from tinylib.evaluate import bootstrap
from tinylib.generate import check_tokenizer, generate_batch
from tinylib.model import GPT
from tinylib.sampling import Sampling
from tinylib.tokenizer import Tokenizer, check_messages, in_answer, render, render_prompt

if TYPE_CHECKING:
    import pandas as pd

    from tinylib.corpus import Document


def fine_tuning(base: TrainConfig, checkpoint: str | Path, *, lr_scale: float = 1.0, **changes: object) -> TrainConfig:
    """Configuration that fine-tunes `checkpoint` of a run of `base`: its learning rates times `lr_scale`, falling to 0.

    `changes` are fields of TrainConfig, such as `data`, `run_dir` and `steps`.  With 0.3 the answers of micro are
    nearly as good, and less of the documents is forgotten (benchmarks/RESULTS.md, "Fine-tuning").
    """
    rates = {name: getattr(base, name) * lr_scale for name in
             ("embedding_lr", "unembedding_lr", "tied_lr", "matrix_lr")}
    return dataclasses.replace(base, init_from=str(checkpoint), init_state=False, warmup_fraction=0.0,
                               warmdown_fraction=1.0, **rates, **changes)


class Chat:
    """A conversation with a model: `ask` streams an answer, and both turns become history.

    The oldest questions and answers are left out of the prompt when the context is full.
    """

    def __init__(self, model: GPT, tokenizer: Tokenizer, sampling: Sampling | None = None) -> None:
        """Raises UserError if the model lacks ids of the tokenizer."""
        check_tokenizer(model, tokenizer)
        self.model, self.tokenizer, self.sampling = model, tokenizer, sampling or Sampling()
        self.messages: list[dict[str, str]] = []

    def ask(self, question: str) -> Iterator[str]:
        """Pieces of the answer; an answer that is stopped early stays in the history as far as it came."""
        messages = [*self.messages, {"role": "user", "content": question}]
        ids = render_prompt(self.tokenizer, messages, room(self.model, self.sampling.max_tokens))
        sampling = dataclasses.replace(self.sampling, seed=self.sampling.seed + len(messages))
        answer = {"role": "assistant", "content": ""}
        self.messages = [*messages, answer]
        for _, piece in generate_batch(self.model, self.tokenizer, [ids], [sampling]):
            answer["content"] += piece
            yield piece


def room(model: GPT, max_tokens: int) -> int:
    """Most ids of a prompt that leave the context room for an answer of `max_tokens`, or half of the context."""
    return model.config.seq_len - min(max_tokens, model.config.seq_len // 2)


# Terminal

HELP = """/reset begins a new conversation, /temperature 0.5 sets how random answers are (0: not at all), /quit or \
ctrl-D ends.
A line that ends with \\ goes on in the next one.  Ctrl-C stops an answer."""
_CONTROL = re.compile(r"[^\S \n\t]|[\x00-\x08\x0e-\x1f\x7f-\x9f]")


def terminal(chat: Chat, lines: Callable[[], str], out: TextIO | None = None) -> None:
    """Answer each question of `lines` on `out` (None: stdout); what begins with / is a command, EOFError is the end.

    Control characters in an answer are shown as U+FFFD, because a terminal would obey them.
    """
    out = out or sys.stdout
    while True:
        try:
            question = _question(lines)
        except KeyboardInterrupt:
            continue
        except EOFError:
            return
        try:
            if question.startswith("/"):
                if not _command(chat, question, out):
                    return
            elif question.strip():
                for piece in chat.ask(question):
                    print(_CONTROL.sub("\ufffd", piece), end="", file=out, flush=True)
                print(file=out, flush=True)
        except KeyboardInterrupt:
            print(" (stopped)", file=out, flush=True)
        except UserError as error:
            print(f"error: {error}", file=out, flush=True)


def _question(lines: Callable[[], str]) -> str:
    """The next question, of several lines if they end with a backslash."""
    question = lines()
    while question.endswith("\\"):
        question = f"{question[:-1]}\n{lines()}"
    return question


def _command(chat: Chat, line: str, out: TextIO) -> bool:
    """Carry out a command; False for the one that ends the chat."""
    name, _, value = line.partition(" ")
    if name == "/reset":
        chat.messages = []
    elif name == "/temperature":
        try:
            chat.sampling = dataclasses.replace(chat.sampling, temperature=float(value))
        except ValueError as error:
            raise UserError(f"/temperature {value}: {error}") from None
    elif name != "/quit":
        print(HELP, file=out, flush=True)
    return name != "/quit"


def reader(prompt: str = "> ") -> Callable[[], str]:
    """The next line of standard input: with history and editing in a terminal, as it is from a pipe."""
    if not sys.stdin.isatty():
        def line() -> str:
            if text := sys.stdin.readline():
                return text.rstrip("\n")
            raise EOFError
        return line
    from prompt_toolkit import PromptSession

    return PromptSession(prompt).prompt


# Evaluation

def quiz(model: GPT, tokenizer: Tokenizer, documents: Sequence[Document], max_tokens: int = 64,
         batch_size: int = 16) -> pd.DataFrame:
    """Greedy answers to every question of conversations, whose earlier turns are given; one row a question.

    Columns: `conversation`, its index; `turn`, from 1; `question`, `reference`, `answer`; `exact`, whether the answer
    is the reference; `overlap`, its F1 of words; `bits` that the model needs for the reference, and its `bytes`.  A
    conversation that is longer than the context is left out; UserError if that leaves none.
    """
    import pandas as pd

    check_tokenizer(model, tokenizer)
    rows, prompts, rendered = [], [], []
    for number, document in enumerate(documents):
        turns = check_messages(json.loads(document.text))
        ids = render(tokenizer, turns)
        if len(ids) > model.config.seq_len:
            continue
        rendered.append(ids)
        for place in range(1, len(turns), 2):
            rows.append({"conversation": number, "turn": (place + 1) // 2,
                         "question": turns[place - 1]["content"], "reference": turns[place]["content"], "answer": ""})
            prompts.append(render_prompt(tokenizer, turns[:place]))
    if not rows:
        raise UserError("no conversation fits into the context: use shorter ones")
    how = Sampling(max_tokens=max_tokens, temperature=0)
    for index, piece in generate_batch(model, tokenizer, prompts, [how] * len(prompts), batch_size):
        rows[index]["answer"] += piece
    table = pd.DataFrame(rows)
    table["exact"] = table.answer.str.strip() == table.reference.str.strip()
    table["overlap"] = [overlap(answer, reference) for answer, reference in zip(table.answer, table.reference,
                                                                               strict=True)]
    return table.join(pd.DataFrame(_answer_bits(model, tokenizer, rendered, batch_size), columns=["bits", "bytes"]))


def overlap(answer: str, reference: str) -> float:
    """F1 of the words of an answer: the harmonic mean of precision and recall, without regard to case and order.

    Source: Rajpurkar et al. 2016, "SQuAD", https://arxiv.org/abs/1606.05250, section 6.1.

    >>> overlap("Return the path.", "Return a path."), overlap("", "Return")
    (0.6666666666666666, 0.0)
    """
    ours, theirs = (Counter(re.findall(r"\w+", text.lower())) for text in (answer, reference))
    return 2 * (ours & theirs).total() / max(1, ours.total() + theirs.total())


@torch.no_grad()
def _answer_bits(model: GPT, tokenizer: Tokenizer, conversations: Sequence[list[int]],
                 batch_size: int) -> Iterator[tuple[float, int]]:
    """Bits and bytes of the text of each answer."""
    bytes_V = torch.from_numpy(tokenizer.token_bytes)
    start = tokenizer.special_ids["<|assistant_start|>"]
    for first in range(0, len(conversations), batch_size):
        ids_BT = pad_sequence([torch.tensor(ids) for ids in conversations[first:first + batch_size]], batch_first=True,
                              padding_value=tokenizer.bos)
        x_BT, y_BT = ids_BT[:, :-1], ids_BT[:, 1:]
        nats_BT = model(x_BT.to(model.device), y_BT.to(model.device), reduction="none").view_as(y_BT).cpu().double()
        size_BT = bytes_V[y_BT] * torch.from_numpy(in_answer(tokenizer, x_BT.numpy()))
        bits_BT = nats_BT * (size_BT > 0) / torch.log(torch.tensor(2.0))
        turn_BT = (x_BT == start).cumsum(1)
        for row, turns in enumerate(turn_BT[:, -1].tolist()):
            for turn in range(1, turns + 1):
                inside_T = turn_BT[row] == turn
                yield float(bits_BT[row, inside_T].sum()), int(size_BT[row, inside_T].sum())


def gain(before: pd.DataFrame, after: pd.DataFrame) -> pd.DataFrame:
    """Paired comparison of two tables of `quiz` on the same conversations; the intervals are over conversations.

    Rows: share of exact matches, mean overlap, bits per byte of the answers.
    """
    import pandas as pd

    if list(before.reference) != list(after.reference):
        raise UserError("before and after are answers to different questions: give both models the same documents")
    rows = {}
    for name, values, sizes in (("exact match", "exact", None), ("overlap (F1)", "overlap", None),
                                ("bits per byte", "bits", "bytes")):
        each = pd.DataFrame({"before": before[values].astype(float), "after": after[values].astype(float),
                             "size": before[sizes] if sizes else 1}).groupby(before.conversation).sum()
        low, high = bootstrap(each.after - each.before, each["size"])
        total = each.sum()
        rows[name] = {"before": total.before / total["size"], "after": total.after / total["size"],
                      "difference": (total.after - total.before) / total["size"], "low": low, "high": high}
    return pd.DataFrame.from_dict(rows, orient="index")

"""Verbs for text: corpus fetch; tokenize train, shards, conversations, eval."""

from __future__ import annotations

import sys
import time
from pathlib import Path

from tinylib import corpus as documents
from tinylib import profiles
from tinylib.cli import tables
from tinylib.cli.verbs import App, CorpusName, Result, app, verb
from tinylib.corpus import SPLITS, load
from tinylib.shards import Shards, build, build_conversations
from tinylib.tokenizer import Tokenizer, report

corpora, tokenize = App(), App()
app.command(corpora, name="corpus", help="Text on this machine: fetch NAME.")
app.command(tokenize, name="tokenize", help="Tokenizer and token shards: train, shards, conversations, eval.")


@verb(corpora)
def fetch(name: str, shards: int | None = None, column: str | None = None, refresh: bool = False) -> Result:
    """Download or harvest a corpus, whole, and list its splits.

    Args:
        name: pydocs, pydocs-stdlib, pysource, pyqa, pyqa-stdlib, fineweb-edu, climbmix, smoltalk, owner/name of a data
            set of the hub, or a path
        shards: training files of a data set of the hub to fetch; remembered, at first 15
        column: column of a parquet file, or field of a JSON line, that holds the text; remembered, at first "text"
        refresh: harvest a built-in corpus again, or take the newest revision on the hub
    """
    manifest = documents.fetch(name, shards=shards, column=column, refresh=refresh)
    return Result(manifest, tables.facts(documents.table(manifest)))


@verb(tokenize)
def train(corpus: CorpusName = None, vocab_size: int | None = None, max_chars: int | None = None,
          tokenizer: Path | None = None, column: str | None = None) -> Result:
    """Train a tokenizer on the training split of a corpus; defaults are the profile's.

    Args:
        vocab_size: tokens, special ones included
        max_chars: most characters to train on
        tokenizer: folder to write
    """
    profile, began_s = profiles.profile(), time.perf_counter()
    folder, texts = tokenizer or profile.tokenizer, load(corpus or profile.corpus, column=column).texts("train")
    learned = Tokenizer.train(texts, vocab_size or profile.train.model.vocab_size, max_chars=max_chars,
                              progress=sys.stderr.isatty())
    learned.save(folder)
    return Result({"tokenizer": folder, "vocab_size": learned.vocab_size, "fingerprint": learned.fingerprint,
                   "seconds": time.perf_counter() - began_s})


@verb(tokenize)
def shards(corpus: CorpusName = None, tokenizer: Path | None = None, shards: Path | None = None,
           processes: int | None = None, column: str | None = None) -> Result:
    """Encode a corpus into token shards, without the parts that a killed call finished; defaults are the profile's.

    Args:
        shards: folder to write
        processes: processes that encode; None takes one a core
    """
    profile = profiles.profile()
    source, folder = load(corpus or profile.corpus, column=column), shards or profile.shards
    build({split: source.texts(split) for split in SPLITS}, Tokenizer.load(tokenizer or profile.tokenizer), folder,
          processes=processes, progress=True)
    return _counts(folder)


@verb(tokenize)
def conversations(corpus: CorpusName = None, tokenizer: Path | None = None, shards: Path | None = None,
                  seq_len: int | None = None, column: str | None = None) -> Result:
    """Pack conversations into token shards whose targets are the answers, to fine-tune on; defaults are the profile's.

    Args:
        tokenizer: folder of the tokenizer of the model that is fine-tuned
        shards: folder to write
        seq_len: context of that model
    """
    profile = profiles.profile()
    source, folder = load(corpus or profile.conversations, column=column), shards or profile.chat_shards
    build_conversations({split: source.documents(split) for split in SPLITS},
                        Tokenizer.load(tokenizer or profile.tokenizer), folder, seq_len or profile.train.model.seq_len)
    return _counts(folder)


def _counts(folder: Path) -> Result:
    return Result({"shards": folder} | {f"{split}_{count}": getattr(Shards(folder, split), count)
                                        for split in SPLITS for count in ("tokens", "documents")})


@verb(tokenize, name="eval")
def evaluate(corpus: CorpusName = None, tokenizer: Path | None = None, column: str | None = None) -> Result:
    """Compression of the tokenizer by kind of text, and what other vocabularies of a corpus would cost the model."""
    from tinylib.course.samples import kinds

    profile = profiles.profile()
    source = load(corpus or profile.corpus, column=column)
    return Result(*report(Tokenizer.load(tokenizer or profile.tokenizer), source.texts("train"), source.texts("val"),
                          profile.train.model, kinds()))

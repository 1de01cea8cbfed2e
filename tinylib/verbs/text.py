"""Verbs of text: corpus, tokenize."""

from __future__ import annotations

import sys
import time
from pathlib import Path

from tinylib import profiles
from tinylib.flags import parse, part
from tinylib.verbs import Result, show


def corpus(arguments: list[str]) -> Result:
    """fetch NAME: make sure that a corpus is on this machine, and say what it is"""
    return parse(part("corpus", arguments, fetch=_corpus_fetch), arguments[1:])


def _corpus_fetch(name: str, shards: int | None = None, column: str | None = None, refresh: bool = False) -> Result:
    """Make sure that NAME is here, whole: pydocs, pydocs-stdlib, pysource, fineweb-edu, climbmix, owner/name, a path.

    Args:
        shards: how many training files of a data set of the hub to fetch; remembered, at first 15
        column: which column of a parquet file, or field of a JSON line, holds the text; remembered, at first text
        refresh: harvest a built-in corpus anew, or take the newest revision on the hub
    """
    from tinylib import corpus

    manifest = corpus.fetch(name, shards=shards, column=column, refresh=refresh)
    counts = {f"{split} {count}": f"{facts[count]:,}" for split, facts in manifest["splits"].items()
              for count in ("documents", "characters")}
    show(counts | {name: manifest[name] for name in ("split", "licence", "revision", "sha256") if name in manifest})
    return manifest


def tokenize(arguments: list[str]) -> Result:
    """train: learn a vocabulary; shards: encode a corpus with it; eval: what it does to text and model"""
    chosen = part("tokenize", arguments, train=_tokenize_train, shards=_tokenize_shards, eval=_tokenize_eval)
    return parse(chosen, arguments[1:])


def _tokenize_train(corpus: str | None = None, vocab_size: int | None = None, max_chars: int | None = None,
                    tokenizer: Path | None = None, column: str | None = None) -> Result:
    """Learn a vocabulary from the training split of a corpus; what isn't given is the profile's.

    Args:
        column: as of corpus fetch, whose word stands if it is not given
    """
    from tinylib.corpus import load
    from tinylib.tokenizer import Tokenizer

    profile = profiles.profile()
    began, folder = time.perf_counter(), tokenizer or profile.tokenizer
    learned = Tokenizer.train(load(corpus or profile.corpus, column=column).texts("train"), vocab_size or
                              profile.train.model.vocab_size, max_chars=max_chars, progress=sys.stderr.isatty())
    learned.save(folder)
    result = {"tokenizer": folder, "vocab_size": learned.vocab_size, "fingerprint": learned.fingerprint,
              "seconds": round(time.perf_counter() - began, 1)}
    show(result)
    return result


def _tokenize_shards(corpus: str | None = None, tokenizer: Path | None = None, shards: Path | None = None,
                     processes: int | None = None, column: str | None = None) -> Result:
    """Encode a corpus into token shards; parts that a killed call finished are skipped; defaults are the profile's.

    Args:
        processes: how many encode, one a core if not given
        column: as of corpus fetch, whose word stands if it is not given
    """
    from tinylib.corpus import SPLITS, load
    from tinylib.shards import Shards, build
    from tinylib.tokenizer import Tokenizer

    profile = profiles.profile()
    source, folder = load(corpus or profile.corpus, column=column), shards or profile.shards
    build({split: source.texts(split) for split in SPLITS}, Tokenizer.load(tokenizer or profile.tokenizer), folder,
          processes=processes, progress=True)
    result = {"shards": folder} | {f"{split}_{count}": getattr(Shards(folder, split), count)
                                   for split in SPLITS for count in ("tokens", "documents")}
    show(result)
    return result


def _tokenize_eval(corpus: str | None = None, tokenizer: Path | None = None, column: str | None = None) -> Result:
    """How short the tokenizer makes text by its kind, and what other vocabularies of a corpus would do to the model.

    Args:
        column: as of corpus fetch, whose word stands if it is not given
    """
    from tinylib.corpus import load
    from tinylib.course.samples import kinds
    from tinylib.tokenizer import Tokenizer, report

    profile = profiles.profile()
    source = load(corpus or profile.corpus, column=column)
    found = report(Tokenizer.load(tokenizer or profile.tokenizer), source.texts("train"), source.texts("val"),
                   profile.train.model, kinds=kinds())
    print(found)
    return found.facts()

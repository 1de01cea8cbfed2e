"""The command line, `python -m tinylib VERB`: thin, its flags are the fields and parameters of the library.

Every verb that ends by itself prints a table for people and, as the last line of stdout, one JSON object.
Exit code 0: done.  1: it can't be done, said in one line.  2: the command is wrong.
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tinylib.config import PRESETS, GPTConfig
from tinylib.flags import parse, part, taken, train_command, train_config, with_model

if TYPE_CHECKING:
    import pandas as pd

    from tinylib import launch

Result = dict[str, Any]
USER_ERRORS = (ValueError, OSError, RuntimeError)


def main(arguments: list[str] | None = None) -> int:
    """Run one verb; returns the exit code."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(_overview())
        return 0
    if arguments[0] not in VERBS:
        print(f"verb={arguments[0]!r} is not known: use one of {', '.join(VERBS)}", file=sys.stderr)
        return 2
    try:
        result = VERBS[arguments[0]](arguments[1:])
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except USER_ERRORS as error:
        if not _is_users(error):
            raise
        print(f"error: {error}", file=sys.stderr)
        return 1
    if result is not None:
        print(json.dumps(result, default=_plain))
        return int(result.get("ok") is False)
    return 0


def _is_users(error: BaseException) -> bool:
    """Whether `error` tells the user what to change; a RuntimeError of a library is a programmer's, but for a run's."""
    return not isinstance(error, RuntimeError) or type(error).__module__.startswith("tinylib.")


def _overview() -> str:
    lines = [f"  {name:<10} {str(verb.__doc__).splitlines()[0]}" for name, verb in VERBS.items()]
    return "\n".join(["python -m tinylib VERB [--help]", "", *lines, "",
                      f"--model is one of {', '.join(PRESETS)}; the other flags change it."])


def _plain(value: Any) -> Any:
    """What JSON lacks: paths, dataclasses and numpy's numbers."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    return value.item() if hasattr(value, "item") else str(value)


def _show(rows: dict[str, Any] | pd.DataFrame) -> None:
    """A table for people."""
    import pandas as pd

    table = rows if isinstance(rows, pd.DataFrame) else pd.Series(rows, dtype=object).to_frame()
    print(table.to_string(header=isinstance(rows, pd.DataFrame)))


# The verbs

def size(arguments: list[str]) -> Result:
    """parameters, FLOPs and bytes of a model"""
    return with_model(_size, arguments)


def _size(config: GPTConfig, batch_size: int = 1) -> Result:
    """Parameters, FLOPs and bytes of a model; activations and logits of BATCH_SIZE sequences, in float32."""
    from tinylib import sizing

    facts = sizing.sheet(config, batch_size)
    shares = {f"{part}_percent": round(percent, 2) for part, percent in sizing.parameters(config).split.items()}
    names = [name for name, preset in PRESETS.items() if preset == config]
    run = {name: vars(sizing.PUBLISHED[name]) for name in names if name in sizing.PUBLISHED}
    _show({**{name: f"{value:,}" for name, value in facts.items()}, **shares,
           **{f"published {name}": value for facts in run.values() for name, value in facts.items()}})
    return {**facts, **shares, "published": run, "config": config}


def search(arguments: list[str]) -> Result:
    """shapes of a given size, the best balanced first"""
    from tinylib import sizing

    found = parse(sizing.search, arguments)
    best, short = found.head(12).set_axis(range(1, min(12, len(found)) + 1)), sizing.findings(found)
    _show(best[["preset", "depth", "dim", "vocab_size", "total", "blocks_percent", "off_percent", "per_layer",
                "flops_per_token", "decode_bytes", "pareto"]].round(2))
    print("", *(f"{rank:>2}  {text}" for rank, text in best["trades"].items()), "", *short, sep="\n")
    return {"found": len(found), "pareto": int(found["pareto"].sum()), "findings": short,
            "candidates": best.to_dict("records"), "missed": sizing.missed(found).head(12).to_dict("records")}


def plan(arguments: list[str]) -> Result:
    """what training a model takes: tokens, steps, memory, time and cost, here and on other hardware"""
    from tinylib import sizing

    made = with_model(sizing.plan, arguments)
    elsewhere = sizing.plans(made.config, nproc_per_node=made.nproc_per_node, nnodes=made.nnodes, tokens=made.tokens,
                             total_batch_size=made.total_batch_size, mfu=made.utilisation)
    reported = {f"published: {run.holds}": f"{run.hours} h and ${run.usd}; planned here: {made.train_s / 3600:.1f} h"
                for name, run in sizing.PUBLISHED.items() if PRESETS[name] == made.config}
    command = train_command(made)
    _show(made.table().to_dict() | {"capability": sizing.tier(made.flops)} | reported)
    print(f"\n{command}\n")
    _show(elsewhere.drop(columns="source of the peak").map(
        lambda value: "" if value != value else f"{value:.3g}" if isinstance(value, float) else value))
    return made.figures() | {"command": command, "elsewhere": elsewhere.to_dict("index")}


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
    _show(counts | {name: manifest[name] for name in ("split", "licence", "revision", "sha256") if name in manifest})
    return manifest


def tokenize(arguments: list[str]) -> Result:
    """train: learn a vocabulary; shards: encode a corpus with it; eval: what it does to text and model"""
    chosen = part("tokenize", arguments, train=_tokenize_train, shards=_tokenize_shards, eval=_tokenize_eval)
    return parse(chosen, arguments[1:])


def _tokenize_train(corpus: str | None = None, vocab_size: int | None = None, max_chars: int | None = None,
                    tokenizer: Path | None = None) -> Result:
    """Learn a vocabulary from the training split of a corpus; what isn't given is the profile's."""
    from tinylib import hardware
    from tinylib.corpus import load
    from tinylib.tokenizer import Tokenizer

    profile = hardware.profile()
    began, folder = time.perf_counter(), tokenizer or profile.tokenizer
    learned = Tokenizer.train(load(corpus or profile.corpus).texts("train"), vocab_size or
                              profile.train.model.vocab_size, max_chars=max_chars, progress=sys.stderr.isatty())
    learned.save(folder)
    result = {"tokenizer": folder, "vocab_size": learned.vocab_size, "fingerprint": learned.fingerprint,
              "seconds": round(time.perf_counter() - began, 1)}
    _show(result)
    return result


def _tokenize_shards(corpus: str | None = None, tokenizer: Path | None = None, shards: Path | None = None,
                     processes: int | None = None, fresh: bool = False) -> Result:
    """Encode both splits of a corpus into token shards, going on where a killed call stopped unless FRESH; what isn't
    given is the profile's, PROCESSES one a core."""
    from tinylib import hardware
    from tinylib.corpus import SPLITS, load
    from tinylib.shards import Shards, build
    from tinylib.tokenizer import Tokenizer

    profile = hardware.profile()
    source, folder = load(corpus or profile.corpus), shards or profile.shards
    build({split: source.texts(split) for split in SPLITS}, Tokenizer.load(tokenizer or profile.tokenizer), folder,
          processes=processes, fresh=fresh, progress=True)
    result = {"shards": folder} | {f"{split}_{count}": getattr(Shards(folder, split), count)
                                   for split in SPLITS for count in ("tokens", "documents")}
    _show(result)
    return result


def _tokenize_eval(corpus: str | None = None, tokenizer: Path | None = None) -> Result:
    """How short the tokenizer makes text by its kind, and what other vocabularies of a corpus would do to the model."""
    from tinylib import hardware
    from tinylib.corpus import load
    from tinylib.tokenizer import Tokenizer, report

    profile = hardware.profile()
    source = load(corpus or profile.corpus)
    found = report(Tokenizer.load(tokenizer or profile.tokenizer), source.texts("train"), source.texts("val"),
                   profile.train.model)
    print(found)
    return found.facts()


def train(arguments: list[str]) -> Result | None:
    """train a model, in this process or as one rank of torchrun; --resume goes on from the newest checkpoint"""
    named, rest = taken(arguments, flags=("--resume",))
    config = train_config(rest)
    if os.environ.get("TINYLIB_RANK_LOGS") == "1":
        _redirect(config.run)
    from tinylib.train import train as run

    summary = run(config, resume=named["resume"])
    if int(os.environ.get("RANK", "0")) != 0:
        return None
    result = dataclasses.asdict(summary)
    _show(result)
    return result


def _redirect(folder: str) -> None:
    """Send what this rank prints, by whatever means, to its own log."""
    from tinylib.rundir import RunDirectory

    log = RunDirectory(folder).log_file(int(os.environ.get("RANK", "0")))
    log.parent.mkdir(parents=True, exist_ok=True)
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(file, 1)
    os.dup2(file, 2)
    os.close(file)


def evaluate(arguments: list[str]) -> Result:
    """bits per byte of a run's newest checkpoint on held-out documents"""
    return parse(_eval, arguments)


def _eval(run: str, split: str = "val", max_tokens: int | None = None, batch_size: int = 8) -> Result:
    """Bits per byte of the newest checkpoint of RUN, a run directory or the name of one."""
    from tinylib.evaluate import score
    from tinylib.launch import attach
    from tinylib.shards import Shards

    chosen = attach(run)
    shards = Shards(chosen.directory.read_config()["train"]["data"], split)
    found = score(chosen.model(), shards, max_tokens=max_tokens, batch_size=batch_size)
    result = {"run": chosen.directory.path, "checkpoint": chosen.directory.checkpoint().name, "split": split,
              "bits_per_byte": found.bits_per_byte, "tokens": found.tokens}
    _show(result)
    return result


def sample(arguments: list[str]) -> Result:
    """text that a run's newest checkpoint writes"""
    return parse(_sample, arguments)


def _sample(run: str, prompt: str = "", max_tokens: int = 200, temperature: float = 0.8, top_k: int | None = 50,
            seed: int = 0) -> Result:
    """Continue the prompt with the newest checkpoint of RUN, a run directory or the name of one."""
    from tinylib.generate import generate
    from tinylib.launch import attach
    from tinylib.tokenizer import Tokenizer

    chosen = attach(run)
    tokenizer = Tokenizer.load(chosen.directory.checkpoint() / "tokenizer")
    written = []
    print(prompt, end="")
    for piece in generate(chosen.model(), tokenizer, prompt, max_tokens=max_tokens, temperature=temperature,
                          top_k=top_k, seed=seed):
        print(piece, end="", flush=True)
        written.append(piece)
    print()
    return {"run": chosen.directory.path, "prompt": prompt, "text": "".join(written), "seed": seed}


def export(arguments: list[str]) -> Result:
    """a run's newest checkpoint as a folder that transformers loads"""
    return parse(_export, arguments)


def _export(run: str, out: Path) -> Result:
    """Write the newest checkpoint of RUN, a run directory or the name of one, for transformers into the folder OUT."""
    from tinylib.export import export_transformers
    from tinylib.launch import attach

    checkpoint = attach(run).directory.checkpoint()
    result = {"checkpoint": checkpoint, "out": export_transformers(checkpoint, out)}
    _show(result)
    return result


def runs(arguments: list[str]) -> Result:
    """the runs of this machine: state, step, loss, bits per byte, age"""
    return parse(_runs, arguments)


def _runs(folder: Path | None = None) -> Result:
    """The runs in FOLDER, by default those of every profile."""
    import pandas as pd

    from tinylib import hardware, launch

    found = launch.runs(folder or hardware.home() / "runs")
    rows = [_facts(run) for run in found]
    _show(pd.DataFrame(rows).fillna("")) if rows else print("no runs yet")
    return {"runs": rows}


def _facts(run: launch.Run) -> Result:
    step, evaluation = run.directory.last("step") or {}, run.directory.last("eval") or {}
    age_s = time.time() - run.directory.config.stat().st_mtime
    return {"run": f"{run.directory.path.parent.name}/{run.directory.name}", "state": run.state,
            "step": step.get("step"), "loss": step.get("loss"), "val_bpb": evaluation.get("val_bpb"),
            "age_min": round(age_s / 60, 1)}


def doctor(arguments: list[str]) -> Result:
    """what this machine has, what is missing, and what to do about it"""
    return parse(_doctor, arguments)


def _doctor() -> Result:
    """What this machine has, what is missing, and what to do about it; exit code 1 if the course can't run."""
    from tinylib import hardware

    checks = hardware.doctor()
    for check in checks:
        print(f"{check.state:<8} {check.name:<10} {check.detail}")
    return {"ok": all(check.state != "error" for check in checks), "checks": [vars(check) for check in checks]}


def course(arguments: list[str]) -> Result:
    """run the notebooks in order; ends with a report and a table"""
    return parse(_course, arguments)


def _course(profile: str | None = None) -> Result:
    """Run the notebooks in order in PROFILE: smoke, cpu or gpu, by default what fits this machine."""
    from tinylib import course

    return course.run(profile)


VERBS: dict[str, Callable[[list[str]], Result | None]] = {
    "size": size, "search": search, "plan": plan, "corpus": corpus, "tokenize": tokenize,
    "train": train, "eval": evaluate, "sample": sample, "export": export,
    "runs": runs, "course": course, "doctor": doctor}

if __name__ == "__main__":
    sys.exit(main())

"""The command line, `python -m tinylib VERB`: thin, its flags are the fields and parameters of the library.

Every verb that ends by itself prints a table for people and, as the last line of stdout, one JSON object.
Exit code 0: done.  1: it can't be done, said in one line.  2: the command is wrong.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import os
import sys
import time
import types
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tinylib.config import PRESETS, GPTConfig, TrainConfig, from_dict

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


# From flags to values

def _parse(target: Any, arguments: list[str], **options: Any) -> Any:
    """tyro on `target`, with whole numbers that may be written 4e9."""
    import tyro

    registry = tyro.constructors.ConstructorRegistry()

    @registry.primitive_rule
    def whole_number(info: Any) -> Any:
        if info.type is not int:
            return None
        return tyro.constructors.PrimitiveConstructorSpec(
            nargs=1, metavar="INT", instance_from_str=lambda words: _whole_number(words[0]),
            is_instance=lambda value: isinstance(value, int), str_from_instance=lambda value: [str(value)])

    function = getattr(target, "func", target)
    options.setdefault("prog", f"python -m tinylib {function.__name__.strip('_').replace('_', ' ')}")
    return tyro.cli(_without_return(target), args=arguments, registry=registry,
                    description=str(function.__doc__).split("\n\n")[0],
                    config=(tyro.conf.PositionalRequiredArgs,), **options)


def _without_return(target: Any) -> Any:
    """`target` without the annotation of its result, which may name a type that is only known to type checkers."""
    if not isinstance(target, types.FunctionType):
        return target

    copy = types.FunctionType(target.__code__, target.__globals__, target.__name__, target.__defaults__)
    copy.__kwdefaults__ = target.__kwdefaults__
    copy.__annotations__ = {name: kind for name, kind in target.__annotations__.items() if name != "return"}
    return copy


def _whole_number(word: str) -> int:
    """A whole number, also as people write large ones.

    >>> _whole_number("4e9"), _whole_number("24_576")
    (4000000000, 24576)
    """
    try:
        return int(word)
    except ValueError:
        value = float(word)
        if value != int(value):
            raise ValueError(f"{word} is not a whole number") from None
        return int(value)


class _Lenient:
    """Lets flags pass unchecked, so that the configuration made of them reports every problem, in one line."""

    def __post_init__(self) -> None:
        return


@dataclasses.dataclass(frozen=True)
class _ModelFlags(_Lenient, GPTConfig):
    """The model; --model NAME chooses the preset that the other flags change."""


@dataclasses.dataclass(frozen=True)
class _TrainFlags(_Lenient, TrainConfig, GPTConfig):
    """A training run; --model NAME chooses the preset that the other flags change, --config FILE a whole run."""

    model: None = dataclasses.field(init=False, default=None)    # type: ignore[assignment] - the flags of GPTConfig spell it out


def _taken(arguments: list[str], *options: str, flags: tuple[str, ...] = ()) -> tuple[dict[str, Any], list[str]]:
    """The values of `options` (and whether `flags` are given), and the other arguments."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for option in options:
        parser.add_argument(option)
    for flag in flags:
        parser.add_argument(flag, action="store_true")
    found, rest = parser.parse_known_args(arguments)
    return vars(found), rest


def _preset(name: str | None) -> GPTConfig:
    if name is not None and name not in PRESETS:
        raise ValueError(f"model={name!r} is not a preset: use one of {', '.join(PRESETS)}")
    return PRESETS[name or "goldilocks"]


def _fields(config: Any, kind: type) -> dict[str, Any]:
    return {field.name: getattr(config, field.name) for field in dataclasses.fields(kind)}


def _with_model(function: Callable[..., Any], arguments: list[str]) -> Any:
    """Call `function(config, …)` with the model that the flags say, and its own parameters as further flags."""
    if {"-h", "--help"} & set(arguments):
        _help(function.__name__.strip("_"), functools.partial(function, PRESETS["goldilocks"]), _ModelFlags)
    taken, rest = _taken(arguments, "--model")
    default = _ModelFlags(**_fields(_preset(taken["model"]), GPTConfig))
    flags, rest = _parse(_ModelFlags, rest, default=default, return_unknown_args=True)
    return _parse(functools.partial(function, GPTConfig(**_fields(flags, GPTConfig))), rest)


def _help(verb: str, *targets: Any) -> None:
    for target in targets:
        try:
            _parse(target, ["--help"], prog=f"python -m tinylib {verb}")
        except SystemExit:
            continue
    raise SystemExit(0)


def _train_config(arguments: list[str]) -> TrainConfig:
    """--config FILE (a TrainConfig, or the config.json of a run), or a preset with flags that change it."""
    if {"-h", "--help"} & set(arguments):
        _help("train", _TrainFlags)
    taken, rest = _taken(arguments, "--model", "--config")
    if taken["config"]:
        values = json.loads(Path(taken["config"]).read_text(encoding="utf-8"))
        if rest or taken["model"]:
            raise ValueError("config=FILE is the whole run and takes no other flag: change the file instead")
        return from_dict(TrainConfig, values.get("train", values))
    model = _preset(taken["model"])
    names = {field.name: field.default for field in dataclasses.fields(TrainConfig) if field.name != "model"}
    default = _TrainFlags(**_fields(model, GPTConfig), **names)
    flags = _parse(_TrainFlags, rest, default=default, prog="python -m tinylib train")
    return TrainConfig(model=GPTConfig(**_fields(flags, GPTConfig)), **{name: getattr(flags, name) for name in names})


# The verbs

def size(arguments: list[str]) -> Result:
    """parameters, FLOPs and bytes of a model"""
    return _with_model(_size, arguments)


def _size(config: GPTConfig) -> Result:
    """Parameters, FLOPs and bytes of a model."""
    from tinylib import sizing

    counts = sizing.parameters(config)
    parts = {"wte": counts.wte, "blocks": counts.blocks, "lm_head": counts.lm_head, "total": counts.total}
    shares = {f"{part}_percent": round(percent, 2) for part, percent in counts.split.items()}
    facts = {"total_tied": counts.total_tied, "flops_per_token": sizing.flops_per_token(config),
             "weight_bytes": sizing.weight_bytes(config), "optimizer_bytes": sizing.optimizer_bytes(config),
             "kv_cache_bytes": sizing.kv_cache_bytes(config)}
    _show({**{name: f"{value:,}" for name, value in parts.items()}, **shares,
           **{name: f"{value:,}" for name, value in facts.items()}})
    return {**parts, **shares, **facts, "config": config}


def search(arguments: list[str]) -> Result:
    """shapes of a given size, the best balanced first"""
    from tinylib import sizing

    found = _parse(sizing.search, arguments)
    _show(found.head(12)[["preset", "depth", "dim", "vocab_size", "total", "blocks_percent", "off_percent",
                          "per_layer", "flops_per_token"]].round(2))
    return {"found": len(found), "candidates": found.head(12).to_dict("records")}


def plan(arguments: list[str]) -> Result:
    """what training a model takes: tokens, steps, time and cost"""
    from tinylib import sizing

    made = _with_model(sizing.plan, arguments)
    _show(made.table().to_dict())
    return dataclasses.asdict(made)


def corpus(arguments: list[str]) -> Result:
    """fetch NAME: make sure that a corpus is on this machine, and say what it is"""
    return _parse(_part("corpus", arguments, fetch=_corpus_fetch), arguments[1:])


def _corpus_fetch(name: str, shards: int = 15, refresh: bool = False) -> Result:
    """Make sure that the corpus NAME (pydocs, pydocs-stdlib, pysource, fineweb-edu, climbmix, a path) is here, whole.

    Args:
        shards: how many training files of a data set of the hub to fetch
        refresh: harvest a built-in corpus anew
    """
    from tinylib import corpus

    manifest = corpus.fetch(name, shards=shards, refresh=refresh)
    splits = {split: {name: facts[name] for name in ("documents", "characters")}
              for split, facts in manifest["splits"].items()}
    _show({f"{split} {name}": f"{value:,}" for split, facts in splits.items() for name, value in facts.items()}
          | {"sha256": manifest["sha256"]})
    return {"name": manifest["name"], "splits": splits, "sha256": manifest["sha256"]}


def tokenize(arguments: list[str]) -> Result:
    """train: learn a vocabulary; shards: encode a corpus with it; eval: how short it makes text"""
    chosen = _part("tokenize", arguments, train=_tokenize_train, shards=_tokenize_shards, eval=_tokenize_eval)
    return _parse(chosen, arguments[1:])


def _part(verb: str, arguments: list[str], **parts: Callable[..., Result]) -> Callable[..., Result]:
    """The part of `verb` that the first argument names."""
    if not arguments or arguments[0] not in parts:
        given = repr(arguments[0]) if arguments else "nothing"
        raise ValueError(f"{given} is not a part of this verb: use " + ", ".join(f"{verb} {part}" for part in parts))
    return parts[arguments[0]]


def _tokenize_train(corpus: str | None = None, vocab_size: int | None = None, max_chars: int | None = None,
                    tokenizer: Path | None = None) -> Result:
    """Learn a vocabulary from the training split of a corpus; what isn't given is the profile's."""
    from tinylib import hardware
    from tinylib.corpus import load
    from tinylib.tokenizer import Tokenizer

    profile = hardware.profile()
    began, folder = time.perf_counter(), tokenizer or profile.tokenizer
    learned = Tokenizer.train(load(corpus or profile.corpus).texts("train"),
                              vocab_size or profile.train.model.vocab_size, max_chars=max_chars)
    learned.save(folder)
    result = {"tokenizer": folder, "vocab_size": learned.vocab_size, "fingerprint": learned.fingerprint,
              "seconds": round(time.perf_counter() - began, 1)}
    _show(result)
    return result


def _tokenize_shards(corpus: str | None = None, tokenizer: Path | None = None, shards: Path | None = None) -> Result:
    """Encode both splits of a corpus into token shards; what isn't given is the profile's."""
    from tinylib import hardware
    from tinylib.corpus import SPLITS, load
    from tinylib.shards import Shards, build
    from tinylib.tokenizer import Tokenizer

    profile = hardware.profile()
    source, folder = load(corpus or profile.corpus), shards or profile.shards
    build({split: source.texts(split) for split in SPLITS}, Tokenizer.load(tokenizer or profile.tokenizer), folder)
    found = {split: Shards(folder, split) for split in SPLITS}
    result = {"shards": folder} | {f"{split}_tokens": part.tokens for split, part in found.items()} | {
        f"{split}_documents": part.documents for split, part in found.items()}
    _show(result)
    return result


def _tokenize_eval(corpus: str | None = None, tokenizer: Path | None = None) -> Result:
    """How short the tokenizer makes the validation documents of a corpus; what isn't given is the profile's."""
    from tinylib import hardware
    from tinylib.corpus import load
    from tinylib.tokenizer import Tokenizer, compression

    profile = hardware.profile()
    result = compression(Tokenizer.load(tokenizer or profile.tokenizer), load(corpus or profile.corpus).texts("val"))
    _show({name: round(value, 3) for name, value in result.items()})
    return result


def train(arguments: list[str]) -> Result | None:
    """train a model, in this process or as one rank of torchrun; --resume goes on from the newest checkpoint"""
    taken, rest = _taken(arguments, flags=("--resume",))
    config = _train_config(rest)
    if os.environ.get("TINYLIB_RANK_LOGS") == "1":
        _redirect(config.run)
    from tinylib.train import train as run

    summary = run(config, resume=taken["resume"])
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
    return _parse(_eval, arguments)


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
    return _parse(_sample, arguments)


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


def runs(arguments: list[str]) -> Result:
    """the runs of this machine: state, step, loss, bits per byte, age"""
    return _parse(_runs, arguments)


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
    return _parse(_doctor, arguments)


def _doctor() -> Result:
    """What this machine has, what is missing, and what to do about it; exit code 1 if the course can't run."""
    from tinylib import hardware

    checks = hardware.doctor()
    for check in checks:
        print(f"{check.state:<8} {check.name:<10} {check.detail}")
    return {"ok": all(check.state != "error" for check in checks), "checks": [vars(check) for check in checks]}


def course(arguments: list[str]) -> Result:
    """run the notebooks in order; ends with a report and a table"""
    return _parse(_course, arguments)


def _course(profile: str | None = None) -> Result:
    """Run the notebooks in order in PROFILE: smoke, cpu or gpu, by default what fits this machine."""
    from tinylib import course

    return course.run(profile)


VERBS: dict[str, Callable[[list[str]], Result | None]] = {
    "size": size, "search": search, "plan": plan, "corpus": corpus, "tokenize": tokenize,
    "train": train, "eval": evaluate, "sample": sample, "runs": runs,
    "course": course, "doctor": doctor}

if __name__ == "__main__":
    sys.exit(main())

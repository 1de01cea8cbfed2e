"""Two commits side by side: whether losses are equal to the last bit, and the seconds of whole training steps.

    git worktree add ../old COMMIT
    python benchmarks/two_commits.py ../old losses
    python benchmarks/two_commits.py ../old seconds [--rounds 3] [--models nano micro goldilocks]

Each tree builds its own shards from the standard library's documentation and trains on them through its own command
line.  losses: 50 steps at nano and micro in float32, on 1 and 2 processes; token files and every loss must be equal.
seconds: compiled, one process on all cores, the trees in turn; medians of a run's steps without its first three, and
the median over rounds of their ratio.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from tinylib.config import PRESETS

HERE = Path(__file__).resolve().parent.parent
STEPS, BATCH = 50, 2048
CASES = [(name, tied, processes, compiled) for name in ("nano", "micro") for tied in (False, True)
         for processes in (1, 2) for compiled in ("off",)] + [("nano", False, 1, "on"), ("micro", False, 2, "on")]
SHARDS = """
import sys
from tinylib import corpus, shards
from tinylib.tokenizer import Tokenizer
source, folder = corpus.load("pydocs-stdlib"), sys.argv[1]
tokenizer = Tokenizer.train(source.texts("train"), int(sys.argv[2]))
shards.build({split: source.texts(split) for split in ("train", "val")}, tokenizer, folder)
"""


def in_tree(tree: Path, home: Path, *command: str, **variables: str) -> str:
    """Standard output of a Python command that imports tinylib from `tree`."""
    environment = {**os.environ, "PYTHONPATH": str(tree), "TINYLIB_HOME": str(home), **variables}
    done = subprocess.run([sys.executable, *command], cwd=tree, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{tree}: {' '.join(command)}\n{done.stdout}{done.stderr}")
    return done.stdout


def train(tree: Path, home: Path, name: str, tied: bool = False, processes: int = 1, compiled: str = "on",
          dtype: str = "float32", steps: int = STEPS, seq_len: int = 128, **variables: str) -> list[dict[str, Any]]:
    """The records of the steps of one run."""
    run = home / f"{name}-{tied}-{processes}-{compiled}-{dtype}"
    shutil.rmtree(run, ignore_errors=True)
    old = "run: str" in (tree / "tinylib" / "config.py").read_text(encoding="utf-8")    # its field has another name
    config: dict[str, Any] = {
        "model": json.loads(in_tree(tree, home, "-c", "from tinylib.config import *; from dataclasses import replace\n"
                                    f"print(to_json(replace(PRESETS[{name!r}], seq_len={seq_len}, tied={tied})))")),
        "data": str(home / f"shards-{name}"), ("run" if old else "run_dir"): str(run), "steps": steps,
        "total_batch_size": BATCH, "device_batch_size": 4, "eval_every": None, "eval_tokens": seq_len,
        "save_every": None, "device": "cpu", "dtype": dtype, "compile": compiled}
    file = home / f"{run.name}.json"
    file.write_text(json.dumps(config), encoding="utf-8")
    torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"] if processes > 1 else []
    in_tree(tree, home, *torchrun, "-m", "tinylib", "train", "--config", str(file), **variables)
    records = map(json.loads, (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines())
    return [record for record in records if record["kind"] == "step"]


def digest(folder: Path) -> str:
    """A hash of all token files."""
    return hashlib.sha256(b"".join(file.read_bytes() for file in sorted(folder.glob("*.bin")))).hexdigest()[:12]


def shards(trees: list[Path], homes: list[Path], models: list[str]) -> bool:
    """Build the shards of each tree; whether their token files are equal."""
    equal = True
    for name in models:
        vocabulary = str(PRESETS[name].vocab_size)
        for tree, home in zip(trees, homes, strict=True):
            in_tree(tree, home, "-c", SHARDS, str(home / f"shards-{name}"), vocabulary)
        old, new = (digest(home / f"shards-{name}") for home in homes)
        equal &= old == new
        print(f"shards at {vocabulary} ids: {old} {new} {'equal' if old == new else 'DIFFERENT'}", flush=True)
    return equal


def losses(trees: list[Path], homes: list[Path]) -> bool:
    """Whether every case has equal losses in both trees."""
    equal = True
    for model, tied, processes, compiled in CASES:
        old, new = ([step["loss"] for step in train(tree, home, model, tied, processes, compiled, OMP_NUM_THREADS="1")]
                    for tree, home in zip(trees, homes, strict=True))
        equal &= old == new and len(new) == STEPS
        print(f"{model:6} {'tied' if tied else 'untied':6} {processes} process{'es' if processes > 1 else '  '} "
              f"compile {compiled:3}: last loss {old[-1]!r} {new[-1]!r} "
              f"{'equal' if old == new else 'DIFFERENT'}", flush=True)
    return equal


def seconds(trees: list[Path], homes: list[Path], models: list[str], rounds: int) -> None:
    """Milliseconds of a whole step of each tree, and their ratio."""
    for model in models:
        for dtype in ("float32", "bfloat16"):
            found: list[list[float]] = []
            for _ in range(rounds):
                found.append([statistics.median(step["dt_s"] for step in train(
                    tree, home, model, dtype=dtype, steps=12 if model == "goldilocks" else 40, seq_len=256)[3:])
                    for tree, home in zip(trees, homes, strict=True)])
            old, new = (statistics.median(pair[place] for pair in found) for place in (0, 1))
            ratios = sorted(pair[1] / pair[0] for pair in found)
            print(f"{model:10} {dtype:8} {1000 * old:8.1f} ms {1000 * new:8.1f} ms, new / old "
                  f"{statistics.median(ratios):.3f} ({ratios[0]:.3f} to {ratios[-1]:.3f})", flush=True)


def main() -> None:
    """Compare this tree with another; with `losses` the exit code says whether everything is equal."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("old", type=Path)
    parser.add_argument("part", choices=["losses", "seconds"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--models", nargs="+", default=["nano", "micro", "goldilocks"], choices=PRESETS)
    options = parser.parse_args()
    trees = [options.old.resolve(), HERE]
    with tempfile.TemporaryDirectory() as folder:
        homes = [Path(folder, name) for name in ("old", "new")]
        for home in homes:
            home.mkdir()
        equal = shards(trees, homes, ["nano", "micro"] if options.part == "losses" else options.models)
        if options.part == "losses":
            sys.exit(not (losses(trees, homes) and equal))
        seconds(trees, homes, options.models, options.rounds)


if __name__ == "__main__":
    main()

"""Bit-equality of training between two commits: losses of 50 steps at nano and micro, on 1 and 2 processes.

    git worktree add ../old COMMIT
    python benchmarks/same_losses.py ../old

Each tree builds its own shards from the standard library's documentation and trains on them in float32 through its own
command line; token files and every loss must be equal to the last bit.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

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


def in_tree(tree: Path, home: Path, *command: str) -> str:
    """Standard output of a Python command that imports tinylib from `tree`."""
    environment = {**os.environ, "PYTHONPATH": str(tree), "TINYLIB_HOME": str(home), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, *command], cwd=tree, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{tree}: {' '.join(command)}\n{done.stdout}{done.stderr}")
    return done.stdout


def train(tree: Path, home: Path, name: str, tied: bool, processes: int, compiled: str) -> list[float]:
    """The losses of one run."""
    run = home / f"{name}-{tied}-{processes}-{compiled}"
    old = "run: str" in (tree / "tinylib" / "config.py").read_text(encoding="utf-8")    # its field has another name
    config: dict[str, Any] = {
        "model": json.loads(in_tree(tree, home, "-c", "from tinylib.config import *; from dataclasses import replace\n"
                                    f"print(to_json(replace(PRESETS[{name!r}], seq_len=128, tied={tied})))")),
        "data": str(home / f"shards-{name}"), ("run" if old else "run_dir"): str(run), "steps": STEPS,
        "total_batch_size": BATCH, "device_batch_size": 4, "eval_every": None, "eval_tokens": 4096,
        "save_every": None, "device": "cpu", "dtype": "float32", "compile": compiled}
    file = home / f"{run.name}.json"
    file.write_text(json.dumps(config), encoding="utf-8")
    torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"] if processes > 1 else []
    in_tree(tree, home, *torchrun, "-m", "tinylib", "train", "--config", str(file))
    records = map(json.loads, (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines())
    return [record["loss"] for record in records if record["kind"] == "step"]


def digest(folder: Path) -> str:
    """A hash of all token files."""
    return hashlib.sha256(b"".join(file.read_bytes() for file in sorted(folder.glob("*.bin")))).hexdigest()[:12]


def main() -> None:
    """Compare this tree with another; the exit code says whether everything is equal."""
    trees, equal = (Path(sys.argv[1]).resolve(), HERE), True
    with tempfile.TemporaryDirectory() as folder:
        homes = [Path(folder, name) for name in ("old", "new")]
        for name, vocabulary in (("nano", "3072"), ("micro", "6144")):
            for tree, home in zip(trees, homes, strict=True):
                home.mkdir(exist_ok=True)
                in_tree(tree, home, "-c", SHARDS, str(home / f"shards-{name}"), vocabulary)
            old, new = (digest(home / f"shards-{name}") for home in homes)
            equal &= old == new
            print(f"shards at {vocabulary} ids: {old} {new} {'equal' if old == new else 'DIFFERENT'}", flush=True)
        for case in CASES:
            old, new = (train(tree, home, *case) for tree, home in zip(trees, homes, strict=True))
            equal &= old == new and len(new) == STEPS
            model, tied, processes, compiled = case
            print(f"{model:6} {'tied' if tied else 'untied':6} {processes} process{'es' if processes > 1 else '  '} "
                  f"compile {compiled:3}: last loss {old[-1]!r} {new[-1]!r} "
                  f"{'equal' if old == new else 'DIFFERENT'}", flush=True)
    sys.exit(not equal)


if __name__ == "__main__":
    main()

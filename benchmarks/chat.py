"""Fine-tuning at several learning rates, and the price of attention that stays within a conversation.

    python benchmarks/chat.py RUN [--conversations 8000] [--scales 0.1 0.3 1 2]

RUN is a base run, such as that of notebook 04.  For each scale of its learning rates one epoch of `pyqa` is trained,
and bits per byte are printed of the answers about held-out modules and of 64 windows of held-out documents.  Then a
compiled forward and backward pass is timed with the mask of conversations and without it, in turn; the ratio is the
median of the rounds' ratios.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from itertools import islice
from pathlib import Path

from tinylib import corpus
from tinylib.chat import fine_tuning
from tinylib.checkpoint import load_model
from tinylib.config import TrainConfig, from_dict
from tinylib.evaluate import bits_per_byte
from tinylib.model import GPT
from tinylib.rundir import RunDirectory, find_run
from tinylib.shards import Batch, Shards, build_conversations
from tinylib.tokenizer import Tokenizer
from tinylib.train import train


def mask_ratio(config: TrainConfig, shards: Shards, rounds: int = 15) -> tuple[float, float]:
    """Milliseconds of forward and backward without the mask, and the ratio of those with it."""
    model = GPT(config.model)
    x_BT, y_BT = shards.batch(Batch(0, config.device_batch_size, config.model.seq_len))
    model.compile_for_training(tuple(x_BT.shape))

    def once(segment_BT: object) -> float:
        began = time.perf_counter()
        model(x_BT, y_BT, segment_BT=segment_BT).backward()
        return 1000 * (time.perf_counter() - began)

    kinds = (None, shards.segments(x_BT))
    pairs = [[once(kind) for kind in kinds] for _ in range(rounds + 2)][2:]    # the first two compile
    return statistics.median(plain for plain, _ in pairs), statistics.median(mask / plain for plain, mask in pairs)


def main() -> None:
    """Print a line for each scale, then the price of the mask."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run")
    parser.add_argument("--conversations", type=int, default=8_000)
    parser.add_argument("--scales", nargs="+", type=float, default=[0.1, 0.3, 1.0, 2.0])
    options = parser.parse_args()
    run, source = find_run(options.run), corpus.load("pyqa")
    base, checkpoint = from_dict(TrainConfig, run.read_config()["train"]), run.checkpoint()
    documents, tokens = Shards(base.data, "val"), 64 * base.model.seq_len
    with tempfile.TemporaryDirectory() as folder:
        shards = build_conversations(
            {"train": islice(source.documents("train"), options.conversations), "val": source.documents("val")},
            Tokenizer.load(checkpoint / "tokenizer"), Path(folder) / "shards", base.model.seq_len)
        answers, model = Shards(shards.folder, "val"), load_model(checkpoint)
        print(f"base: answers {bits_per_byte(model, answers, max_tokens=base.eval_tokens):.3f}, "
              f"documents {bits_per_byte(model, documents, max_tokens=tokens):.3f}", flush=True)
        for scale in options.scales:
            config = fine_tuning(
                base, checkpoint, lr_scale=scale, data=str(shards.folder), run_dir=f"{folder}/{scale}",
                steps=shards.windows(base.model.seq_len) * base.model.seq_len // base.total_batch_size,
                eval_every=None, save_every=None)
            summary = train(config)
            tuned = load_model(RunDirectory(config.run_dir).checkpoint())
            print(f"rates × {scale:g}: {summary.step} steps, {summary.seconds:.0f} s, answers {summary.val_bpb:.3f}, "
                  f"documents {bits_per_byte(tuned, documents, max_tokens=tokens):.3f}", flush=True)
        plain_ms, ratio = mask_ratio(base, shards)
        print(f"forward and backward of {base.device_batch_size} × {base.model.seq_len}: {plain_ms:.0f} ms, with the "
              f"mask {ratio:.3f} times that")


if __name__ == "__main__":
    main()

"""Memory of a training step: the closed form against the growth of a process, and against the naive loss.

    python benchmarks/memory.py

Each case is a process of its own, which takes two steps of the real model and optimizer in float32.  Its growth is the
peak of its resident memory less what it held before the model was made.  Once the allocator gives back every block at
once (glibc with MALLOC_MMAP_THRESHOLD_=65536): that is what the tensors take.  Once as it comes: it keeps freed blocks.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

from tinylib import sizing
from tinylib.config import PRESETS, GPTConfig, TrainConfig

CASES = {
    "micro, 4 × 512": (replace(PRESETS["micro"], seq_len=512), 4),
    "micro, 16 × 512": (replace(PRESETS["micro"], seq_len=512), 16),
    "micro tied, 16 × 512": (replace(PRESETS["micro"], seq_len=512, tied=True), 16),
    "mini, 8 × 512": (replace(PRESETS["mini"], seq_len=512), 8),
    "goldilocks, 1 × 512": (replace(PRESETS["goldilocks"], seq_len=512), 1),
    "goldilocks, 8 × 512": (replace(PRESETS["goldilocks"], seq_len=512), 8),
}


def growth(config: GPTConfig, batch_size: int, recompute: bool, naive: bool) -> int:
    """Bytes by which this very process grows in two steps."""
    import psutil
    import torch

    from tinylib.model import GPT
    from tinylib.optim import Optimizer

    def train(config: GPTConfig, batch_size: int) -> None:
        model = GPT(config)
        model.recompute = recompute
        optimizer = Optimizer(model, TrainConfig(config, total_batch_size=batch_size * config.seq_len,
                                                 device_batch_size=batch_size))
        x_BT = torch.zeros(batch_size, config.seq_len, dtype=torch.long)
        for step in (0, 1):
            if naive:
                torch.nn.functional.cross_entropy(model(x_BT).flatten(0, 1), x_BT.flatten()).backward()
            else:
                model(x_BT, x_BT).backward()
            optimizer.step(step)
            for weight in model.parameters():
                weight.grad.zero_()

    train(GPTConfig(1, 64, 256, seq_len=32), 1)    # loads kernels and starts threads
    before = psutil.Process().memory_info().rss
    train(config, batch_size)
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(status["VmHWM"].split()[0]) * 1024 - before    # getrusage's maximum would hold the parent's, too


def main() -> None:
    """A line for each case; with arguments, one case in this process."""
    if len(sys.argv) > 1:
        name, recompute, naive = json.loads(sys.argv[1])
        print(growth(*CASES[name], recompute, naive))
        return
    print(f"{'case':<24}{'':<12}{'formula, MB':>12}{'growth, MB':>12}{'ratio':>7}{'as it comes, MB':>17}{'ratio':>7}")
    for name, (config, batch_size) in CASES.items():
        for label in ("kept", "recomputed", "naive loss"):
            recompute, naive = label == "recomputed", label == "naive loss"
            formula = sizing.memory(config, batch_size, recompute=recompute)
            total = formula.total + (sizing.loss_bytes(config, batch_size) - formula.loss if naive else 0)
            exact, usual = (measured(name, recompute, naive, gives_back) for gives_back in (True, False))
            print(f"{name:<24}{label:<12}{total / 1e6:>12,.0f}{exact / 1e6:>12,.0f}{exact / total:>7.2f}"
                  f"{usual / 1e6:>17,.0f}{usual / total:>7.2f}")


def measured(name: str, recompute: bool, naive: bool, gives_back: bool) -> int:
    """`growth` of a case in a process of its own."""
    setting = {"MALLOC_MMAP_THRESHOLD_": "65536"} if gives_back else {}
    done = subprocess.run([sys.executable, __file__, json.dumps([name, recompute, naive])], check=True,
                          capture_output=True, text=True, env=os.environ | setting)
    return int(done.stdout)


if __name__ == "__main__":
    main()

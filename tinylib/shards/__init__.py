"""Documents to memory-mapped token files, and the batch of step n as a pure function of (shards, seed, n, batch size).

`build` encodes in parallel and goes on where a killed build stopped; `Shards` reads; `Loader` prepares the next batch
while the device computes.
"""

from tinylib.shards.building import build
from tinylib.shards.loader import Loader
from tinylib.shards.order import permute
from tinylib.shards.reading import IGNORED, Batch, Shards, open_splits

__all__ = ["IGNORED", "Batch", "Loader", "Shards", "build", "open_splits", "permute"]

"""Token shards: documents as memory-mapped token files, the batch of step n as a pure function, prefetch.

`build` encodes documents in parallel, `build_conversations` packs conversations; `Shards` reads both; `Batch` names the
global batch of a step; `Loader` reads batches ahead of the device.
"""

from tinylib.shards.building import build
from tinylib.shards.loader import Loader
from tinylib.shards.order import permute
from tinylib.shards.packing import build_conversations
from tinylib.shards.reading import IGNORED, Batch, Shards, open_splits

__all__ = ["IGNORED", "Batch", "Loader", "Shards", "build", "build_conversations", "open_splits", "permute"]

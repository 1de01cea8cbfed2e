"""Data sets of the hub in nanochat's layout, through `huggingface_hub`: its cache, mirror and offline settings count.

The listing (revision, licence, shards with their hashes) is kept at the first fetch, so later fetches get the same
revision, and what is in the hub's cache needs no network.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tinylib import rundir
from tinylib.corpus.documents import Corpus, file_digest

HUB = {"fineweb-edu": "karpathy/fineweb-edu-100b-shuffle", "climbmix": "karpathy/climbmix-400b-shuffle"}
"""Names here and there; files are `shard_00000.parquet` … with a `text` column, and the last one is validation.

Source: nanochat, `nanochat/dataset.py`.
"""


def from_hub(name: str, shards: int, folder: Path) -> Corpus:
    """The first `shards` shards and the last one, fetched where they are missing; `folder` keeps the listing."""
    repo, listing_file = HUB[name], folder / "listing.json"
    if not listing_file.is_file():
        listing = _listing(repo)
        folder.mkdir(parents=True, exist_ok=True)
        rundir.write_json(listing_file, listing)
    listing = json.loads(listing_file.read_text(encoding="utf-8"))
    names = sorted(listing["shards"])
    if not 1 <= shards < len(names):
        raise ValueError(f"shards={shards} is not between 1 and {len(names) - 1}, the training shards of {name}")
    train = [_download(repo, listing, file) for file in names[:shards]]
    return Corpus(name, tuple(train), (_download(repo, listing, names[-1]),),
                  {"repo": repo, "revision": listing["revision"], "licence": listing["licence"]})


def _listing(repo: str) -> dict[str, Any]:
    """Revision, licence as stated and shards (file -> sha256) of a data set."""
    import huggingface_hub

    try:
        info = huggingface_hub.HfApi().dataset_info(repo, files_metadata=True)
    except Exception as error:    # of httpx, requests or the hub library: it changes with their versions
        raise _unreachable(repo, error) from error
    shards = {file.rfilename: file.lfs.sha256 if file.lfs else None for file in info.siblings or []
              if file.rfilename.startswith("shard_") and file.rfilename.endswith(".parquet")}
    if len(shards) < 2:
        raise ValueError(f"{repo} holds {len(shards)} files shard_*.parquet: it needs two, the last for validation")
    return {"revision": info.sha, "licence": (info.card_data or {}).get("license") or "not stated", "shards": shards}


def _download(repo: str, listing: dict[str, Any], file: str) -> Path:
    """The file in the hub's cache; one that came over wrong is fetched once more."""
    import huggingface_hub

    stated = listing["shards"][file]
    for again in (False, True):
        try:
            path = Path(huggingface_hub.hf_hub_download(repo, file, repo_type="dataset", force_download=again,
                                                        revision=listing["revision"]))
        except Exception as error:
            raise _unreachable(f"{file} of {repo}", error) from error
        if stated is None or file_digest(path) == stated:
            return path
    raise ValueError(f"{file} of {repo} has not the sha256 that the hub states, {stated}: try again, or another mirror")


def _unreachable(what: str, error: Exception) -> ConnectionError:
    return ConnectionError(f"can't fetch {what} ({type(error).__name__}: {error}): what came whole is kept, so run it "
                           "again with a network, set HF_ENDPOINT to a mirror, or use the corpus pydocs, which needs "
                           "no network")

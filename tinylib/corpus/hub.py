"""Data sets of the hub, through `huggingface_hub`: its cache, mirror, token and offline settings count.

The listing (revision, licence, files with size and hash, split) is kept at the first fetch, so later fetches get the
same revision, and what is in the hub's cache needs no network.
"""

from __future__ import annotations

import errno
import json
import re
import time
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import Any

from tinylib import checks, files
from tinylib.corpus.documents import BY_HASH, SPLIT_WORDS, Corpus, file_digest, split_by_name
from tinylib.corpus.files import kind

HUB = {"fineweb-edu": "karpathy/fineweb-edu-100b-shuffle", "climbmix": "karpathy/climbmix-400b-shuffle"}
"""Names here and there; files are `shard_00000.parquet` … with a `text` column, and the last one is validation.

Source: nanochat, `nanochat/dataset.py`.
"""

_VERSION = 2    # of the listing
_SHARDS = 15    # about 3.6 billion characters of HUB
_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


def is_hub_name(name: str) -> bool:
    """Whether `name` is in HUB, or an `owner/name` or `owner/name/folder` that is no local path.

    >>> is_hub_name("climbmix"), is_hub_name("wikimedia/wikipedia/20231101.en"), is_hub_name("data/wiki.jsonl")
    (True, True, False)
    """
    owner_and_name = re.fullmatch(r"\w[\w.-]*/\w[\w.-]*(/\w[\w.-]*)*", name) is not None
    return name in HUB or (owner_and_name and not Path(name).exists() and kind(PurePosixPath(name)) is None)


def from_hub(name: str, folder: Path, *, shards: int | None = None, column: str | None = None, refresh: bool = False,
             check: bool = False) -> Corpus:
    """The first `shards` training files and those of validation, fetched where they are missing.

    `folder` keeps the listing.  With `check`, it remembers `shards` and `column`, and what was fetched before is hashed
    again.  Raises ConfigError for more shards than there are; ConnectionError, OSError or ValueError, with the name of
    the file, where one can't be had whole.
    """
    owner, title, *inside = HUB.get(name, name).split("/")
    repo, listing_file = f"{owner}/{title}", folder / "listing.json"
    known = json.loads(listing_file.read_text(encoding="utf-8")) if listing_file.is_file() else {}
    listing = known if known.get("version") == _VERSION and not refresh else _list(repo, "/".join(inside))
    train, most = listing["train"], len(listing["train"])
    checks.raise_if(name, [checks.check_int("shards", shards, most=most)] if shards is not None else [])
    chosen = {"shards": shards or min(known.get("shards") or _SHARDS, most),
              "column": column or known.get("column") or "text"}
    kept = listing | chosen if check else listing
    if kept != known:
        folder.mkdir(parents=True, exist_ok=True)
        files.write_json(listing_file, kept)
    wanted = dict(list(train.items())[:chosen["shards"]]), listing["val"]
    train_files, val_files = (tuple(_download(repo, listing["revision"], file, facts, check)
                                    for file, facts in files.items()) for files in wanted)
    facts = {fact: listing[fact] for fact in ("split", "source", "revision", "licence")}
    return Corpus(name, train_files, val_files, facts | {"column": chosen["column"],
                  "training_files": f"{chosen['shards']} of {most}"}, chosen["column"])


def _list(repo: str, inside: str) -> dict[str, Any]:
    """Revision, licence as stated and the files of each split of a data set, or of a folder in it."""
    import huggingface_hub

    api = huggingface_hub.HfApi()
    try:
        info = api.dataset_info(repo)
        entries = list(api.list_repo_tree(repo, inside or None, recursive=True, revision=info.sha, repo_type="dataset"))
    except Exception as error:    # of httpx, requests or the hub library: it changes with their versions
        raise _failure(f"the list of files of {repo}", error) from error
    sizes = {entry.path: {"bytes": entry.size, "sha256": entry.lfs.sha256 if entry.lfs else None}
             for entry in entries if isinstance(entry, huggingface_hub.RepoFile)}
    train, val, rule = _split(repo, sizes, inside)
    card = info.card_data or {}
    stated = [card.get(key) for key in ("license", "license_name", "license_link")]
    licence = ", ".join(text for some in stated for text in ([some] if isinstance(some, str) else some or []))
    return {"version": _VERSION, "source": f"{api.endpoint}/datasets/{repo}", "revision": info.sha,
            "licence": licence or "not stated", "split": rule, "train": {file: sizes[file] for file in train},
            "val": {file: sizes[file] for file in val}}


def _split(repo: str, names: Iterable[str], inside: str) -> tuple[list[str], list[str], str]:
    """Training files, validation files and the rule in words; ValueError where a folder must be chosen first."""
    paths = sorted(PurePosixPath(name).relative_to(inside) for name in names)
    files = [path for path in paths if kind(path) == ".parquet"] or [path for path in paths if kind(path) == ".jsonl"]
    if not files:
        where = f"{repo}/{inside}" if inside else repo
        raise ValueError(f"{where} holds no .parquet and no .jsonl file: make one of what it holds, and use its path")
    folders = sorted({"/".join(part for part in file.parent.parts if part not in SPLIT_WORDS) for file in files})
    if len(folders) > 1 and not inside:
        raise ValueError(f"{repo} holds {len(folders)} folders of documents ({', '.join(folders[:5])} …), which may be "
                         f"languages or versions of the same: choose one, such as {repo}/{folders[-1]}")
    by_last = (files[:-1], files[-1:], "by file: the last one") if len(files) > 1 else (files, [], BY_HASH)
    train, val, rule = split_by_name(files) or by_last
    return [str(inside / file) for file in train], [str(inside / file) for file in val], rule


def _download(repo: str, revision: str, file: str, facts: dict[str, Any], check: bool) -> Path:
    """The file in the hub's cache; what came over wrong is thrown away and fetched once more."""
    import huggingface_hub

    pinned = {"repo_type": "dataset", "revision": revision}
    known = huggingface_hub.try_to_load_from_cache(repo, file, **pinned)
    if isinstance(known, str) and not check:
        return Path(known)
    for last in (False, True):
        try:
            path = Path(huggingface_hub.hf_hub_download(repo, file, **pinned))
        except Exception as error:
            if last or not _may_pass(error):
                raise _failure(f"{file} of {repo}", error) from error
            time.sleep(1)
            continue
        if path.stat().st_size == facts["bytes"] and facts["sha256"] in (None, file_digest(path)):
            return path
        path.resolve().unlink()
        path.unlink(missing_ok=True)    # the link to it, where the cache has links
    raise ValueError(f"{file} of {repo} came twice with other content than the hub states, {facts['bytes']} bytes of "
                     f"sha256 {facts['sha256']}: what came whole is kept, so run it again, or with HF_ENDPOINT set to "
                     "another mirror")


def _may_pass(error: Exception) -> bool:
    """Whether the failure is of the moment, and one that the hub library doesn't try again: 5xx, a wrong size."""
    status = getattr(getattr(error, "response", None), "status_code", 0)
    return status >= 500 or (type(error) is OSError and error.errno is None)


def _failure(what: str, error: Exception) -> OSError:
    """What to raise where `what` can't be fetched: the reason, and what to do about it."""
    from huggingface_hub import constants, errors

    if getattr(error, "errno", None) in _NO_ROOM:
        return OSError(error.errno, f"no room for {what}, what came whole is kept: free some, or set HF_HOME to a "
                       "folder on a larger disk, and run it again", constants.HF_HUB_CACHE)
    cause = error.__cause__ if isinstance(error, errors.LocalEntryNotFoundError) and error.__cause__ else error
    fix = "run it again with a network, or with HF_ENDPOINT set to a mirror"
    if isinstance(cause, errors.RepositoryNotFoundError):
        fix = "check the name; if its owner asks for it, accept the terms on its page and log in with hf auth login"
    elif isinstance(cause, errors.RevisionNotFoundError | errors.EntryNotFoundError):
        fix = "take the newest revision with --refresh"
    elif isinstance(cause, errors.OfflineModeIsEnabled):
        fix = "unset HF_HUB_OFFLINE and run it again"
    reason = f"{type(cause).__name__}: {' '.join(str(cause).split()):.300}"
    return ConnectionError(f"can't fetch {what} ({reason}): what came whole is kept, so {fix}; the corpus pydocs needs "
                           "no network")

"""Data sets of the Hugging Face hub, through `huggingface_hub`, whose cache, mirror, token and offline mode apply.

The first fetch pins the revision: it keeps a listing (revision, licence, files with size and hash, split).  Files that
are in the hub's cache need no network.
"""

from __future__ import annotations

import errno
import re
import time
from pathlib import Path, PurePosixPath
from typing import Any

from tinylib import checks, files
from tinylib.checks import UserError
from tinylib.corpus.documents import Corpus, file_digest
from tinylib.corpus.reading import kind
from tinylib.corpus.split import BY_HASH, NamedSplit, shorten, split_by_name, tells_split

HUB = {"fineweb-edu": "karpathy/fineweb-edu-100b-shuffle", "climbmix": "karpathy/climbmix-400b-shuffle",
       "smoltalk": "HuggingFaceTB/smol-smoltalk"}
"""Short names of data sets.

The first two have files `shard_00000.parquet` … with a `text` column, of which the last is validation; smoltalk has
conversations in `messages`, and files named for training and test.

Source: nanochat, `nanochat/dataset.py` and `tasks/smoltalk.py`.
"""

_VERSION = 3    # of the listing
_SHARDS = 15    # about 3.6 billion characters of HUB


def is_hub_name(name: str) -> bool:
    """Whether `name` is in HUB, or an `owner/name` or `owner/name/folder` that is no local path.

    >>> is_hub_name("climbmix"), is_hub_name("wikimedia/wikipedia/20231101.en"), is_hub_name("data/wiki.jsonl")
    (True, True, False)
    """
    owner_and_name = re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)+", name) is not None
    return name in HUB or (owner_and_name and not Path(name).exists() and kind(PurePosixPath(name)) is None)


def from_hub(name: str, folder: Path, shards: int | None, column: str | None, refresh: bool, check: bool) -> Corpus:
    """The first `shards` training files and those of validation, downloaded where they are missing.

    `folder` keeps the listing.  With `check`, `shards` and `column` are remembered there, and files in the cache are
    hashed again.  Raises ConfigError for more shards than there are; ConnectionError or OSError, which name the file,
    if one can't be downloaded whole.
    """
    owner, title, *inside = HUB.get(name, name).split("/")
    repo, listing_file = f"{owner}/{title}", folder / "listing.json"
    known = files.read_json(listing_file) or {}
    listing = known if known.get("version") == _VERSION and not refresh else _list(repo, "/".join(inside))
    most = len(listing["train"])
    checks.raise_if(name, [checks.check_int("shards", shards, most=most)] if shards is not None else [])
    shards = shards or min(known.get("shards") or _SHARDS, most)
    column = column or known.get("column") or "text"
    kept = listing | ({"shards": shards, "column": column} if check else {})
    if kept != known:
        folder.mkdir(parents=True, exist_ok=True)
        files.write_json(listing_file, kept)
    train, val = (tuple(_download(repo, listing["revision"], file, facts, check) for file, facts in some)
                  for some in (list(listing["train"].items())[:shards], listing["val"].items()))
    facts = {fact: listing[fact] for fact in ("split", "unused", "passed_over", "source", "revision", "licence")}
    return Corpus(name, train, val, facts | {"column": column, "training_files": f"{shards} of {most}"}, column)


def _list(repo: str, inside: str) -> dict[str, Any]:
    """Revision, licence as stated and the files of each split of a data set, or of a folder in it."""
    import huggingface_hub

    api = huggingface_hub.HfApi()
    try:
        info = api.dataset_info(repo)
        entries = list(api.list_repo_tree(repo, inside or None, recursive=True, revision=info.sha, repo_type="dataset"))
    except Exception as error:    # of httpx, requests or the hub library: its type depends on their versions
        raise _failure(f"the list of files of {repo}", error) from error
    sizes = {entry.path: {"bytes": entry.size, "sha256": entry.lfs.sha256 if entry.lfs else None}
             for entry in entries if isinstance(entry, huggingface_hub.RepoFile)}
    prefix = f"{inside}/" if inside else ""
    split, rule = _split(f"{repo}/{inside}".rstrip("/"), [path.removeprefix(prefix) for path in sizes], bool(inside))
    card = info.card_data or {}
    stated = [card.get(key) for key in ("license", "license_name", "license_link")]
    licence = ", ".join(text for some in stated for text in ([some] if isinstance(some, str) else some or []))
    return {"version": _VERSION, "source": f"{api.endpoint}/datasets/{repo}", "revision": info.sha,
            "licence": licence or "not stated", "split": rule, "unused": split.unused,
            "passed_over": len(sizes) - sum(map(len, split)),
            "train": {prefix + file: sizes[prefix + file] for file in split.train},
            "val": {prefix + file: sizes[prefix + file] for file in split.val}}


def _split(where: str, names: list[str], chosen: bool) -> tuple[NamedSplit, str]:
    """The files of each split and the rule in words; UserError for several folders of which none was `chosen`."""
    paths = sorted(map(PurePosixPath, names))
    read = [path for path in paths if kind(path) == ".parquet"] or [path for path in paths if kind(path) == ".jsonl"]
    if not read:
        raise UserError(f"{where} holds no .parquet and no .jsonl file: make one of what it holds, and use its path")
    folders = sorted({"/".join(part for part in path.parent.parts if not tells_split(part)) for path in read})
    if len(folders) > 1 and not chosen:
        raise UserError(f"{where} holds {len(folders)} folders of documents ({shorten(folders)}), which may be "
                        f"languages or versions of the same: choose one, such as {where}/{folders[-1]}")
    split = split_by_name(map(str, read))
    if split.val:
        return split, "by file name"
    if len(split.train) > 1:
        return split._replace(train=split.train[:-1], val=split.train[-1:]), "by file: the last one"
    return split, BY_HASH


def _download(repo: str, revision: str, file: str, facts: dict[str, Any], check: bool) -> Path:
    """The file in the hub's cache; a corrupt download is removed and tried once more."""
    import huggingface_hub

    pinned = {"repo_type": "dataset", "revision": revision}
    known = huggingface_hub.try_to_load_from_cache(repo, file, **pinned)
    if isinstance(known, str) and not check:
        return Path(known)
    tries = 0
    while True:
        tries += 1
        try:
            path = Path(huggingface_hub.hf_hub_download(repo, file, **pinned))
            if path.stat().st_size == facts["bytes"] and facts["sha256"] in (None, file_digest(path)):
                return path
            path.resolve().unlink()
            path.unlink(missing_ok=True)    # the link to it, where the cache has links
            raise OSError(f"it came with other content than {facts['bytes']} bytes of sha256 {facts['sha256']}")
        except Exception as error:
            # What may pass, but isn't retried by the hub library: 5xx, wrong content or size.
            status = getattr(getattr(error, "response", None), "status_code", 0)
            if tries == 2 or not (status >= 500 or (type(error) is OSError and error.errno is None)):
                raise _failure(f"{file} of {repo}", error) from error
            time.sleep(1)


def _failure(what: str, error: Exception) -> OSError:
    """The error to raise if `what` can't be fetched: the reason and the fix."""
    from huggingface_hub import constants, errors

    if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
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

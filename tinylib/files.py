"""Atomic writes of files and folders: written under a temporary name beside the target, then renamed into place."""

from __future__ import annotations

import errno
import fnmatch
import glob
import json
import os
import re
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tinylib.checks import UserError, join_or


def write_json(path: Path, value: Any) -> None:
    """Write `value` as JSON, atomically."""
    write_text(path, json.dumps(value, indent=2) + "\n")


def read_json(path: Path) -> dict[str, Any] | None:
    """The JSON object in a file; None where there is no file, which another process may remove at any moment.

    Raises UserError for a file that is empty, cut short or no object.
    """
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return None
    except (ValueError, TypeError) as error:
        raise UserError(f"{path} holds no JSON object ({error}): restore the file, or remove it") from None


def write_text(path: Path, text: str) -> None:
    """Write `text` as UTF-8, atomically."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, data: bytes) -> None:
    """Write `data`, atomically: a failure leaves the old file."""
    part = tmp_path(path)
    try:
        part.write_bytes(data)
        part.replace(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


@contextmanager
def write_folder(path: Path, own: Iterable[str]) -> Iterator[Path]:
    """A temporary folder to fill, renamed to `path` at the end of the block; a failure leaves what was there before.

    A folder at `path` is replaced if all names in it match the patterns `own`, which are those of what is written.
    Otherwise FileExistsError, before anything changes.  What a killed process left behind is removed by the next one.
    """
    raise_if_foreign(path, own)
    path.parent.mkdir(parents=True, exist_ok=True)
    remove_stale(path.parent, glob.escape(path.name))
    part = tmp_path(path)
    part.mkdir()
    try:
        yield part
        replace_folder(part, path)
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise OSError(errno.ENOSPC, "no space left on the disk: free some and run again", str(path)) from error
        raise
    finally:
        shutil.rmtree(part, ignore_errors=True)


def raise_if_foreign(path: Path, own: Iterable[str]) -> None:
    """Raise FileExistsError if a file is at `path`, or a folder with a name in it that matches none of `own`."""
    if path.exists() and not path.is_dir():
        raise FileExistsError(f"{path} is a file: choose a folder that is new or empty")
    patterns, there = list(own), sorted(path.iterdir()) if path.is_dir() else []
    foreign = [entry.name for entry in there if not any(fnmatch.fnmatch(entry.name, name)
                                                        for name in (*patterns, ".DS_Store"))]    # of a Mac's Finder
    if foreign:
        raise FileExistsError(f"{path} holds {foreign[0]}, which would be lost: choose a folder that is new, "
                              f"empty or holds nothing but {join_or(patterns)}")


def replace_folder(part: Path, path: Path) -> None:
    """Flush the folder `part` to disk and rename it to `path`, replacing a folder there."""
    _fsync(part)
    try:
        if path.exists():
            path.replace(tmp_path(path.with_name(f"{path.name}.old")))
        part.replace(path)
    finally:
        remove_stale(path.parent, glob.escape(path.name))    # removes the old folder, or puts it back


def tmp_path(path: Path) -> Path:
    """The temporary name under which this process writes `path`."""
    return path.with_name(f".{path.name}.{os.getpid()}.part")


def remove_stale(folder: Path, names: str = "*") -> None:
    """Remove temporary files and folders in `folder` whose process is dead, for targets that match `names`.

    A folder that was moved aside for a replacement that never came is put back.
    """
    import psutil

    for stale in folder.glob(f".{names}.*.part"):
        found = re.fullmatch(r"\.(.+?)(\.old)?\.(\d+)\.part", stale.name)
        if not found or (int(found[3]) != os.getpid() and psutil.pid_exists(int(found[3]))):
            continue
        if found[2] and not (folder / found[1]).exists():
            stale.replace(folder / found[1])
        elif stale.is_dir():
            shutil.rmtree(stale, ignore_errors=True)
        else:
            stale.unlink(missing_ok=True)


def lines_backwards(path: Path, block_bytes: int = 65_536) -> Iterator[bytes]:
    """The complete lines of a file in reverse order, read in blocks from its end."""
    with path.open("rb") as file:
        at, rest = file.seek(0, os.SEEK_END), None    # None: no newline seen yet
        while at > 0:
            size = min(block_bytes, at)
            at = file.seek(at - size)
            parts = (file.read(size) + (rest or b"")).split(b"\n")
            if rest is None:
                del parts[-1]
            if parts:
                rest, *lines = parts
                yield from reversed(lines)
        if rest is not None:
            yield rest


def _fsync(folder: Path) -> None:
    """Flush every file in `folder` to disk, so that the rename can't become visible before the content."""
    for file in folder.rglob("*"):
        if file.is_file():
            with file.open("rb") as opened:
                os.fsync(opened.fileno())

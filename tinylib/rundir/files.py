"""Files and folders that appear whole or not at all: written beside their place, and moved there."""

from __future__ import annotations

import errno
import glob
import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


def write_json(path: Path, value: Any) -> None:
    """Write `value` as JSON; the file appears whole or not at all."""
    write_text(path, json.dumps(value, indent=2) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write `text`; the file appears whole or not at all, and a failure leaves the old one."""
    part = part_of(path)
    try:
        part.write_text(text, encoding="utf-8")
        part.replace(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


@contextmanager
def write_folder(path: Path) -> Iterator[Path]:
    """A new folder to fill, moved to `path` at the end of the block; a failure leaves what was there before.

    A folder that lies at `path` is replaced.  What a killed process left behind is swept away by the next one.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    sweep(path.parent, glob.escape(path.name))
    part = part_of(path)
    part.mkdir()
    try:
        yield part
        replace_folder(part, path)
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise OSError(errno.ENOSPC, "no space left on the disk, nothing was kept: free some and run again",
                          str(path)) from error
        raise
    finally:
        shutil.rmtree(part, ignore_errors=True)


def replace_folder(part: Path, path: Path) -> None:
    """Move the folder `part`, once it is on the disk, to `path`, in the place of a folder that lies there."""
    _flush(part)
    try:
        if path.exists():
            path.replace(part_of(path.with_name(f"{path.name}.old")))
        part.replace(path)
    finally:
        sweep(path.parent, glob.escape(path.name))    # the old one goes, or comes back


def part_of(path: Path) -> Path:
    """Where this process writes what is to lie at `path`."""
    return path.with_name(f".{path.name}.{os.getpid()}.part")


def sweep(folder: Path, names: str = "*") -> None:
    """Remove what dead processes, or earlier work of this one, left of what was to have one of the `names` in `folder`.

    A folder that was moved aside for another one, which then never came, is put back.
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
    """The lines of a file, the last one first, read from its end; one that is still being written is left out."""
    with path.open("rb") as file:
        at, rest = file.seek(0, os.SEEK_END), None    # no end of a line seen yet
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


def _flush(folder: Path) -> None:
    """Make sure that what is in `folder` is on the disk before its name says so."""
    for file in folder.rglob("*"):
        if file.is_file():
            with file.open("rb") as opened:
                os.fsync(opened.fileno())

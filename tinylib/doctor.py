"""Environment check: Python, packages, device, compiler, disk and Jupyter kernel."""

from __future__ import annotations

import importlib.util
import platform
import shutil
import sys
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal

from tinylib import hardware, profiles


@dataclass(frozen=True)
class Check:
    """Result of one check."""

    name: str
    state: Literal["ok", "warning", "error"]
    """"warning": a part of the course is slower or missing; "error": the course can't run."""
    detail: str
    """What was found, and what to do if it isn't "ok"."""


def doctor() -> list[Check]:
    """Check this machine for everything that the course needs; changes nothing."""
    return [_python(), *_packages(), *_torch(), _compiler(), _disk(), _kernel()]


def _python() -> Check:
    memory = f"{hardware.memory_bytes() / 2**30:.0f} GiB of memory"
    return Check("python", "ok", f"{platform.python_version()}, {hardware.cores()} cores, {memory}")


def _packages() -> list[Check]:
    needed = [metadata.Distribution.from_name("tinylib")] if _installed("tinylib") else []
    names = {line.split(";")[0].split(">")[0].split("=")[0].split("<")[0].strip()
             for found in needed for line in found.requires or [] if "extra ==" not in line}
    missing = sorted(name for name in names if not _installed(name))
    if not needed:
        return [Check("tinylib", "warning", "not installed as a package: pip install -e .")]
    if missing:
        return [Check("packages", "error", f"missing {', '.join(missing)}: pip install -e .")]
    return [Check("packages", "ok", f"tinylib {needed[0].version} and its {len(names)} dependencies")]


def _torch() -> list[Check]:
    if importlib.util.find_spec("torch") is None:
        return [Check("torch", "error", "not installed: make .venv, or pip install -e .")]
    import torch

    found = hardware.device()
    chosen, reason = hardware.dtype(found)
    state: Literal["ok", "warning"] = "ok" if found.kind == "cuda" else "warning"
    advice = "" if found.kind == "cuda" else "; no GPU: the cpu profile is used, and goldilocks itself needs one"
    return [Check("torch", "ok", torch.__version__),
            Check("device", state, f"{found.count} × {found.kind} ({found.name}){advice}"),
            Check("dtype", "ok", f"{chosen}: {reason}"), Check("profile", "ok", profiles.profile().name)]


def _compiler() -> Check:
    there, detail = hardware.can_compile()
    return Check("compile", "ok" if there else "warning", detail)


def _disk() -> Check:
    folder = profiles.home()
    free = shutil.disk_usage(folder if folder.exists() else Path.cwd()).free
    if free < 0.2e9:
        return Check("disk", "error", f"{free / 1e9:.1f} GB free, but the cpu profile writes 0.1 GB: free some space")
    if free < 5e9:    # gpu: 1.5 GB of text, 1.5 GB of tokens, two checkpoints of 0.4 GB for each of two runs
        return Check("disk", "warning", f"{free / 1e9:.1f} GB free: enough for the cpu profile; gpu needs 5 GB")
    return Check("disk", "ok", f"{free / 1e9:.0f} GB free")


def _kernel() -> Check:
    if not _installed("ipykernel"):
        return Check("kernel", "warning", "no ipykernel, which notebooks need: pip install -e .")
    place = "the base environment" if sys.prefix == sys.base_prefix else "a virtual environment"
    return Check("kernel", "ok", f"ipykernel {metadata.version('ipykernel')} in {place}")


def _installed(name: str) -> bool:
    try:
        metadata.version(name)
    except metadata.PackageNotFoundError:
        return False
    return True

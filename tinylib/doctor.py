"""Environment check: Python, packages, device, compiler, disk and Jupyter kernel."""

from __future__ import annotations

import importlib.util
import platform
import re
import shutil
import sys
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal

import psutil

from tinylib import hardware, profiles


@dataclass(frozen=True)
class Check:
    """Result of one check."""

    name: str
    state: Literal["ok", "warning", "error"]
    """"warning": a part of the course is slower or missing; "error": the course can't run."""
    detail: str
    """Finding, with the remedy if it isn't "ok"."""


def doctor() -> list[Check]:
    """Check this machine for everything that the course needs; changes nothing."""
    memory = f"{psutil.virtual_memory().total / 2**30:.0f} GiB of memory"
    compiles, reason = hardware.can_compile()
    return [Check("python", "ok", f"{platform.python_version()}, {hardware.cores()} cores, {memory}"), _packages(),
            *_torch(), Check("compile", "ok" if compiles else "warning", reason), _disk(), _kernel()]


def _packages() -> Check:
    if not _installed("tinylib"):
        return Check("packages", "warning", "tinylib is not installed as a package: pip install -e .")
    needed = metadata.requires("tinylib") or []
    names = {re.split(r"[^\w.-]", line)[0] for line in needed if "extra ==" not in line}
    missing = sorted(name for name in names if not _installed(name))
    if missing:
        return Check("packages", "error", f"missing {', '.join(missing)}: pip install -e .")
    return Check("packages", "ok", f"tinylib {metadata.version('tinylib')} and its {len(names)} dependencies")


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

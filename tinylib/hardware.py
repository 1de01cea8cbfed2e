"""Devices of this machine: precision, memory, peak FLOP/s and price per hour.

Nothing is probed at import.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import psutil

from tinylib.checks import UserError, join_or


@dataclass(frozen=True)
class Accelerator:
    """Data-sheet figures of one accelerator, and its price per hour."""

    peak_flops: float
    """Dense bfloat16 FLOP/s with float32 accumulation, without sparsity."""
    memory_bytes: float
    """Nominal memory; a card reports some percent more, which its driver and allocator use."""
    link: float
    """Bandwidth to the other devices of the machine in bytes per second, one direction, without an optional bridge."""
    usd_per_hour: float
    source: str
    """Source of the peak, and of the price where that is not RUNPOD."""


RUNPOD = "RunPod, secure, on demand, in SkyPilot's catalogue of August 2026"
_SHEET = "NVIDIA data sheet"

ACCELERATORS: dict[str, Accelerator] = {
    "B200": Accelerator(2250e12, 180e9, 900e9, 6.79, f"{_SHEET}, HGX"),
    "H200": Accelerator(989e12, 141e9, 450e9, 4.59, f"{_SHEET}, SXM"),
    "H100": Accelerator(989e12, 80e9, 450e9, 3.29, f"{_SHEET}, SXM"),
    "H100 NVL": Accelerator(835e12, 94e9, 64e9, 3.19, _SHEET),
    "H100 PCIe": Accelerator(756e12, 80e9, 64e9, 2.89, f"{_SHEET}, PCIe"),
    "A100": Accelerator(312e12, 80e9, 300e9, 1.59, f"{_SHEET}, SXM, 80 GB"),
    "L40S": Accelerator(362e12, 48e9, 32e9, 0.99, _SHEET),
    "L4": Accelerator(121e12, 24e9, 32e9, 0.49, _SHEET),
    "A10G": Accelerator(70e12, 24e9, 32e9, 1.01, "measured at 69.5e12; price of AWS g5.xlarge, June 2026"),
    "RTX 4090": Accelerator(165.2e12, 24e9, 32e9, 0.74, "NVIDIA Ada whitepaper"),
    "RTX 3090": Accelerator(71e12, 24e9, 32e9, 0.50, "NVIDIA GA102 whitepaper"),
}
"""Known accelerators by the distinctive part of the device name."""
_OTHER_MODELS = r"(?! (?:NVL|PCIe|Ti|D|SUPER|Laptop)\b)"
"""Suffixes that name another model: an RTX 3090 Ti is not an RTX 3090."""


@dataclass(frozen=True)
class Device:
    """A kind of device that can train on this machine."""

    kind: str
    """"cuda", "mps" or "cpu"."""
    name: str
    count: int
    """Visible devices of this kind."""
    memory_bytes: int
    peak_flops: float | None
    """Peak FLOP/s of one device in bfloat16; None where ACCELERATORS lacks it, so MFU is None too."""


def device(kind: str = "auto") -> Device:
    """Device to train on: `kind`, or with "auto" CUDA if present, else Apple's MPS, else the CPU.

    Raises UserError if this machine has no device of `kind`.
    """
    import torch

    kinds = [name for name, there in (("cuda", torch.cuda.is_available()), ("mps", torch.backends.mps.is_available()),
                                      ("cpu", True)) if there]
    if kind != "auto" and kind not in kinds:
        raise UserError(f"device={kind!r} is not on this machine: use {join_or(['auto', *kinds])}")
    chosen = kinds[0] if kind == "auto" else kind
    if chosen != "cuda":
        return Device(chosen, platform.processor() or platform.machine(), 1, psutil.virtual_memory().total, None)
    properties = torch.cuda.get_device_properties(0)
    known = accelerator(properties.name)
    return Device("cuda", properties.name, torch.cuda.device_count(), properties.total_memory,
                  known and known.peak_flops)


def processor() -> str:
    """Name of the CPU, as /proc/cpuinfo has it; elsewhere what Python knows of it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.is_file() else []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor() or platform.machine())


def visible_devices(kind: str = "auto") -> list[str]:
    """Devices of this machine for a run on `kind`: "cuda:N" for each GPU in CUDA_VISIBLE_DEVICES, or "mps", or "cpu".

    Raises UserError if this machine has no device of `kind`.

    >>> visible_devices("cpu")
    ['cpu']
    """
    if kind == "cpu":
        return ["cpu"]
    import torch

    count = torch.cuda.device_count() if kind != "mps" else 0    # counts without initializing CUDA in this process
    if count == 0:
        return [device(kind).kind]
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
    names = [name.strip() for name in visible if name.strip()] or map(str, range(count))
    return [f"cuda:{name}" for name in names][:count]


def accelerator(name: str) -> Accelerator | None:
    """Entry of ACCELERATORS for a device name as the driver reports it; None if the model is not listed.

    >>> accelerator("NVIDIA H100 80GB HBM3").peak_flops, accelerator("NVIDIA L40"), accelerator("RTX 3090 Ti")
    (989000000000000.0, None, None)
    """
    return next((found for part, found in ACCELERATORS.items()
                 if re.search(rf"\b{part}\b{_OTHER_MODELS}", name)), None)


def dtype(device: Device) -> tuple[Literal["float32", "bfloat16", "float16"], str]:
    """Fastest precision for matrix products on `device`, and the reason."""
    import torch

    if device.kind == "cuda":
        generation = torch.cuda.get_device_capability()[0]
        if generation >= 8:
            return "bfloat16", f"{device.name} multiplies bfloat16 on its tensor cores"
        if generation == 7:
            return "float16", f"{device.name} has tensor cores for float16, not yet for bfloat16"
        return "float32", f"{device.name} has no tensor cores"
    capabilities = getattr(torch.cpu, "get_capabilities", dict)() if device.kind == "cpu" else {}
    for name in ("amx_bf16", "avx512_bf16"):
        if capabilities.get(name):
            return "bfloat16", f"this CPU has instructions that multiply bfloat16 ({name})"
    return "float32", f"this {device.kind} is not reliably faster in bfloat16"


def peak_memory_bytes(kind: str) -> int:
    """Peak memory of this process in bytes: resident memory, or for "cuda" what torch allocated on its current GPU."""
    if kind == "cuda":
        import torch

        return int(torch.cuda.max_memory_allocated())
    status = Path("/proc/self/status")
    if status.is_file():    # Linux, where getrusage of a child starts from its parent's peak
        return 1024 * int(re.findall(r"VmHWM:\s*(\d+) kB", status.read_text())[0])
    if sys.platform == "win32":
        return int(psutil.Process().memory_info().peak_wset)
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss    # macOS, in bytes


def cores() -> int:
    """Number of CPU cores available to this process (its affinity)."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def can_compile() -> tuple[bool, str]:
    """Whether `torch.compile` can build code for this CPU, and if not, what to install.

    Inductor generates C++ and compiles it against Python's headers.
    """
    if sys.platform == "win32":
        return False, "torch.compile is off on Windows: training runs eagerly"
    if not any(shutil.which(compiler) for compiler in (os.environ.get("CXX", "g++"), "g++", "clang++")):
        return False, "no C++ compiler: install g++ (Debian: apt-get install g++); until then training runs eagerly"
    if not Path(sysconfig.get_paths()["include"], "Python.h").is_file():
        return False, "no Python.h: install Python's headers (Debian: python3-dev); until then training runs eagerly"
    return True, "C++ compiler and Python headers found"

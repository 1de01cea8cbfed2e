"""Devices of this machine: which are here, their precision, memory, peak FLOP/s and price per hour.

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


@dataclass(frozen=True)
class Accelerator:
    """What one device can do, as its maker says, and what an hour of it costs."""

    peak_flops: float
    """Dense bfloat16 FLOP/s, sums in float32, no sparsity."""
    memory_bytes: float
    """As sold; a card reports some percent more, which its driver and allocator use up."""
    link: float
    """Bytes a second to the other devices of its machine, in one direction, without an optional bridge."""
    usd_per_hour: float
    source: str
    """Of the peak.  The price: RUNPOD, where nothing else is said."""


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
"""By the part of a device's name that tells it from all others."""
_OTHER_MODELS = r"(?! (?:NVL|PCIe|Ti|D|SUPER|Laptop)\b)"
"""Words after a name that make it another device's: an RTX 3090 Ti is no RTX 3090."""


@dataclass(frozen=True)
class Device:
    """A device that can train: `kind` is "cuda", "mps" or "cpu"; `count` devices of this kind are visible."""

    kind: str
    name: str
    count: int
    memory_bytes: int
    peak_flops: float | None
    """Dense bf16 FLOP/s of one device; None where ACCELERATORS has no data sheet, so MFU reads "n/a"."""


def device(kind: str = "auto") -> Device:
    """The device to train on: CUDA, else Apple's MPS, else the CPU; `kind` asks for one of them by name.

    Raises ValueError where the machine lacks it.
    """
    import torch

    kinds = [name for name, there in (("cuda", torch.cuda.is_available()), ("mps", torch.backends.mps.is_available()),
                                      ("cpu", True)) if there]
    if kind != "auto" and kind not in kinds:
        raise ValueError(f"device={kind!r} is not on this machine: use auto, " + ", ".join(kinds))
    chosen = kinds[0] if kind == "auto" else kind
    if chosen != "cuda":
        return Device(chosen, platform.processor() or platform.machine(), 1, memory_bytes(), None)
    properties = torch.cuda.get_device_properties(0)
    known = accelerator(properties.name)
    return Device("cuda", properties.name, torch.cuda.device_count(), properties.total_memory,
                  known and known.peak_flops)


def accelerator(name: str) -> Accelerator | None:
    """The data of the device that calls itself `name`; None where no data sheet is in ACCELERATORS.

    >>> accelerator("NVIDIA H100 80GB HBM3").peak_flops, accelerator("NVIDIA L40"), accelerator("RTX 3090 Ti")
    (989000000000000.0, None, None)
    """
    return next((found for part, found in ACCELERATORS.items()
                 if re.search(rf"\b{part}\b{_OTHER_MODELS}", name)), None)


def dtype(device: Device) -> tuple[Literal["float32", "bfloat16", "float16"], str]:
    """The precision of matrix products in which `device` trains fastest, and the reason for it."""
    import torch

    if device.kind == "cuda":
        generation = torch.cuda.get_device_capability()[0]
        if generation >= 8:
            return "bfloat16", f"{device.name} multiplies bfloat16 on its tensor cores"
        if generation == 7:
            return "float16", f"{device.name} has tensor cores for float16, not yet for bfloat16"
        return "float32", f"{device.name} has no tensor cores"
    if device.kind == "cpu" and getattr(torch.cpu, "get_capabilities", dict)().get("amx_bf16"):
        return "bfloat16", "this CPU multiplies bfloat16 on its AMX tiles"
    return "float32", f"this {device.kind} is not reliably faster in bfloat16"


def peak_memory_bytes(kind: str) -> int:
    """Largest resident memory of this process so far; for "cuda" the largest that torch took of its current GPU."""
    import psutil

    if kind == "cuda":
        import torch

        return int(torch.cuda.max_memory_allocated())
    status = Path("/proc/self/status")
    if status.is_file():    # Linux; its getrusage would begin at the parent's size
        return 1024 * int(re.findall(r"VmHWM:\s*(\d+) kB", status.read_text())[0])
    memory = psutil.Process().memory_info()
    if hasattr(memory, "peak_wset"):    # Windows
        return int(memory.peak_wset)
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss    # macOS, in bytes


def cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def memory_bytes() -> int:
    """Main memory of the machine, in bytes."""
    import psutil

    return int(psutil.virtual_memory().total)


def can_compile() -> tuple[bool, str]:
    """Whether `torch.compile` can work on a CPU here, and what is missing if not.

    Inductor writes C++ and builds it against Python's headers.
    """
    if sys.platform == "win32":
        return False, "torch.compile is not tried on Windows: training runs eagerly"
    if not any(shutil.which(compiler) for compiler in (os.environ.get("CXX", "g++"), "g++", "clang++")):
        return False, "no C++ compiler: install g++ (Debian: apt-get install g++); until then training runs eagerly"
    if not Path(sysconfig.get_paths()["include"], "Python.h").is_file():
        return False, "no Python.h: install Python's headers (Debian: python3-dev); until then training runs eagerly"
    return True, "C++ compiler and Python headers are here"

"""What this machine is, as functions: device, precision, peak FLOP/s, the profile, and what is missing.

Nothing is probed at import.
"""

from __future__ import annotations

import importlib.util
import os
import platform
import re
import shutil
import sys
import sysconfig
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Literal

from tinylib import rules
from tinylib.config import PRESETS, ConfigError, GPTConfig, TrainConfig, from_json, to_json


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


@dataclass(frozen=True)
class Profile:
    """The sizes that fit one kind of machine; notebooks take every size from here."""

    name: Literal["smoke", "cpu", "gpu"]
    corpus: str
    """Name of the corpus, for `tinylib.corpus.load`."""
    train: TrainConfig
    """The run of notebook 04; `train.model` is the untied model of the course."""
    nproc_per_node: int | Literal["auto"]

    @property
    def data(self) -> Path:
        """Where this profile keeps its tokenizer and shards."""
        return home() / "data" / self.name

    @property
    def tokenizer(self) -> Path:
        """Folder of the trained tokenizer, written by notebook 02."""
        return self.data / "tokenizer"

    @property
    def shards(self) -> Path:
        """Folder of the token shards, written by notebook 02."""
        return self.data / "shards"

    @property
    def design(self) -> Path:
        """The reader's own model, which takes the place of the profile's; written by notebook 01 or `save_design`."""
        return self.data / "design.json"

    @property
    def runs(self) -> Path:
        """Where this profile's run directories lie."""
        return home() / "runs" / self.name


def home() -> Path:
    """The folder that holds `data/` and `runs/`: $TINYLIB_HOME, else this checkout, else the working directory."""
    if "TINYLIB_HOME" in os.environ:
        return Path(os.environ["TINYLIB_HOME"])
    checkout = Path(__file__).resolve().parent.parent
    return checkout if (checkout / "notebooks").is_dir() else Path.cwd()


def profile(name: str | None = None) -> Profile:
    """The profile called `name`, else $TINYLIB_PROFILE, else "gpu" where CUDA is and "cpu" elsewhere.

    Its model is the reader's own where `save_design` wrote one.  Raises ConfigError for a broken file of that.

    >>> profile("smoke").train.model.dim
    64
    """
    chosen = _own(name)
    if not chosen.design.is_file():
        return chosen
    return replace(chosen, train=_with_design(chosen, chosen.design.read_text(encoding="utf-8")))


def _own(name: str | None) -> Profile:
    """The profile as it is without a design of the reader's."""
    name = name or os.environ.get("TINYLIB_PROFILE") or ("gpu" if device().kind == "cuda" else "cpu")
    if name not in _PROFILES:
        raise ValueError(f"TINYLIB_PROFILE={name!r} is not a profile: use " + ", ".join(_PROFILES))
    chosen = _PROFILES[name]
    return replace(chosen, train=replace(chosen.train, data=str(chosen.shards), run=str(chosen.runs / "untied")))


def save_design(config: GPTConfig, profile_name: str | None = None) -> Path:
    """Make `config` the model that the profile trains from now on, in every notebook and verb; returns its file.

    Delete the file to go back to the profile's own.  Raises ConfigError for a tied model, for the course compares with
    that later, and where the profile's batch does not suit it.
    """
    chosen = _own(profile_name)
    rules.refuse(f"design {chosen.design}", ["tied=True comes last in the course, in notebook 06: use tied=False"]
                 if config.tied else [])
    _with_design(chosen, to_json(config))
    chosen.design.parent.mkdir(parents=True, exist_ok=True)
    chosen.design.write_text(to_json(config) + "\n", encoding="utf-8")
    return chosen.design


def _with_design(chosen: Profile, text: str) -> TrainConfig:
    """The run of a profile with the model that `text` holds."""
    try:
        return replace(chosen.train, model=from_json(GPTConfig, text))
    except ConfigError as error:
        raise ConfigError(f"design {chosen.design}", error.problems) from None
    except (ValueError, TypeError) as error:
        raise ConfigError(f"design {chosen.design}", [f"{error}, so it holds no model: delete it"]) from None


_PROFILES: dict[str, Profile] = {
    "smoke": Profile("smoke", "pydocs-stdlib", TrainConfig(
        model=replace(PRESETS["nano"], seq_len=128), steps=40, total_batch_size=2_048, device_batch_size=8,
        eval_every=20, eval_tokens=16_384, save_every=20, compile="off"), nproc_per_node=2),
    "cpu": Profile("cpu", "pydocs", TrainConfig(
        model=replace(PRESETS["micro"], seq_len=256), steps=680, total_batch_size=4_096, device_batch_size=8,
        eval_every=170, eval_tokens=65_536, save_every=340), nproc_per_node=2),
    "gpu": Profile("gpu", "fineweb-edu", TrainConfig(
        model=PRESETS["goldilocks"], steps=1_440, total_batch_size=524_288, device_batch_size=32,
        eval_every=250, eval_tokens=10_485_760, save_every=250), nproc_per_node="auto"),
}


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


@dataclass(frozen=True)
class Check:
    """One line of `doctor`: `state` is "ok", "warning" (a part is missing) or "error" (the course can't run)."""

    name: str
    state: Literal["ok", "warning", "error"]
    detail: str


def doctor() -> list[Check]:
    """What is here, what is missing and what to do about it, one line each; nothing is changed."""
    return [_python(), *_packages(), *_torch(), _compiler(), _disk(), _kernel()]


def _python() -> Check:
    memory_gib = memory_bytes() / 2**30
    return Check("python", "ok", f"{platform.python_version()}, {cores()} cores, {memory_gib:.0f} GiB of memory")


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

    found = device()
    chosen, reason = dtype(found)
    state: Literal["ok", "warning"] = "ok" if found.kind == "cuda" else "warning"
    advice = "" if found.kind == "cuda" else "; no GPU: the cpu profile is used, and goldilocks itself needs one"
    return [Check("torch", "ok", torch.__version__),
            Check("device", state, f"{found.count} × {found.kind} ({found.name}){advice}"),
            Check("dtype", "ok", f"{chosen}: {reason}"), Check("profile", "ok", profile().name)]


def _compiler() -> Check:
    there, detail = can_compile()
    return Check("compile", "ok" if there else "warning", detail)


def _disk() -> Check:
    folder = home()
    free = shutil.disk_usage(folder if folder.exists() else Path.cwd()).free
    if free < 0.2e9:
        return Check("disk", "error", f"{free / 1e9:.1f} GB free, the cpu profile writes 0.1 GB: free some space")
    if free < 5e9:    # gpu: 1.5 GB of text, as many of tokens, two checkpoints of 0.4 GB for each of two runs
        return Check("disk", "warning", f"{free / 1e9:.1f} GB free: enough for the cpu profile, gpu wants 5")
    return Check("disk", "ok", f"{free / 1e9:.0f} GB free")


def _kernel() -> Check:
    if not _installed("ipykernel"):
        return Check("kernel", "warning", "no ipykernel, so no notebooks: pip install -e .")
    place = "the base environment" if sys.prefix == sys.base_prefix else "a virtual environment"
    return Check("kernel", "ok", f"ipykernel {metadata.version('ipykernel')} in {place}")


def _installed(name: str) -> bool:
    try:
        metadata.version(name)
    except metadata.PackageNotFoundError:
        return False
    return True

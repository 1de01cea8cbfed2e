"""Profiles smoke, cpu and gpu: every size that a notebook uses; the home folder; the reader's own model."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from tinylib import checks
from tinylib.config import PRESETS, ConfigError, GPTConfig, TrainConfig, from_json, to_json


@dataclass(frozen=True)
class Profile:
    """Sizes for one kind of machine; notebooks take every size from here."""

    name: Literal["smoke", "cpu", "gpu"]
    corpus: str
    """Name of the corpus, for `tinylib.corpus.load`."""
    train: TrainConfig
    """Configuration of the run in notebook 04; `train.model` is the untied model of the course."""
    nproc_per_node: int | Literal["auto"]
    conversations: str
    """Corpus of conversations for fine-tuning in notebook 07."""
    tuning_conversations: int
    """Conversations that it reads, each once."""

    @property
    def data(self) -> Path:
        """Folder of this profile's tokenizer and shards."""
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
    def chat_shards(self) -> Path:
        """Folder of the packed conversations, written by notebook 07."""
        return self.data / "conversations"

    @property
    def design(self) -> Path:
        """File of the reader's own model, which replaces the profile's; written by notebook 01 or `save_design`."""
        return self.data / "design.json"

    @property
    def runs(self) -> Path:
        """Folder of this profile's run directories."""
        return home() / "runs" / self.name


def home() -> Path:
    """Folder of `data/` and `runs/`: $TINYLIB_HOME, else this checkout, else the working directory."""
    if os.environ.get("TINYLIB_HOME"):
        return Path(os.environ["TINYLIB_HOME"]).expanduser().absolute()
    checkout = Path(__file__).resolve().parent.parent
    return checkout if (checkout / "notebooks").is_dir() else Path.cwd()


def profile(name: str | None = None) -> Profile:
    """The profile `name`, else $TINYLIB_PROFILE, else "gpu" if CUDA is available, else "cpu".

    Its model is the reader's own if `save_design` wrote one.  Raises UserError for an unknown name, ConfigError if the
    design file is broken.

    >>> profile("smoke").train.model.dim
    64
    """
    chosen = _standard(name)
    if not chosen.design.is_file():
        return chosen
    return replace(chosen, train=_with_design(chosen, chosen.design.read_text(encoding="utf-8")))


def _standard(name: str | None) -> Profile:
    """The profile with its own model, whatever design was saved."""
    name = name or os.environ.get("TINYLIB_PROFILE") or _default()
    if name not in _PROFILES:
        raise checks.UserError(f"profile={name!r} (TINYLIB_PROFILE) is not a profile: use {checks.join_or(_PROFILES)}")
    chosen = _PROFILES[name]
    return replace(chosen, train=replace(chosen.train, data=str(chosen.shards), run_dir=str(chosen.runs / "untied")))


def _default() -> str:
    """The profile of this machine; makes no CUDA context, which would take GPU memory only to find a folder."""
    import torch

    return "gpu" if torch.cuda.is_available() else "cpu"


def save_design(config: GPTConfig, profile_name: str | None = None) -> Path:
    """Save `config` as the model of the profile, for every notebook and verb; returns its file.

    Delete the file to return to the profile's own model.  Raises ConfigError if the model is tied, because notebook 06
    ties it, or if the profile's batch is no multiple of its context.
    """
    chosen = _standard(profile_name)
    tied = "tied=True is what notebook 06 makes of an untied model: use tied=False"
    checks.raise_if(f"design {chosen.design}", [tied if config.tied else None])
    _with_design(chosen, to_json(config))
    chosen.design.parent.mkdir(parents=True, exist_ok=True)
    chosen.design.write_text(to_json(config) + "\n", encoding="utf-8")
    return chosen.design


def _with_design(chosen: Profile, text: str) -> TrainConfig:
    """The profile's run with the model in `text` (JSON)."""
    try:
        return replace(chosen.train, model=from_json(GPTConfig, text))
    except ConfigError as error:
        raise ConfigError(f"design {chosen.design}", error.problems) from None


_PROFILES: dict[str, Profile] = {
    "smoke": Profile("smoke", "pydocs-stdlib", TrainConfig(
        model=replace(PRESETS["nano"], seq_len=128), steps=40, total_batch_size=2_048, device_batch_size=8,
        eval_every=20, eval_tokens=16_384, save_every=20, compile="off"), nproc_per_node=2, conversations="pyqa-stdlib",
        tuning_conversations=600),
    "cpu": Profile("cpu", "pydocs", TrainConfig(
        model=replace(PRESETS["micro"], seq_len=256), steps=512, total_batch_size=4_096, device_batch_size=8,
        eval_every=128, eval_tokens=65_536, save_every=256), nproc_per_node=2, conversations="pyqa",
        tuning_conversations=8_000),
    "gpu": Profile("gpu", "fineweb-edu", TrainConfig(
        model=PRESETS["goldilocks"], steps=1_440, total_batch_size=524_288, device_batch_size=32,
        eval_every=250, eval_tokens=10_485_760, save_every=250), nproc_per_node="auto", conversations="smoltalk",
        tuning_conversations=100_000),
}

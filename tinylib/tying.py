"""Weight tying of a trained checkpoint: one table made of two, or two made of one, with their optimizer state.

The first norm divides each row of `wte` by its size, so a row may be scaled freely, as long as it stays far above
√eps = 1e-3 per entry; a row of the head may not.  `tie` first gives each row of `wte` the norm of its head row.

Source: Press and Wolf 2017, https://arxiv.org/abs/1608.05859, for tying; there the model is tied from the start.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor

from tinylib import checkpoint
from tinylib.checks import UserError, check_choice, raise_if
from tinylib.config import TieMethod, TrainConfig, from_dict
from tinylib.model import GPT, NORM_EPS
from tinylib.optim import Optimizer
from tinylib.rundir import RunDirectory, plain
from tinylib.shards import Shards
from tinylib.tokenizer import Tokenizer

WTE, HEAD = "wte.weight", "lm_head.weight"
EMBEDDING_WEIGHT = 5.0
"""Weight of the squared change of a normed embedding's entry against that of a logit.

Measured on nano after 600 steps on Python's documentation, bits per byte tied: 2 gives 3.403, 5 3.109, 10 3.118.
"""


def tie(folder: str | Path, target: str | Path, method: TieMethod = "least-change",
        held_out: Shards | None = None) -> Path:
    """Weight tying: write the untied checkpoint in `folder` as a tied one at `target`; returns `target`.

    Rows of `wte` are scaled to the norms of the head's rows.  The table is then "head" or "embedding", one of the two
    as it is; their "mean"; or "least-change", see `least_change`, for hidden states of `held_out`, by default the
    validation split of the run's shards.

    Raises UserError if the model is tied or the shards have another tokenizer, FileExistsError for a taken `target`,
    FileNotFoundError without a checkpoint.
    """
    raise_if("tie", [check_choice("method", method, get_args(TieMethod))])
    model, state, optimizer = _read(folder, target, tied=False)
    wte_VD, head_VD = model.wte.weight.detach(), model.unembedding.detach()
    scaled_VD = wte_VD * (head_VD.norm(dim=1) / wte_VD.norm(dim=1).clamp_min(1e-30))[:, None]
    if method == "least-change":
        shards = held_out or Shards(state["train"]["data"], "val")
        shards.check_tokenizer(Tokenizer.load(Path(folder) / checkpoint.TOKENIZER).fingerprint, str(folder))
        table_VD = least_change(scaled_VD, head_VD, second_moment(model, shards))
    else:
        table_VD = {"head": head_VD, "embedding": scaled_VD, "mean": (scaled_VD + head_VD) / 2}[method]
    moments = _tied_moments(optimizer, _size(table_VD) / _size(wte_VD))
    return _write(folder, target, model, {WTE: table_VD}, optimizer, moments, state)


def untie(folder: str | Path, target: str | Path, rescale: bool = True) -> Path:
    """Untied weights: write the tied checkpoint in `folder` as an untied one at `target`; returns `target`.

    Both tables begin as the tied one.  `rescale` multiplies each row of `wte` by a power of two, so that its entries
    are of size 1, which `embedding_lr` is made for, and the logits change by what eps does; without it they are the
    same to the last bit.  Raises as `tie` does.
    """
    model, state, optimizer = _read(folder, target, tied=True)
    table_VD = model.wte.weight.detach()
    exponent_V = -table_VD.square().mean(dim=1).clamp_min(NORM_EPS).sqrt().log2().round()
    scale_V1 = torch.ldexp(torch.ones(()), exponent_V * rescale)[:, None]
    # A tied gradient is the sum of the two roles' gradients, and nothing tells how much was whose: half for each, so
    # that tying again gives the state back.  AdamW forgets it in 1 / (1 - β) steps, 5 and 20.
    halves = {key: value if key == "step" else value / 2 for key, value in _of(optimizer, WTE).items()}
    moments = {f"{HEAD}/{key}": value for key, value in halves.items()} | {
        f"{WTE}/step": halves["step"], f"{WTE}/exp_avg": halves["exp_avg"] / scale_V1,
        f"{WTE}/exp_avg_sq": halves["exp_avg_sq"] / scale_V1.square()}
    return _write(folder, target, model, {WTE: table_VD * scale_V1, HEAD: table_VD}, optimizer, moments, state)


def write_run(source: RunDirectory, made: RunDirectory, method: TieMethod | None,
              held_out: Shards | None = None) -> tuple[TrainConfig, int]:
    """Write `made`, a run whose checkpoint is the newest of `source` tied by `method` (None: untied).

    Returns its configuration and the step of its checkpoint.  Raises as `tie` does.
    """
    folder, written = source.checkpoint(), source.read_config()
    old, step = from_dict(TrainConfig, written["train"]), source.saved_steps()[-1]
    target = made.checkpoint_path(step)
    if method is None:
        untie(folder, target)
    else:
        tie(folder, target, method, held_out)
    config = replace(old, model=replace(old.model, tied=not old.model.tied), run_dir=str(made.path))
    made.write_config(config, written["world_size"], launch=written.get("launch"))
    made.write_status("finished" if step >= config.steps else "stopped", step=step, steps=config.steps)
    return config, step


def least_change(wte_VD: Tensor, head_VD: Tensor, moment_DD: Tensor, weight: float = EMBEDDING_WEIGHT) -> Tensor:
    """Least squares between two tables: rows e [V, D] that change logits and normed embeddings least.

    Each row minimises (e - h)ᵀ·C·(e - h) + weight·‖e - w‖² / ‖h‖², where h is its row in `head_VD`, w its row in
    `wte_VD`, as long as h, and C is `moment_DD`.  The first term is the mean squared change of its logit, the second
    that of an entry of its normed embedding, taken as if e were as long as h.  A token is read as often as it is to be
    predicted, so its frequency multiplies both terms and changes nothing.

    In the eigenbasis of C, e is a weighted mean: near h where hidden states are large, near w elsewhere.
    """
    power_D, basis_DD = torch.linalg.eigh(moment_DD)
    power_D, pull_V1 = power_D.clamp_min(0), (weight / _size(head_VD).square())[:, None]
    mixed_VD = (power_D * (head_VD @ basis_DD) + pull_V1 * (wte_VD @ basis_DD)) / (power_D + pull_V1)
    return mixed_VD @ basis_DD.mT


@torch.no_grad()
def second_moment(model: GPT, shards: Shards, max_tokens: int = 32_768) -> Tensor:
    """Second moment [D, D] of the hidden states that the head reads, E[x·xᵀ], on the first tokens of `shards`."""
    windows = max(1, max_tokens // model.config.seq_len)
    total_DD, count = torch.zeros(model.config.dim, model.config.dim), 0
    for x_BT, y_BT in shards.in_order(model.config.seq_len, windows):
        hidden_RD = model.hidden(x_BT)[y_BT >= 0]
        total_DD += hidden_RD.mT @ hidden_RD
        count += len(hidden_RD)
    return total_DD / count


def _tied_moments(optimizer: Optimizer, scale_V: Tensor) -> dict[str, Tensor]:
    """AdamW's state of the tied table, whose rows are `scale_V` times as large as those of `wte`.

    The loss does not depend on the size s of a row of `wte`, so its gradient is proportional to 1/s.  The tied gradient
    is the sum a + b of both roles', and so is its mean: m = m_wte / s + m_head.  The mean square of a + b is that of a
    plus that of b, where the two are uncorrelated: v = v_wte / s² + v_head.
    """
    wte, head = _of(optimizer, WTE), _of(optimizer, HEAD)
    scale_V1 = scale_V[:, None]
    return {f"{WTE}/step": wte["step"], f"{WTE}/exp_avg": wte["exp_avg"] / scale_V1 + head["exp_avg"],
            f"{WTE}/exp_avg_sq": wte["exp_avg_sq"] / scale_V1.square() + head["exp_avg_sq"]}


def _size(table_VD: Tensor) -> Tensor:
    """Norm [V] of each row with the eps of RMSNorm, so never zero: the first norm divides by it, times 1 / √D."""
    return (table_VD.square().sum(dim=1) + table_VD.shape[1] * NORM_EPS).sqrt()


def _of(optimizer: Optimizer, name: str) -> dict[str, Tensor]:
    """State of one tensor by its own keys: step, exp_avg, exp_avg_sq."""
    return {key.split("/")[1]: value for key, value in optimizer.state().items() if key.startswith(f"{name}/")}


def _read(folder: str | Path, target: str | Path, tied: bool) -> tuple[GPT, dict[str, Any], Optimizer]:
    """Model, train state and optimizer of the checkpoint in `folder`, which must be `tied` or not, as said."""
    if Path(target).exists():
        raise FileExistsError(f"target={str(target)!r} is taken: choose another folder, or remove it")
    if checkpoint.read_model_config(folder).tied != tied:
        raise UserError(f"the model in {folder} is {'not tied' if tied else 'tied already'}: use "
                        f"{'tie' if tied else 'untie'}, or another checkpoint")
    state = checkpoint.read_train_state(folder)
    config = from_dict(TrainConfig, state["train"])
    model = GPT(config.model)
    optimizer = Optimizer(model, config)
    checkpoint.load_training(folder, model, optimizer)
    return model.eval(), state, optimizer


def _write(folder: str | Path, target: str | Path, model: GPT, tables: Mapping[str, Tensor], optimizer: Optimizer,
           moments: Mapping[str, Tensor], state: dict[str, Any]) -> Path:
    """Save `model` with other tables, and their `moments`, as a checkpoint of which all else is as in `folder`."""
    config = from_dict(TrainConfig, state["train"])
    config = replace(config, model=replace(config.model, tied=not config.model.tied))
    changed = GPT(config.model)
    weights = {**dict(model.named_parameters()), **tables}
    with torch.no_grad():
        for name, weight in changed.named_parameters():
            weight.copy_(weights[name])
    fresh = Optimizer(changed, config)
    fresh.load_state({**optimizer.state(), **moments})
    return checkpoint.save(target, changed, fresh, {**state, "train": plain(config)},
                           Path(folder) / checkpoint.TOKENIZER)

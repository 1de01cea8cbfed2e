"""Checkers of notebook 04: distributed training."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from tinylib.config import GPTConfig
from tinylib.course.exercises import checker, given
from tinylib.model import GPT

Send = Callable[[int, int, Tensor], Tensor]


@checker("04.1")
def most_devices(answer: Callable[[float, float, float], int]) -> None:
    """The most devices with which computing still takes at least as long as the all-reduce."""
    for compute_s, size, link in ((1.0, 1e9, 50e9), (0.2, 151e6, 450e9), (0.01, 1e9, 10e9), (3.0, 4e9, 25e9)):
        found = given(answer(compute_s, size, link))
        assert isinstance(found, int), f"a number of devices is a whole number, not {found!r}"

        def holds(count: int, compute_s: float = compute_s, size: float = size, link: float = link) -> bool:
            return compute_s / count >= 2 * (count - 1) / count * size / link

        assert found >= 1, f"one device has nobody to talk to, so {found} is too few"
        case = f"{compute_s:g} s of compute on one device, {size:g} bytes of gradients, a link of {link:g} bytes/s"
        assert holds(found), f"{case}: with {found} devices the all-reduce takes longer than computing"
        assert not holds(found + 1), f"{case}: with {found + 1} devices computing still takes at least as long"


@checker("04.2")
def accumulated(answer: Callable[[GPT, Tensor, Tensor, int], float]) -> None:
    """Gradient of the mean loss of a batch, from micro-batches with different numbers of targets."""
    config = GPTConfig(depth=1, dim=16, vocab_size=32, head_dim=8, seq_len=8)
    draw = torch.Generator().manual_seed(0)
    for rows, micro in ((4, 4), (4, 2), (5, 2)):
        model, seen = _drawn(config), []
        x_BT, y_BT = torch.randint(32, (2, rows, 8), generator=draw)
        y_BT[:1] = -1
        y_BT[1, :6] = -1
        model(x_BT, y_BT).backward()
        right = [weight.grad.clone() for weight in model.parameters()]
        loss = model(x_BT, y_BT).item()
        for weight in model.parameters():
            weight.grad = torch.ones_like(weight)    # of an earlier batch
        hook = model.register_forward_pre_hook(lambda _, inputs, seen=seen: seen.append(len(inputs[0])))
        found = given(answer(model, x_BT.clone(), y_BT.clone(), micro))
        hook.remove()
        assert max(seen, default=0) <= micro, f"{max(seen)} rows went through the model at once, {micro} are allowed"
        assert sum(seen) == rows, f"of {rows} rows, {sum(seen)} went through the model"
        got = [weight.grad for weight in model.parameters()]
        off = _distance(got, right)
        assert abs(_distance(got, [part + 1 for part in right])) > 1e-4, (
            "the gradient of an earlier batch is still in it: where does it begin at zero?")
        assert off < 1e-4, (f"{rows} rows by {micro}: the gradient is off by {off:.1%}: what does a target weigh in a "
                            "micro-batch with few of them?")
        assert abs(found - loss) < 1e-4, f"the gradient is right; the mean loss is {loss:.4f}, not {float(found):.4f}"


def _drawn(config: GPTConfig) -> GPT:
    """A model whose gradients are nowhere zero."""
    model, draw = GPT(config), torch.Generator().manual_seed(1)
    for weight in model.parameters():
        torch.nn.init.normal_(weight, std=0.3, generator=draw)
    return model


def _distance(found: list[Tensor], right: list[Tensor]) -> float:
    """Length of the difference as a share of the right one."""
    off, size = (sum(float(part.square().sum()) for part in parts) for parts in (
        [one - other for one, other in zip(found, right, strict=True)], right))
    return math.sqrt(off / size)


@checker("04.3")
def doubling(answer: Callable[[list[Tensor], Send], list[Tensor]]) -> None:
    """All-reduce by recursive doubling: log2(n) rounds of whole tensors."""
    for count in (2, 4, 8):
        tensors = [torch.arange(6.0) * 10.0**rank for rank in range(count)]
        sent = [0] * count

        def send(source: int, target: int, tensor: Tensor, sent: list[int] = sent) -> Tensor:
            assert source != target, f"rank {source} sends to itself"
            sent[source] += 1
            return tensor.clone()

        found = given(answer([tensor.clone() for tensor in tensors], send))
        right, rounds = torch.stack(tensors).sum(0), count.bit_length() - 1
        assert len(found) == count, f"{count} ranks have a result each, not {len(found)}"
        wrong = [rank for rank, tensor in enumerate(found) if not torch.allclose(tensor, right)]
        assert not wrong, (f"{count} ranks: rank {wrong[0]} has {found[wrong[0]].tolist()}, not {right.tolist()}: in a "
                           "round, does every rank send what it had before the round?")
        assert sum(sent), "the sum is right, but nothing was sent: what a rank knows of others comes through `send`"
        assert max(sent) <= rounds, f"{count} ranks: one of them sent {max(sent)} times; {rounds} rounds are enough"


@checker("04.4")
def step_gradient(answer: Callable[[list[Tensor], list[int], float], Tensor]) -> None:
    """The clipped gradient of the mean loss, from the ranks' summed gradients and targets."""
    a, b = torch.tensor([30.0, 0.0]), torch.tensor([0.0, 40.0])
    given(answer([a.clone()], [10], 1.0))
    for what, gradients, targets, clip in (
            ("one rank, nothing to clip", [a], [100], 1.0), ("one rank", [a], [10], 1.0),
            ("two ranks of equal targets, nothing to clip", [a, b], [50, 50], 9.0),
            ("two ranks of unequal targets, nothing to clip", [a, b], [10, 90], 9.0),
            ("two ranks of equal targets, of which one is longer than the clip", [a, 0.1 * b], [10, 10], 1.0),
            ("two ranks whose gradients cancel", [a, -a], [1, 1], 1.0)):
        total = torch.stack(gradients).sum(0) / sum(targets)
        right = total * min(1.0, clip / max(float(total.norm()), 1e-30))
        found = answer([gradient.clone() for gradient in gradients], list(targets), clip)
        assert torch.allclose(torch.as_tensor(found), right, atol=1e-6), (
            f"{what}: {torch.as_tensor(found).tolist()} is not what one process with the whole batch computes, "
            f"{right.tolist()}")


@checker("04.5")
def tokens_until(answer: Callable[[list[float], int, float], float]) -> None:
    """Tokens read until the mean of the last five losses is at or below a level."""
    falling = [9.0, 8.0, 7.0, 6.0, 5.0, 4.0, 3.0, 2.0]
    for losses, batch, level, step in ((falling, 100, 7.0, 5), (falling, 100, 5.0, 7), (falling, 64, 6.5, 6),
                                       ([9.0, 1.0, 9.0, 9.0, 9.0, 9.0], 10, 7.4, 5), (falling, 100, 1.0, None)):
        right = math.inf if step is None else step * batch
        found = given(answer(list(losses), batch, level))
        assert found == right, (f"losses {losses}, {batch} tokens a step, level {level:g}: {found} is not {right}. "
                                "Take the mean of the last five losses from the fifth step on, and math.inf if it "
                                "never gets there")

"""One precision path: the dtype of every operation of a training pass, on CUDA as on the CPU, traced without a GPU."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tinylib.config import GPTConfig
from tinylib.model import GPT

CONFIG = GPTConfig(depth=2, dim=128, vocab_size=256, seq_len=32)
PRODUCTS = ("mm", "bmm", "addmm", "addmm_", "baddbmm", "linear")


class Trace(TorchDispatchMode):
    """Every operation that was dispatched, with the dtypes of its tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.operations: list[tuple[str, tuple[torch.dtype, ...], tuple[torch.dtype, ...]]] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = function(*args, **(kwargs or {}))
        name = function.overloadpacket.__name__
        self.operations.append((name, dtypes((args, kwargs)), dtypes(out)))
        return out

    def of(self, *names: str) -> list[tuple[tuple[torch.dtype, ...], tuple[torch.dtype, ...]]]:
        return [(into, out) for name, into, out in self.operations if name in names]


class Attention(TorchFunctionMode):
    """Attention as one operation: which kernel computes it, only a real device can say."""

    def __init__(self, trace: Trace) -> None:
        super().__init__()
        self._trace = trace

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function is not F.scaled_dot_product_attention or args[0].device.type == "cpu":
            return function(*args, **(kwargs or {}))
        self._trace.operations.append(("attention", dtypes(args), dtypes(args[2])))
        return torch.empty_like(args[2])


def dtypes(values: Any) -> tuple[torch.dtype, ...]:
    return tuple(leaf.dtype for leaf in tree_leaves(values)
                 if isinstance(leaf, torch.Tensor) and leaf.dtype.is_floating_point and leaf.ndim > 0)


@contextmanager
def traced(device: str, dtype: torch.dtype, tied: bool = False,
           held: torch.dtype = torch.float32) -> Iterator[tuple[Trace, GPT]]:
    """FakeTensors have shapes, dtypes and devices without memory, so that CUDA's operations are chosen without CUDA.

    Only autograd needs CUDA itself.  The loss computes its gradients in the forward pass, so they are traced too.
    """
    with FakeTensorMode():
        with torch.device("meta"):
            model = GPT(replace(CONFIG, tied=tied), dtype=dtype)
        model.load_state_dict({name: torch.empty_like(weight, device=device, dtype=held)
                               for name, weight in model.state_dict().items()}, assign=True)
        with torch.device(device), torch.set_grad_enabled(device == "cpu"), Trace() as trace, Attention(trace):
            yield trace, model


def training_pass(device: str, dtype: torch.dtype, tied: bool = False) -> tuple[Trace, torch.Tensor, torch.Tensor]:
    with traced(device, dtype, tied) as (trace, model):
        x_BT = torch.zeros(2, 32, dtype=torch.long)
        hidden_BTD, loss = model.hidden(x_BT), model(x_BT, x_BT)
        if device == "cpu":
            loss.backward()
            assert all(weight.grad.dtype == torch.float32 for weight in model.parameters())
    return trace, hidden_BTD, loss


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_products_are_in_the_compute_type_and_the_rest_as_designed(dtype: torch.dtype, device: str, tied: bool) -> None:
    trace, hidden_BTD, loss = training_pass(device, dtype, tied)
    assert (hidden_BTD.dtype, loss.dtype) == (dtype, torch.float32)
    products = trace.of(*PRODUCTS)
    assert len(products) >= 2 * 2 * 6 + 3 and {each for pair in products for each in pair[0] + pair[1]} == {dtype}
    scores = [out for name, _, out in trace.operations if "attention" in name]
    assert scores and all(out[0] == dtype for out in scores)
    assert {out for _, out in trace.of("embedding")} == {(torch.float32,)}


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize(("dtype", "stream"), [(torch.bfloat16, torch.bfloat16), (torch.float16, torch.float32)],
                         ids=str)
def test_the_residual_stream_is_wider_in_float16_alone(dtype: torch.dtype, stream: torch.dtype, device: str) -> None:
    seen = []
    with traced(device, dtype) as (_, model):
        for block in model.blocks:
            block.register_forward_hook(lambda block, inputs, out: seen.extend([inputs[0].dtype, out.dtype]))
        model(torch.zeros(2, 32, dtype=torch.long))
    assert seen == 4 * [stream]


def test_float32_stays_float32_on_cuda() -> None:
    trace, *_ = training_pass("cuda", torch.float32)
    assert {each for _, into, out in trace.operations for each in into + out} == {torch.float32}


def test_a_model_held_in_the_compute_type_casts_no_weight() -> None:
    casts = {}
    for held in (torch.float32, torch.bfloat16):
        with traced("cuda", torch.bfloat16, held=held) as (trace, model):
            assert model(torch.zeros(2, 32, dtype=torch.long)).dtype == torch.float32
        casts[held] = sum(into != out for into, out in trace.of("_to_copy"))
    assert casts[torch.float32] - casts[torch.bfloat16] == len(list(model.parameters()))

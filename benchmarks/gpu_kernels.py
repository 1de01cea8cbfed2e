"""Device time of training steps by class of kernel, read from torch.profiler's events; on a CPU, of operators."""

from __future__ import annotations

import re
from collections import defaultdict
from typing import Any

from torch.autograd import DeviceType

LIBRARY = r"^(?!triton_)"
"""Not inductor's own kernels, which are called after every operator that they fuse."""
CLASSES = {"attention": LIBRARY + r".*(flash|fmha|sdpa|attention)", "NCCL": r"nccl",
           "matrix products": LIBRARY + r".*(gemm|nvjet|cutlass|xmma|splitk|gemv|::(mm|addmm|bmm|baddbmm)$)",
           "copies and casts": r"memcpy|memset|copy_kernel|::copy_$|fused__to_copy_(?:t_|transpose_|view_)*\d+$"}
"""Classes by the names of kernels, the first that fits."""
SPANS = r"loss$|Optimizer\.step"
"""Annotations: one of our own, and the one that torch sets around every optimizer's step."""


def by_class(events: list[Any], steps: int, on_gpu: bool) -> dict[str, list[dict[str, Any]]]:
    """Milliseconds a step of each class, with what is idle on a GPU, and the ten kernels with most of them."""
    events = [event for event in events if (event.device_type == DeviceType.CUDA) == on_gpu]
    spans = [event for event in events if event.is_user_annotation and re.match(SPANS, event.name)]
    ran = [event for event in events if not event.is_user_annotation]
    classes: dict[str, float] = defaultdict(float)
    kernels: dict[tuple[str, str], list[float]] = defaultdict(list)
    for event in ran:
        spent_ms = (event.time_range.elapsed_us() if on_gpu else event.self_cpu_time_total) / 1000 / steps
        kind = kernel_class(event, spans)
        classes[kind] += spent_ms
        kernels[kind, event.name[:100]].append(spent_ms)
    if on_gpu:
        classes["idle between kernels"] = idle_us(ran) / 1000 / steps
    total_ms = sum(classes.values())
    longest = sorted(kernels.items(), key=lambda item: -sum(item[1]))[:10]
    return {"rows": [{"class": kind, "ms": spent_ms, "share": spent_ms / total_ms}
                     for kind, spent_ms in sorted(classes.items(), key=lambda item: -item[1])],
            "longest": [{"ms": sum(spent), "calls": len(spent) / steps, "class": kind, "name": name}
                        for (kind, name), spent in longest]}


def kernel_class(event: Any, spans: list[Any]) -> str:
    """Class of a kernel: by where it ran for the optimizer, then by name, then by where it ran for the loss."""
    inside = [span.name for span in spans if span.time_range.start <= event.time_range.start < span.time_range.end]
    if any(name.startswith("Optimizer") for name in inside):
        return "optimizer"
    named = next((kind for kind, names in CLASSES.items() if re.search(names, event.name, re.IGNORECASE)), None)
    return named or ("loss" if inside else "norms, elementwise, other")


def idle_us(ran: list[Any]) -> float:
    """Microseconds between the first and the last kernel in which none ran."""
    idle, until = 0.0, None
    for event in sorted(ran, key=lambda event: event.time_range.start):
        idle += 0.0 if until is None else max(0.0, event.time_range.start - until)
        until = max(until or 0.0, event.time_range.end)
    return idle

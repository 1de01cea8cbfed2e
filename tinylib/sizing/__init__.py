"""Closed forms: parameters, FLOPs, bytes; the plan of a batch and of a run; the search for a balanced shape.

Letters: B batch, T tokens, D dim, V vocabulary, L layers, N heads, H head dim.  No torch anywhere.
"""

from tinylib.sizing.counts import (
    Convention,
    Memory,
    Parameters,
    activation_bytes,
    balanced,
    decode_flops,
    flops_per_token,
    kv_cache_bytes,
    memory,
    optimizer_bytes,
    parameters,
    prefill_flops,
    weight_bytes,
)
from tinylib.sizing.planning import ASSUMED_MFU, BUDGETS, Budget, Plan, plan, plan_batch, token_budget
from tinylib.sizing.shapes import search, specifications

__all__ = [
    "ASSUMED_MFU", "BUDGETS", "Budget", "Convention", "Memory", "Parameters", "Plan", "activation_bytes", "balanced",
    "decode_flops", "flops_per_token", "kv_cache_bytes", "memory", "optimizer_bytes", "parameters", "plan",
    "plan_batch", "prefill_flops", "search", "specifications", "token_budget", "weight_bytes"]

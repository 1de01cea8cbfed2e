"""Closed forms of parameters, FLOPs and bytes; training plans; the search for a balanced shape.

Letters: B batch, T tokens, D dim, V vocabulary, L layers, N heads, H head dim.  Nothing here imports torch.
"""

from tinylib.sizing.budgets import BUDGETS, PUBLISHED, TIERS, published, tier, token_budget
from tinylib.sizing.counts import Shapes, balanced, decode_flops, flops_by_part, flops_per_token, layers, parameters
from tinylib.sizing.memory import (
    Memory,
    activation_bytes,
    chunk_rows,
    kv_cache_bytes,
    largest_batch,
    loss_bytes,
    memory,
    optimizer_bytes,
    update_bytes,
    weight_bytes,
)
from tinylib.sizing.planning import (
    ASSUMED_MFU,
    NETWORK,
    Plan,
    communication_s,
    duration,
    gathered_bytes,
    plan,
    plan_batch,
    plans,
)
from tinylib.sizing.roofline import operations
from tinylib.sizing.shapes import describe, missed, pareto_front, search, sheet, specifications

__all__ = [
    "ASSUMED_MFU", "BUDGETS", "NETWORK", "PUBLISHED", "TIERS", "Memory", "Plan", "Shapes", "activation_bytes",
    "balanced", "chunk_rows", "communication_s", "decode_flops", "describe", "duration", "flops_by_part",
    "flops_per_token", "gathered_bytes", "kv_cache_bytes", "largest_batch", "layers", "loss_bytes", "memory", "missed",
    "operations", "optimizer_bytes", "parameters", "pareto_front", "plan", "plan_batch", "plans", "published",
    "search", "sheet", "specifications", "tier", "token_budget", "update_bytes", "weight_bytes"]

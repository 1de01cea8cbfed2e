"""Reference solutions of the notebooks' exercises, named like the stubs; a test runs each against its checker."""

from __future__ import annotations

from typing import Any

SOLUTIONS: dict[str, Any] = {}
"""Exercise name -> its solution; each notebook's section adds its own."""


# Notebook 01: architecture math

# Notebook 02: tokenizer

# Notebook 03: model

# Notebook 04: distributed training

# Notebook 05: evaluation

# Notebook 06: weight tying

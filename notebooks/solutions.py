"""Reference solutions of the notebooks' exercises, named like the stubs; a test runs each against its checker."""

from __future__ import annotations

from typing import Any

# Exercise name -> the stub's name in its notebook and here.

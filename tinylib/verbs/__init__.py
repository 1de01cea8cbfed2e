"""The verbs of the command line, a file for each idea; `tinylib.__main__` lists them.

A verb takes the words after its name, prints a table for people and returns what the last line says as JSON.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

Result = dict[str, Any]


def show(rows: dict[str, Any] | pd.DataFrame) -> None:
    """Print a table for people: names and values, or a frame."""
    import pandas as pd

    table = rows if isinstance(rows, pd.DataFrame) else pd.Series(rows, dtype=object).to_frame()
    print(table.to_string(header=isinstance(rows, pd.DataFrame)))

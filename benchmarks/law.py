"""Terms of the scaling law that depend on the budget: the errors on unseen shapes and an unseen size.

    python benchmarks/law.py

Each term is added to the law of `tinylib.experiments.law` with a prior of 0 ± 0.03.  ρ is log2 of the bytes of text per
parameter of matrix products, over 120; s, l and tied are as in `law.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from unittest.mock import patch

import numpy as np
import pandas as pd

from tinylib.experiments import law

LAW, PRIOR = law._bits_per_byte, (0.0, 0.03)
TERMS = [[], ["tied·ρ"], ["s·ρ", "tied·ρ"], ["s·ρ", "l·ρ", "tied·ρ"], ["s·ρ", "l·ρ", "tied·ρ", "tied·l"]]


def with_terms(names: Sequence[str], values: np.ndarray, table: pd.DataFrame) -> np.ndarray:
    """Bits per byte of the law with these products added."""
    blocks, used = table["blocks"].to_numpy(float), (table["blocks"] + table["wte"]).to_numpy(float)
    factors = {"s": np.log2(2 * blocks / used), "l": np.log2(table["depth"].to_numpy(float) / 4),
               "tied": (table["total"] == table["total_tied"]).to_numpy(float),
               "ρ": np.log2(table["bytes"].to_numpy(float) / used / 120)}
    own, added = values[:len(values) - len(names)], values[len(values) - len(names):]
    return LAW(own, table) + sum(value * np.prod([factors[factor] for factor in name.split("·")], axis=0)
                                 for value, name in zip(added, names, strict=True))


def errors(table: pd.DataFrame) -> dict[str, float]:
    """Scatter about the law, and its error on what it hasn't seen, of means over seeds."""
    small = table["size"] == "nano"
    larger = table[~small].join(law.fit(table[small]).at(table[~small]))
    unseen, micro = (part.groupby(["size", "arm", "budget"]).mean(numeric_only=True)
                     for part in (law.unseen(table), larger))
    error = unseen["bits_per_byte"] - unseen["predicted"]
    return {"scatter": law.fit(table).noise, "error on unseen shapes": float((error**2).mean() ** 0.5),
            "in the 95% interval": float((error.abs() < unseen["half"]).mean()),
            "micro too low by": float((micro["bits_per_byte"] - micro["predicted"]).mean())}


def main() -> None:
    """Print a row a set of terms."""
    table, found = law.runs(), {}
    for names in TERMS:
        with patch.object(law, "_bits_per_byte", lambda values, rows, names=names: with_terms(names, values, rows)), \
                patch.dict(law.PRIORS, dict.fromkeys(names, PRIOR)):
            found[", ".join(names) or "none"] = errors(table)
    print(f"{len(table)} runs")
    print(pd.DataFrame(found).T.to_string(float_format="{:.4f}".format))


if __name__ == "__main__":
    main()

"""The README's findings are what the records say, by the rule of the notebook, and its figure is the notebook's."""

from __future__ import annotations

import base64
import json
import re
from pathlib import Path

import pytest

from tinylib import experiments
from tinylib.experiments import law

ROOT = Path(__file__).resolve().parent.parent
SECTION = (ROOT / "README.md").read_text(encoding="utf-8").split("## What the course found")[1].split("\n## ")[0]
ROWS = [[cell.strip() for cell in line.strip("|").split("|")] for line in SECTION.splitlines() if line.startswith("| ")]


@pytest.fixture(scope="module")
def measured() -> dict[str, tuple[str, str]]:
    """Of each arm the difference to thirds with its interval, and the verdict."""
    found = {}
    for block in experiments.report("nano"):
        if block.block.removesuffix("-quarter") in ("split", "depth", "tying"):
            budget = ", a quarter of the FLOPs" * block.block.endswith("quarter")
            found |= {f"{arm}{budget}": (f"{row['difference']:+.3f} ({row['low']:+.3f} to {row['high']:+.3f})",
                                         row["verdict"]) for arm, row in block.verdicts.iterrows()}
    return found


def test_the_table_is_what_the_records_say(measured):
    head, _, *rows = ROWS
    assert 3 <= len(rows) <= 10 and len(head) == 3
    for name, difference, verdict in rows:
        arm = re.sub(r" \(.*\)", "", name)
        assert (difference.replace("−", "-"), verdict) == measured[arm], name


def test_the_sentences_are_what_the_records_say():
    text = " ".join(SECTION.split()).replace("−", "-")
    nano = {block.block: block for block in experiments.report("nano")}
    apart = nano["two-rates"].differences["both rates 0.008"] - nano["tying-quarter"].differences["tied"]
    assert "as one table does, to within 0.001 in every seed" in text and len(apart) == 3 and apart.abs().max() < 0.001
    for block, verdict, *arms in (("split", "not told apart", "width 80", "width 48", "width 32", "width 24"),
                                  ("depth", "not told apart", "1 layer", "2 layers", "8 layers"),
                                  ("split-quarter", "better", "width 48", "width 32", "width 24"),
                                  ("split-quarter", "worse", "width 96", "width 80"),
                                  ("depth-quarter", "better", "1 layer", "2 layers"),
                                  ("optimizer", "not told apart", "AdamW, rate 0.004", "AdamW, rate 0.008"),
                                  ("two-rates", "not told apart", "bfloat16 embedding"),
                                  ("one-precision", "not told apart", "tied, bfloat16"),
                                  ("precision", "not told apart", "thirds, float32")):
        assert set(nano[block].verdicts.loc[arms, "verdict"]) == {verdict}, block
    runs = law.runs()
    larger, smaller = runs[runs["size"] == "micro"], runs[runs["size"] == "nano"]
    error = (larger["bits_per_byte"] - law.fit(smaller).at(larger)["predicted"]).mean()
    assert f"predicted {error:.2f} bits per byte too few for micro" in text
    rows = [row for block in experiments.report("micro") for row in block.verdicts.itertuples()]
    assert rows
    for row in rows:
        assert f"{row.difference:+.3f} ({row.low:+.3f} to {row.high:+.3f})" in text, row.Index


def test_its_figure_is_the_notebooks():
    [file] = re.findall(r"!\[.*?\]\((docs/\w+\.png)\)", SECTION)
    cells = json.loads((ROOT / "notebooks/06_weight_tying.ipynb").read_text(encoding="utf-8"))["cells"]
    stored = [output["data"]["image/png"] for cell in cells if cell["cell_type"] == "code"
              for output in cell["outputs"] if "image/png" in output.get("data", {})]
    assert (ROOT / file).read_bytes() in [base64.b64decode(picture) for picture in stored]



"""Verb for experiments: run what is missing, report what the records hold, make one again."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from tinylib import experiments, plots
from tinylib.cli import tables
from tinylib.cli.verbs import Result, verb
from tinylib.experiments.comparing import By, Comparison


@verb()
def experiment(name: str, minutes: float | None = None, workers: int | None = None, corpus: str | None = None,
               report: bool = False, by: By = "flops", figure: Path | None = None, again: str | None = None,
           time_steps: bool = False) -> Result:
    """Run what is missing of an experiment, resuming what was begun, and record each finished run; or report.

    Args:
        name: a description in data/experiments, without its suffix, or a path that ends in .toml
        minutes: when to save and stop; None when all is done
        workers: runs side by side, one thread each; None takes one a core
        corpus: file or folder of a text that the description knows by its hash; None takes $TINYLIB_CORPUS
        report: print and draw what the records hold, and run nothing
        by: compare at equal FLOPs, at equal bytes of text or at equal seconds, with --report
        figure: file of the drawing, with --report; None puts it beside the runs
        again: make this record again, arm-budget-seed as the table names it; exit code 1 if its curve differs
        time_steps: time a training step of every arm on this machine, which must be idle
    """
    if time_steps:
        seconds = experiments.time_steps(name, corpus=corpus)
        return Result({"experiment": experiments.describe(name).name, "seconds_per_step": seconds})
    if again:
        found = experiments.again(name, again, corpus=corpus)
        return Result(found, ok=found["same"])
    if report:
        return _report(name, by, figure)
    description = experiments.describe(name)
    counts = experiments.run(name, minutes=minutes, workers=workers, corpus=corpus)
    return Result({"experiment": description.name, **counts, "records": description.records_file})


def _report(name: str, by: By, figure: Path | None) -> Result:
    """A table a block, the figure of all of them, and the same as facts."""
    description, comparisons = experiments.describe(name), experiments.report(name, by)
    facts = {"experiment": description.name, "question": description.question, "by": by,
             "records": description.records_file, "blocks": [_facts(comparison) for comparison in comparisons]}
    if not comparisons:
        return Result(facts, f"{description.question}\n\nno records yet: tinylib experiment {name}")
    file = figure or experiments.folder(description) / "report.png"
    file.parent.mkdir(parents=True, exist_ok=True)
    drawn = {_title(comparison): {"95% interval": (comparison.differences, comparison.compared)}
             for comparison in comparisons}
    note = ", ".join(sorted({comparison.machine for comparison in comparisons}))
    file.write_bytes(plots.arm_differences(drawn, note).png())
    blocks = "\n\n".join(_table(comparison) for comparison in comparisons)
    return Result(facts | {"figure": file}, f"{description.question}\n\n{blocks}\n\n{tables.facts({'figure': file})}")


def _title(comparison: Comparison) -> str:
    block = comparison.block.replace("-quarter", ", a quarter of the FLOPs")
    return f"{block}, against {comparison.reference}" if len(comparison.compared) > 1 else block


def _facts(comparison: Comparison) -> dict[str, object]:
    compared = comparison.compared
    return {"block": comparison.block, "text": comparison.text, "reference": comparison.reference,
            "missing": comparison.missing, **compared.attrs, "arms": compared.reset_index().to_dict("records")}


def _table(comparison: Comparison) -> str:
    """A block: its rule, a row an arm with difference and interval, the noise."""
    compared = comparison.compared
    width = max(map(len, compared.index))
    rows = [{f"{'arm':<{width}}": f"{arm:<{width}}", "seeds": f"{row['seeds']:.0f}",
             "bits per byte": f"{row['mean']:.4f}",
             "difference": "" if arm == comparison.reference else f"{row['difference']:+.4f}",
             "95% interval": "" if pd.isna(row["low"]) else f"{row['low']:+.4f} to {row['high']:+.4f}"}
            for arm, row in compared.iterrows()]
    noise, df = compared.attrs["noise"], compared.attrs["df"]
    lines = [f"{_title(comparison)}; {comparison.flops:.3g} FLOPs a run; text {comparison.text}",
             pd.DataFrame(rows).to_string(index=False),
             f"noise {noise:.4f} ({df} degrees of freedom)" if df else "no noise: it takes two seeds",
             f"rule: {comparison.rule}"]
    return "\n".join(lines + [f"{comparison.missing} runs are still missing"] * (comparison.missing > 0))

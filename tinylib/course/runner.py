"""The whole course in one go: executes the notebooks in order, keeps them, and ends with a report and a table.

`run` is what `make run` calls.  Everything it writes lies in one folder, `runs/course/`: the executed notebooks and
`report.html`, one file that needs no network.
"""

from __future__ import annotations

import html
import os
import re
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tinylib import doctor, files, profiles, sizing
from tinylib.config import TrainConfig, from_dict
from tinylib.hardware import Profile
from tinylib.launch import Run
from tinylib.shards import Shards

if TYPE_CHECKING:
    import pandas as pd
    from nbformat import NotebookNode

NOTEBOOKS = ("01_architecture_math", "02_tokenizer", "03_model", "04_distributed_training", "05_evaluation",
             "06_weight_tying")
RUNS = ("untied", "tied")
"""The two runs of the course, trained by notebooks 04 and 06."""
PROMPTS = ("Return the", "This module")


class CourseFailed(RuntimeError):
    """The course can't go on; the message names the notebook, the cell and what happened there."""


def run(profile: str | None = None) -> dict[str, Any]:
    """Run the course in `profile` (None: what fits this machine), printing progress, and write the report.

    Returns the facts of the closing table.  Earlier runs of the course in this profile are removed first.  Raises
    CourseFailed at the first cell that fails; what was executed by then is kept.
    """
    began_s, chosen = time.monotonic(), profiles.profile(profile)
    source, kept = Path(__file__).resolve().parent.parent / "notebooks", profiles.home() / "runs" / "course"
    print(f"the course in the {chosen.name} profile, kept in {kept}")
    _say_what_is_missing()
    _make_room(chosen, kept)
    environment = {**os.environ, "TINYLIB_PROFILE": chosen.name, "TINYLIB_HOME": str(profiles.home().resolve())}
    executed = {name: execute(source / f"{name}.ipynb", kept, environment) for name in NOTEBOOKS}
    table, samples = closing_table(chosen), write_samples(chosen)
    report = write_report(executed, table, samples, kept / "report.html")
    print(f"\n{table.to_string()}\n")
    for prompt, text in samples.items():
        print(f"» {prompt}« {text}\n")
    print(f"report: {report}")
    return {"profile": chosen.name, "seconds": round(time.monotonic() - began_s, 1), "report": report,
            "table": table.to_dict(), "samples": samples}


def execute(path: Path, kept: Path, environment: Mapping[str, str]) -> NotebookNode:
    """Execute the notebook at `path` in its own folder and keep it in the folder `kept`, also when it fails.

    `environment` is that of its kernel, but for widgets: what is kept must show without a kernel, so they are off and
    leave their static panels.  Raises CourseFailed.
    """
    import nbformat
    from jupyter_client.kernelspec import NoSuchKernel
    from nbclient import NotebookClient
    from nbclient.exceptions import CellExecutionError, DeadKernelError

    if not path.is_file():
        raise CourseFailed(f"{path.name} is missing from {path.parent}: run the course from a whole checkout")
    notebook = nbformat.read(path, as_version=4)
    with _progress(path.stem, notebook) as progress:
        client = NotebookClient(notebook, timeout=None, record_timing=False, extra_arguments=["--log-level=ERROR"],
                                resources={"metadata": {"path": str(path.parent)}}, on_cell_start=progress.start,
                                on_cell_executed=progress.end)
        try:
            client.execute(env={**environment, "TINYLIB_WIDGETS": "off"})
        except NoSuchKernel as error:
            raise CourseFailed(f"{path.name}: this Python has no notebook kernel, pip install ipykernel") from error
        except (CellExecutionError, DeadKernelError) as error:
            raise CourseFailed(f"{path.name}, cell {progress.cell} of {progress.cells}:\n{_plain(error)}") from error
        finally:
            kept.mkdir(parents=True, exist_ok=True)
            files.write_text(kept / path.name, nbformat.writes(notebook))
    return notebook


def closing_table(profile: Profile) -> pd.DataFrame:
    """Parameters and their split, characters per token, bits per byte and speed of the two runs, side by side."""
    import pandas as pd

    return pd.DataFrame({name: _facts(profile.runs / name) for name in RUNS})


def _facts(path: Path) -> dict[str, str]:
    directory = Run(path).directory
    summary = directory.summary()
    if summary is None or summary["state"] != "finished":
        raise CourseFailed(f"the run {directory.path} has not finished: run notebooks 04 and 06 again")
    config = from_dict(TrainConfig, directory.read_config()["train"])
    counts, shards = sizing.parameters(config.model), Shards(config.data)
    split = " / ".join(f"{percent:.1f}" for percent in counts.split.values())
    return {"parameters": f"{counts.total:,}", "wte / blocks / lm_head, %": split,
            "characters per token": f"{shards.characters / shards.tokens:.2f}",
            "training tokens": f"{summary['tokens']:,}",
            "validation bits per byte": f"{summary['val_bpb']:.3f}",
            "tokens/s": f"{summary['tokens_per_s']:,.0f}"}


def write_samples(profile: Profile, max_tokens: int = 60) -> dict[str, str]:
    """What the untied model writes after each of PROMPTS."""
    from tinylib.generate import generate
    from tinylib.tokenizer import Tokenizer

    trained = Run(profile.runs / RUNS[0])
    model, tokenizer = trained.model(), Tokenizer.load(trained.directory.checkpoint() / "tokenizer")
    return {prompt: "".join(generate(model, tokenizer, prompt, max_tokens=max_tokens, temperature=0.7, seed=1))
            for prompt in PROMPTS}


def write_report(notebooks: Mapping[str, NotebookNode], table: pd.DataFrame, samples: Mapping[str, str],
                 path: Path) -> Path:
    """One HTML file with the closing table, a table of contents and all of `notebooks`; needs no network."""
    from nbconvert import HTMLExporter
    from nbformat.v4 import new_markdown_cell, new_notebook
    from pygments.formatters import HtmlFormatter

    titles = {name: _title(notebook, name) for name, notebook in notebooks.items()}
    contents = "\n".join(f'1. <a href="#{name}">{html.escape(title)}</a>' for name, title in titles.items())
    written = "\n\n".join(f"<pre><b>{html.escape(prompt)}</b>{html.escape(text)}</pre>"
                          for prompt, text in samples.items())
    cells = [new_markdown_cell(f"# tinylib: the course\n\n{table.to_html()}\n\n{written}\n\n{contents}")]
    for name, notebook in notebooks.items():
        cells += [new_markdown_cell(f'<a id="{name}"></a>'), *notebook.cells]
    exporter = HTMLExporter(template_name="basic")
    body, _ = exporter.from_notebook_node(new_notebook(cells=_renumbered(cells)))
    files.write_text(path, _PAGE.format(body=body, colours=HtmlFormatter().get_style_defs(".highlight")))
    return path


_PAGE = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>tinylib: the course</title><style>
body {{ max-width: 56rem; margin: 2rem auto; padding: 0 1rem; font: 16px/1.5 system-ui, sans-serif; color: #222 }}
pre {{ background: #f6f6f4; padding: .6rem .8rem; overflow-x: auto; font-size: 13px; line-height: 1.4;
      white-space: pre-wrap }}
.highlight pre {{ border-left: 3px solid #9ab }}
table {{ border-collapse: collapse; font-size: 14px }} th, td {{ border: 0; padding: .2rem .8rem; text-align: right }}
tr:nth-child(even) {{ background: #f6f6f4 }} img {{ max-width: 100% }} h1 {{ margin-top: 3rem }}
.prompt, .anchor-link {{ display: none }}
{colours}
</style></head><body>
{body}
</body></html>
"""


def _renumbered(cells: Sequence[NotebookNode]) -> list[NotebookNode]:
    """Copies of `cells` with ids that are unique in the merged document."""
    copies = [cell.copy() for cell in cells]
    for number, cell in enumerate(copies):
        cell["id"] = f"cell-{number}"
    return copies


def _title(notebook: NotebookNode, name: str) -> str:
    first = notebook.cells[0].source.splitlines()[0] if notebook.cells else ""
    return first.lstrip("# ") or name


def _say_what_is_missing() -> None:
    """One line for each thing this machine lacks; raises CourseFailed where the course can't do without it."""
    missing = [check for check in doctor.doctor() if check.state != "ok"]
    for check in missing:
        print(f"{check.state}: {check.name}: {check.detail}")
    if any(check.state == "error" for check in missing):
        raise CourseFailed("; ".join(check.detail for check in missing if check.state == "error"))


def _make_room(profile: Profile, kept: Path) -> None:
    """Remove what an earlier course left; raises ValueError if one of its runs is still training."""
    for name in RUNS:
        earlier = Run(profile.runs / name)
        if earlier.directory.exists():
            earlier.remove()
            print(f"removed the earlier run {earlier.directory.path}")
    for file in (*kept.glob("*.ipynb"), *kept.glob("report.html")):
        file.unlink()


def _plain(error: BaseException) -> str:
    """The text of an error without the colours of a terminal."""
    return re.sub(r"\x1b\[[0-9;]*m", "", str(error)).strip()


class _Progress:
    """Where a notebook is: its name, the code cell, the seconds since it began."""

    def __init__(self, name: str, notebook: NotebookNode) -> None:
        code = [index for index, cell in enumerate(notebook.cells) if cell.cell_type == "code"]
        self.numbers = {index: number for number, index in enumerate(code, start=1)}
        self.name, self.cells, self.cell = name, len(code), 0
        self.began_s = time.monotonic()
        self.done = threading.Event()

    def start(self, cell: NotebookNode, cell_index: int) -> None:
        """A hook of nbclient; it calls this for every cell, also for text."""
        if cell_index in self.numbers:
            self.cell = self.numbers[cell_index]
            self.show()

    def end(self, cell: NotebookNode, cell_index: int, execute_reply: Any) -> None:
        """A hook of nbclient."""
        self.show()

    def show(self, end: str = "") -> None:
        """One line for the notebook, in place on a terminal; elsewhere only when it is done, and now and then."""
        line = f"{self.name:<26} cell {self.cell:>2} of {self.cells}  {time.monotonic() - self.began_s:6.1f} s"
        if sys.stdout.isatty():
            print(f"\r{line}", end=end, flush=True)
        elif end or self.done.is_set() or threading.current_thread() is not threading.main_thread():
            print(line, flush=True)

    def tick(self) -> None:
        """Show that a long cell is alive."""
        while not self.done.wait(1.0 if sys.stdout.isatty() else 15.0):
            self.show()


@contextmanager
def _progress(name: str, notebook: NotebookNode) -> Iterator[_Progress]:
    progress = _Progress(name, notebook)
    ticker = threading.Thread(target=progress.tick, daemon=True)
    ticker.start()
    try:
        yield progress
    finally:
        progress.done.set()
        ticker.join()
        progress.show(end="\n")

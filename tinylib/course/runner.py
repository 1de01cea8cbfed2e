"""Execute the notebooks in order, keep them, and write a report.

`run` is what `make run` calls.  Everything it writes is in `runs/course/`: the executed notebooks and `report.html`,
one file that needs no network.
"""

from __future__ import annotations

import html
import os
import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tinylib import files, profiles, sizing
from tinylib.config import TrainConfig, from_dict
from tinylib.doctor import doctor
from tinylib.launch import Run
from tinylib.profiles import Profile
from tinylib.rundir import RunDirectory

if TYPE_CHECKING:
    import pandas as pd
    from nbformat import NotebookNode

NOTEBOOKS = ("01_architecture_math", "02_tokenizer", "03_model", "04_distributed_training", "05_evaluation",
             "06_weight_tying", "07_chat")
RUNS = ("untied", "tied", "chat")
"""The runs of the course, trained by notebooks 04, 06 and 07; the last is the first, fine-tuned."""
PROMPTS = ("Return the", "This module")


class CourseFailed(RuntimeError):
    """A notebook failed, or can't be started; the message names notebook, cell and traceback."""


def run(profile: str | None = None) -> dict[str, Any]:
    """Run the course in `profile` (None: what fits this machine), print progress, and write the report.

    Returns the facts of the closing table.  Removes earlier runs of the course in this profile first; raises ValueError
    if one of them is still training.  Raises CourseFailed at the first cell that fails; the notebooks executed by then
    are kept.
    """
    began_s, chosen = time.monotonic(), profiles.profile(profile)
    source, kept = Path(__file__).resolve().parents[2] / "notebooks", profiles.home() / "runs" / "course"
    print(f"the course in the {chosen.name} profile, kept in {kept}")
    missing = [check for check in doctor() if check.state != "ok"]
    for check in missing:
        print(f"{check.state}: {check.name}: {check.detail}")
    if errors := [check.detail for check in missing if check.state == "error"]:
        raise CourseFailed("; ".join(errors))
    remove_earlier(chosen, kept)
    environment = {**os.environ, "TINYLIB_PROFILE": chosen.name, "TINYLIB_HOME": str(profiles.home().resolve())}
    executed = {name: execute(source / f"{name}.ipynb", kept, environment) for name in NOTEBOOKS}
    table, samples = closing_table(chosen), write_samples(chosen)
    report = write_report(executed, table, samples, kept / "report.html")
    print(f"\n{table.to_string()}\n")
    for prompt, text in samples.items():
        print(f"[{prompt}]{text}\n")
    print(f"report: {report}")
    return {"profile": chosen.name, "seconds": round(time.monotonic() - began_s, 1), "report": report,
            "table": table.to_dict(), "samples": samples}


def execute(path: Path, kept: Path, environment: Mapping[str, str]) -> NotebookNode:
    """Execute the notebook at `path` in its own folder and write it to the folder `kept`, also when it fails.

    `environment` is that of its kernel.  Widgets are off, so that their static panels are stored, which show without a
    kernel.  Raises CourseFailed.
    """
    import nbformat
    from jupyter_client.kernelspec import NoSuchKernel
    from nbclient import NotebookClient
    from nbclient.exceptions import CellExecutionError, DeadKernelError
    from nbconvert.filters import strip_ansi
    from tqdm import tqdm

    if not path.is_file():
        raise CourseFailed(f"{path.name} is missing from {path.parent}: run the course from a whole checkout")
    notebook = nbformat.read(path, as_version=4)
    cells = sum(cell.cell_type == "code" and bool(cell.source.strip()) for cell in notebook.cells)
    with tqdm(total=cells, desc=f"{path.stem:<26}", unit="cell", mininterval=1) as bar:
        client = NotebookClient(notebook, timeout=None, record_timing=False, extra_arguments=["--log-level=ERROR"],
                                resources={"metadata": {"path": str(path.parent)}},
                                on_cell_executed=lambda **_: bar.update())
        try:
            client.execute(env={**environment, "TINYLIB_WIDGETS": "off"})
        except (CellExecutionError, DeadKernelError, NoSuchKernel) as error:
            raise CourseFailed(f"{path.name}, cell {client.code_cells_executed} of {cells}:\n"
                               f"{strip_ansi(str(error)).strip()}") from error
        finally:
            kept.mkdir(parents=True, exist_ok=True)
            files.write_text(kept / path.name, nbformat.writes(notebook))
    return notebook


def closing_table(profile: Profile) -> pd.DataFrame:
    """Size, characters per token of the training text, bits per byte and speed of the runs, a column a run."""
    import pandas as pd

    from tinylib.shards import Shards

    table = {}
    for run in (RunDirectory(profile.runs / name) for name in RUNS):
        summary = run.summary()
        if summary is None or summary.state != "finished":
            raise CourseFailed(f"the run {run.path} has not finished: run notebooks 04, 06 and 07 again")
        config = from_dict(TrainConfig, run.read_config()["train"])
        counts, shards = sizing.parameters(config.model), Shards(config.data)
        table[run.name] = {
            "parameters": f"{counts.total:,}",
            "wte / blocks / lm_head, %": " / ".join(f"{percent:.1f}" for percent in counts.split.values()),
            "characters per token, training text": "" if shards.packed else f"{shards.characters / shards.tokens:.2f}",
            "training tokens": f"{summary.tokens:,}",
            "validation bits per byte": f"{summary.val_bpb:.3f}" + " (answers)" * bool(shards.packed),
            "tokens/s": f"{summary.tokens_per_s:,.0f}"}
    return pd.DataFrame(table)


def write_samples(profile: Profile, max_tokens: int = 60) -> dict[str, str]:
    """Samples of the untied model, one for each of PROMPTS; at most `max_tokens` tokens each."""
    from tinylib.checkpoint import load_model
    from tinylib.generate import generate
    from tinylib.tokenizer import Tokenizer

    checkpoint = RunDirectory(profile.runs / RUNS[0]).checkpoint()
    model, tokenizer = load_model(checkpoint), Tokenizer.load(checkpoint / "tokenizer")
    return {prompt: "".join(generate(model, tokenizer, prompt, max_tokens=max_tokens, temperature=0.7, seed=1))
            for prompt in PROMPTS}


def write_report(notebooks: Mapping[str, NotebookNode], table: pd.DataFrame, samples: Mapping[str, str],
                 path: Path) -> Path:
    """One HTML file with the closing table, samples and all of `notebooks`; needs no network.

    A table of contents stays in view; inputs of cells with the tag `hide-input` are left out.
    """
    from nbconvert import HTMLExporter
    from pygments.formatters import HtmlFormatter
    from traitlets.config import Config

    hidden = Config(TagRemovePreprocessor={"enabled": True, "remove_input_tags": {"hide-input"}})
    exporter, entries, sections = HTMLExporter(template_name="basic", config=hidden), [], []
    for name, notebook in notebooks.items():
        # Headings of two notebooks may be the same, so their ids get the notebook's name.
        page = exporter.from_notebook_node(notebook)[0].replace('<h2 id="', f'<h2 id="{name}-')
        title = notebook.cells[0].source.partition("\n")[0].lstrip("# ")
        parts = re.findall(r'<h2 id="([^"]+)">(.*?)<a', page)
        entries.append(f'<details><summary><a href="#{name}">{html.escape(title)}</a></summary><ul>' + "".join(
            f'<li><a href="#{part}">{text}</a></li>' for part, text in parts) + "</ul></details>")
        sections.append(f'<section id="{name}">{page}</section>')
    body = "\n".join(["<h1>tinylib: the course</h1>", table.to_html(),
                      *(f"<pre><b>{html.escape(prompt)}</b>{html.escape(text)}</pre>"
                        for prompt, text in samples.items()), *sections])
    files.write_text(path, _PAGE.format(body=body, contents="\n".join(entries),
                                        colours=HtmlFormatter().get_style_defs(".highlight")))
    return path


_PAGE = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>tinylib: the course</title><style>
body {{ display: grid; grid-template-columns: 17rem minmax(0, 56rem); gap: 2rem; margin: 0 auto; max-width: 76rem;
       padding: 0 1rem; font: 16px/1.5 system-ui, sans-serif; color: #222 }}
nav {{ position: sticky; top: 0; max-height: 100vh; overflow-y: auto; padding: 2rem 0; font-size: 14px;
      align-self: start; box-sizing: border-box }}
nav a {{ color: inherit; text-decoration: none }} nav a:hover {{ text-decoration: underline }}
nav summary {{ margin-top: .5rem }} nav ul {{ margin: .2rem 0; padding-left: 1.6rem }}
pre {{ background: #f6f6f4; padding: .6rem .8rem; overflow-x: auto; font-size: 13px; line-height: 1.4;
      white-space: pre-wrap }}
.highlight pre {{ border-left: 3px solid #9ab }}
table {{ border-collapse: collapse; font-size: 14px }} th, td {{ border: 0; padding: .2rem .8rem; text-align: right }}
tr:nth-child(even) {{ background: #f6f6f4 }} img {{ max-width: 100% }} h1 {{ margin-top: 3rem }}
.prompt, .anchor-link {{ display: none }}
@media (max-width: 68rem) {{ body {{ display: block }} nav {{ position: static; max-height: none }} }}
{colours}
</style></head><body>
<nav>
{contents}
</nav>
<main>
{body}
</main>
</body></html>
"""


def remove_earlier(profile: Profile, kept: Path) -> None:
    """Remove runs and files of an earlier course; raises ValueError if one of its runs is still training."""
    for name in RUNS:
        Run(profile.runs / name).remove()
    for file in (*kept.glob("*.ipynb"), *kept.glob("report.html")):
        file.unlink()

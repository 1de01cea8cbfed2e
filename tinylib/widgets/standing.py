"""How runs stand, side by side, with every rank: looked up in their directories, as HTML and as plain text."""

from __future__ import annotations

import html
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tinylib.launch import Run
from tinylib.launch.progress import Progress, progress_line
from tinylib.plots import PALETTE
from tinylib.rundir import ENDED, RunDirectory

COLOURS = {"alive": PALETTE["green"], "starting": PALETTE["orange"], "ended": PALETTE["grey"], "gone": PALETTE["red"]}
"""Of a rank: it works, it has not come yet, it left, it ended without a word."""


@dataclass(frozen=True)
class Rank:
    """One process of a run; what is not known is an empty text or None."""

    number: int
    state: str
    """A key of COLOURS."""
    device: str = ""
    place: str = ""
    """Its pid, and the machine's name where it is not this one."""
    memory: str = ""
    """Peak so far, of its GPU where it has one."""
    compute_s: float | None = None
    """Seconds of its own work in the last step, before it waited for the others."""


@dataclass(frozen=True)
class Standing:
    """How one run stands."""

    name: str
    state: str
    facts: Mapping[str, str]
    """As `Progress.facts` gives them."""
    ranks: Sequence[Rank] = ()
    alive: bool = False
    """Whether a process of the run is alive, on this machine or another."""
    failure: str = ""
    """Why it failed, if it did: the first line and the last ones."""


def look(run: Run, progress: Progress) -> Standing:
    """How `run` stands now; `progress` remembers what was read before."""
    directory = run.directory
    try:
        progress.read()
        status, state = run.status(), run.state
        facts = progress.facts(state, status.get("ranks", ()))
        size = status.get("world_size") or directory.read_config().get("world_size", 1)
        return Standing(directory.name, state, facts, list(_ranks(directory, state, size, status, progress)),
                        bool(directory.alive() or directory.remote_processes()), _shortened(run.failure() or ""))
    except FileNotFoundError:    # someone removed it
        return Standing(directory.name, "lost", {"state": f"there is no run at {directory.path}"})


def _shortened(text: str, lines: int = 12) -> str:
    first, *rest = text.splitlines() or [""]
    return "\n".join([first, *(["  …"] if len(rest) > lines else []), *rest[-lines:]])


def _ranks(directory: RunDirectory, state: str, size: int, status: dict[str, Any], progress: Progress
           ) -> Iterator[Rank]:
    processes, elsewhere = directory.processes(), directory.remote_processes()
    work = dict(enumerate(status.get("ranks", ())))
    given = processes["agent"].devices if "agent" in processes else ""
    devices = (given or str(progress.header.get("device", ""))).split(",")
    for number in range(size):
        role, own = f"rank{number}", work.get(number, {})
        process, stands = processes.get(role), "ended" if state in ENDED else "starting"
        if process:
            stands = "alive" if role in elsewhere or process.alive() else "gone"
        yield Rank(number, stands, devices[number % len(devices)],
                   f"{process.pid}{f' on {process.host}' if role in elsewhere else ''}" if process else "",
                   f"{own['memory_bytes'] / 1e9:.2f} GB" if own else "", own.get("compute_s"))


def standing_html(standings: Sequence[Standing]) -> str:
    """The runs side by side, as HTML that survives a sanitiser: a table, and colours as of text."""
    look = "padding:0 28px 0 0;border:0;text-align:left;vertical-align:top;line-height:1.5"
    cells = "".join(f'<td style="{look}">{_run_html(standing)}</td>' for standing in standings)
    return f'<table style="margin:0;border-spacing:0"><tr>{cells}</tr></table>'


def _run_html(standing: Standing) -> str:
    first, *rest = (html.escape(text) for fact, text in standing.facts.items() if fact != "step")
    lines = [f"<b>{html.escape(standing.name)}</b>: {first}", html.escape(standing.facts.get("step", "")),
             " · ".join(rest)]
    ranks = "\n".join(f'<span style="color:{COLOURS[rank.state]}">●</span> {html.escape(line)}'
                      for rank, line in zip(standing.ranks, _rank_lines(standing.ranks), strict=True))
    why = f'<pre style="margin:4px 0">{html.escape(standing.failure)}</pre>' if standing.failure else ""
    return "<br>".join(filter(None, lines)) + f'<pre style="margin:4px 0;line-height:1.5">{ranks}</pre>{why}'


def standing_text(standings: Sequence[Standing]) -> str:
    """The runs below each other, a line each and one for every rank."""
    return "\n".join("\n  ".join([progress_line(standing.name, dict(standing.facts)), *_rank_lines(standing.ranks),
                                  *standing.failure.splitlines()]) for standing in standings)


def _rank_lines(ranks: Sequence[Rank]) -> list[str]:
    """A line for each rank, in columns; the bars show how long each was busy in the last step, before it waited."""
    longest_s = max((rank.compute_s or 0.0 for rank in ranks), default=0.0)
    rows = [(f"rank {rank.number}", rank.state, rank.device, rank.place and f"pid {rank.place}", rank.memory,
             "" if rank.compute_s is None else f"busy {rank.compute_s:.3f} s", _bar(rank.compute_s, longest_s))
            for rank in ranks]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True) if width).rstrip()
            for row in rows]


def _bar(compute_s: float | None, longest_s: float, width: int = 10) -> str:
    return "█" * round(width * compute_s / longest_s) if compute_s and longest_s else ""

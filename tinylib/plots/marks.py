"""What several figures are made of: stacked bars, names at the ends of lines, labels that keep clear of each other."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.font_manager import FontProperties
from matplotlib.textpath import text_to_path

from tinylib.plots.style import PALETTE

PAPER = {"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 0.6}
"""The box that lifts a text off what is behind it."""
_DISTANCE_PT_C = np.repeat((4, 8, 14, 20, 28, 38, 50, 65), 16)
_TURN_C = np.tile(np.linspace(0, 2 * np.pi, 16, endpoint=False), 8)
"""Where a label may go, seen from its point: 16 directions at each of 8 distances, the nearest first."""


def stacked_bars(axes: Axes, names: Sequence[str], parts: Mapping[str, Sequence[float]], colours: Mapping[str, str],
                 inside: Callable[[float, float], str], ends: Sequence[str], reach: float = 0) -> None:
    """One bar a name from top to bottom, one segment a part, and at its end the text of `ends`.

    `inside(size, whole)` words a segment of a bar of size `whole`; where it would not fit there is none.  The axis goes
    at least to `reach`, and as far as the texts want.
    """
    whole = np.sum([np.asarray(sizes, float) for sizes in parts.values()], axis=0)
    room_pt = 72 * axes.figure.get_figwidth() - 24 - max(_width_pt(name, 9) for name in names)
    end = max([reach, *(size / (1 - (_width_pt(text) + 8) / room_pt) for size, text in zip(whole, ends, strict=True))])
    left = np.zeros(len(names))
    for part, sizes in parts.items():
        bars = axes.barh(names, sizes, left=left, color=colours[part], label=part, height=0.72, edgecolor="white",
                         linewidth=0.4)
        words = [inside(size, full) for size, full in zip(sizes, whole, strict=True)]
        words = [word if size * room_pt > end * (_width_pt(word) + 3) else ""
                 for size, word in zip(sizes, words, strict=True)]
        axes.bar_label(bars, words, label_type="center", fontsize=8, color=ink(colours[part]))
        left = left + sizes
    axes.bar_label(bars, ends, padding=4, fontsize=8, zorder=3, bbox=PAPER | {"alpha": 1})
    axes.set_xlim(0, end)
    axes.invert_yaxis()
    axes.grid(axis="y", visible=False)


def _width_pt(text: str, size: float = 8) -> float:
    """Width of a text in print, without a figure."""
    return text_to_path.get_text_width_height_descent(text, FontProperties(size=size), ismath=False)[0]


def ink(colour: str) -> str:
    """Black or white, whichever is easier to read on `colour`.

    Source: contrast ratio and relative luminance of WCAG 2.1.

    >>> ink(PALETTE["blue"]), ink(PALETTE["green"])
    ('white', 'black')
    """
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in to_rgb(colour)]
    luminance = float(np.dot(linear, (0.2126, 0.7152, 0.0722)))
    return "white" if 1.05 / (luminance + 0.05) > (luminance + 0.05) / 0.05 else "black"


def name_ends(axes: Axes, names: Mapping[str, tuple[float, str]], gap_pt: float = 10) -> None:
    """Write each name beside the right edge, at its value of y and in its colour's ink, at least `gap_pt` apart.

    Scale and limits of y have to be set.
    """
    texts = [axes.annotate(name, (1, value), xycoords=("axes fraction", "data"), xytext=(14, 0), va="center",
                           textcoords="offset points", fontsize=8, annotation_clip=False)
             for name, (value, _) in names.items()]
    axes.figure.draw_without_rendering()
    points = 72 / axes.figure.dpi
    wanted = points * np.array([axes.transData.transform((1, value))[1] for value, _ in names.values()])
    for text, (_, colour), at, y in zip(texts, names.values(), wanted, _apart(wanted, gap_pt), strict=True):
        text.xyann = (14, y - at)
        axes.annotate("", (1, text.xy[1]), xytext=(12, y - at), xycoords=("axes fraction", "data"),
                      textcoords="offset points", annotation_clip=False,
                      arrowprops={"arrowstyle": "-", "color": colour, "linewidth": 1.2, "shrinkA": 0, "shrinkB": 0})


def name_line(axes: Axes, name: str, x: float, y: float) -> None:
    """Write a name across a line, as on a map."""
    axes.annotate(name, (x, y), ha="center", va="center", fontsize=8, bbox=PAPER | {"alpha": 1})


def _apart(places: np.ndarray, gap: float) -> np.ndarray:
    """The same places, moved as little as makes any two of them `gap` apart.

    >>> _apart(np.array([0.0, 30.0, 2.0]), 10).tolist()
    [-4.0, 30.0, 6.0]
    """
    order = np.argsort(places, kind="stable")
    groups: list[list[float]] = []    # mean place and count: neighbours that touch move as one
    for place in places[order].tolist():
        groups.append([place, 1])
        while len(groups) > 1 and groups[-1][0] - groups[-2][0] < gap * (groups[-1][1] + groups[-2][1]) / 2:
            (first, several), (second, more) = groups[-2:]
            groups[-2:] = [[(first * several + second * more) / (several + more), several + more]]
    moved = np.empty(len(places))
    moved[order] = [mean + gap * (nth - (count - 1) / 2) for mean, count in groups for nth in range(int(count))]
    return moved


def label_points(axes: Axes, points: Sequence[tuple[str, float, float]]) -> None:
    """Write each text beside its point (text, x, y): inside the axes, off other texts and points, off lines if it can.

    Call it last: the layout is made here.  A label that had to go far is tied to its point.  The first ones choose
    first.
    """
    notes = [axes.annotate(text, (x, y), xytext=(0, 0), textcoords="offset points", fontsize=8, zorder=2.5,
                           linespacing=1.0, bbox=PAPER) for text, x, y in points]
    axes.figure.draw_without_rendering()
    others = [text for text in axes.texts if text not in notes and text.get_text()] + [axes.get_legend()]
    taken = [one.get_window_extent().extents for one in others if one is not None]
    drawn_S3 = _drawn(axes)
    points_per_pixel = 72 / axes.figure.dpi
    unit_C2 = np.stack([np.cos(_TURN_C), np.sin(_TURN_C)], axis=1)
    for note in notes:
        place = axes.transData.transform(note.xy)
        size = note.get_window_extent().size + 3
        low_C2 = place + unit_C2 * (_DISTANCE_PT_C[:, None] / points_per_pixel + size / 2) - size / 2
        boxes_C4 = np.hstack([low_C2, low_C2 + size])
        best = (_DISTANCE_PT_C + _cost(boxes_C4, axes.bbox.padded(-2).extents, taken, drawn_S3)).argmin()
        box = boxes_C4[best]
        taken.append(box)
        note.xyann = (box[:2] + 1.5 - place) * points_per_pixel
        if _DISTANCE_PT_C[best] > _DISTANCE_PT_C[0]:
            corner = (np.clip(place, box[:2], box[2:]) - place) * points_per_pixel
            axes.annotate("", note.xy, xytext=corner, textcoords="offset points", zorder=2.4, arrowprops={
                "arrowstyle": "-", "color": PALETTE["grey"], "linewidth": 0.7, "shrinkA": 0, "shrinkB": 3})


def _cost(boxes_C4: np.ndarray, frame: np.ndarray, taken: Sequence[np.ndarray], drawn_S3: np.ndarray) -> np.ndarray:
    """What speaks against each box (left, bottom, right, top): leaving the frame, covering texts or what is drawn."""
    low_C2, high_C2 = boxes_C4[:, None, :2], boxes_C4[:, None, 2:]
    out_C = np.maximum(frame[:2] - boxes_C4[:, :2], 0).sum(1) + np.maximum(boxes_C4[:, 2:] - frame[2:], 0).sum(1)
    taken_K4 = np.reshape(taken, (-1, 4))
    shared_CK2 = np.maximum(np.minimum(high_C2, taken_K4[:, 2:]) - np.maximum(low_C2, taken_K4[:, :2]), 0)
    near_px = 4    # what is drawn is wider than its middle
    covered_CS = ((drawn_S3[:, :2] > low_C2 - near_px) & (drawn_S3[:, :2] < high_C2 + near_px)).all(-1)
    return 1000 * out_C + 1000 * np.sqrt(shared_CK2.prod(-1)).sum(1) + covered_CS @ drawn_S3[:, 2]


def _drawn(axes: Axes) -> np.ndarray:
    """Where points and lines are (x, y in pixels), and what covering it costs: a point most, a line by its
    width."""
    found = [np.empty((0, 3))]
    for line in axes.lines:
        way = line.get_transform().transform(line.get_xydata())
        way = way[np.isfinite(way).all(1)]
        if line.get_marker() != "None":
            found.append(np.insert(way, 2, 200, axis=1))
        elif len(way):
            found.append(np.insert(_along(way), 2, 0.5 * line.get_linewidth(), axis=1))
    for cloud in axes.collections:
        places = cloud.get_offset_transform().transform(cloud.get_offsets())
        found.append(np.insert(np.ma.filled(places, np.nan), 2, 50, axis=1))
    return np.concatenate(found)


def _along(corners: np.ndarray, count: int = 256) -> np.ndarray:
    """So many places along a path, equally far from each other.

    >>> _along(np.array([(0.0, 0.0), (2.0, 0.0), (2.0, 2.0)]), 5).tolist()
    [[0.0, 0.0], [1.0, 0.0], [2.0, 0.0], [2.0, 1.0], [2.0, 2.0]]
    """
    length = np.append(0, np.hypot(*np.diff(corners, axis=0).T).cumsum())
    stops = np.linspace(0, length[-1], count)
    return np.stack([np.interp(stops, length, corners[:, axis]) for axis in (0, 1)], axis=1)

"""Curves of runs that are still training."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from tinylib.plots.style import CURVES, canvas, packed, style

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

_COLOURS = CURVES[1:] + CURVES[:1]


class LiveCurves:
    """Training loss and bits per byte of running trainings, in one figure that is made once and given new points.

    `png` neither reads nor sets rcParams, so a thread may draw while the notebook draws something else.
    """

    @style()
    def __init__(self, names: Sequence[str]) -> None:
        self.figure, axes = canvas(columns=2, height_in=2.5)
        self.axes: tuple[Axes, Axes] = tuple(axes)
        self.figure.set_layout_engine("none")    # the constrained layout measures every text at each drawing
        left, right = self.axes
        left.set(position=(0.075, 0.2, 0.4, 0.68), xlabel="optimizer steps", ylabel="nats per token")
        right.set(position=(0.585, 0.2, 0.4, 0.68), xlabel="optimizer steps", ylabel="bits per byte")
        left.set_title("Training loss")
        right.set_title("Validation")
        mark: dict[str, Any] = {"markersize": 4}
        self._lines = [(left.plot([], [], color=colour, **mark)[0], right.plot([], [], "o-", color=colour, **mark)[0])
                       for _, colour in zip(names, itertools.cycle(_COLOURS), strict=False)]
        for text in left.legend([line for line, _ in self._lines], names, loc="upper right").get_texts():
            text.set_parse_math(False)    # a name may hold dollars
        for one in self.axes:    # ticks that are made later would take their look from the rcParams of that moment
            one.tick_params(labelsize=9, grid_color="#DDDDDD", grid_linewidth=0.6)
            one.yaxis.label.set_size(9)

    def png(self, runs: Sequence[tuple[pd.Series, pd.Series]]) -> bytes:
        """The picture: of each run the losses (a running mean) and the bits per byte, each indexed by step."""
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from PIL import Image  # matplotlib brings it along

        for (loss, score), (losses, scores) in zip(self._lines, runs, strict=True):
            window = max(1, len(losses) // 20)
            loss.set_data(losses.index, losses.rolling(window, min_periods=1).mean())
            loss.set_marker("o" if len(losses) == 1 else "")    # a line of one point is invisible
            score.set_data(scores.index, scores)
        self.axes[1].set_visible(any(len(scores) for _, scores in runs))
        longest = max((losses.index[-1] for losses, _ in runs if len(losses)), default=1)
        for one in self.axes:
            one.set_xlim(0, 1.02 * longest)
            one.relim()
            one.autoscale_view(scalex=False)
        drawn = FigureCanvasAgg(self.figure)
        drawn.draw()
        return packed(Image.fromarray(np.asarray(drawn.buffer_rgba())), colours=64, optimize=False)

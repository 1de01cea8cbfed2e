"""What a reader moves by hand in a notebook: a layer on top, never required."""

from tinylib.widgets.explorer import Explorer, explore
from tinylib.widgets.panel import balance, figures, nearest_preset, panel_html, panel_text

__all__ = ["Explorer", "balance", "explore", "figures", "nearest_preset", "panel_html", "panel_text"]

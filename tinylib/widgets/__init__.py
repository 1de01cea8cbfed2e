"""What a reader moves by hand in a notebook, and runs as they go on: a layer on top, never required."""

from tinylib.widgets.dashboard import Dashboard, dashboard
from tinylib.widgets.explorer import Explorer, explore
from tinylib.widgets.panel import balance, figures, nearest_preset, panel_html, panel_text

__all__ = ["Dashboard", "Explorer", "balance", "dashboard", "explore", "figures", "nearest_preset", "panel_html",
           "panel_text"]

"""What a reader moves by hand in a notebook, and runs as they go on: a layer on top, never required."""

from tinylib.course.explorer import Explorer, explore
from tinylib.course.panel import balance, figures, nearest_preset, panel_html, panel_text
from tinylib.widgets.dashboard import Dashboard, dashboard

__all__ = ["Dashboard", "Explorer", "balance", "dashboard", "explore", "figures", "nearest_preset", "panel_html",
           "panel_text"]

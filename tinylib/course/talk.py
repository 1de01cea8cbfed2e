"""Chat in a notebook: a transcript with ipywidgets to ask, to reset and to set the temperature."""

from __future__ import annotations

import dataclasses
import html
import os
from typing import TYPE_CHECKING, Any

from tinylib.checks import UserError
from tinylib.course.panel import words

if TYPE_CHECKING:
    from tinylib.chat import Chat


class Talk:
    """A chat that shows itself: its transcript, which the notebook stores, and in a kernel the controls to go on."""

    def __init__(self, chat: Chat) -> None:
        self.chat = chat
        self.controls: dict[str, Any] = {}
        if os.environ.get("TINYLIB_WIDGETS") != "off":
            self._build()

    def _build(self) -> None:
        """Create the widgets."""
        import ipywidgets as widgets

        wide, narrow = widgets.Layout(width="60%"), widgets.Layout(width="90px")
        one = self.controls = {
            "question": widgets.Text(placeholder="ask, then Enter", continuous_update=False, layout=wide),
            "temperature": widgets.BoundedFloatText(self.chat.sampling.temperature, min=0, max=2, step=0.1,
                                                    description="temperature", layout=widgets.Layout(width="170px")),
            "reset": widgets.Button(description="new chat", layout=narrow)}
        self.transcript = widgets.HTML(self._page())
        one["question"].observe(lambda change: change["new"] and self.ask(change["new"]), "value")
        one["temperature"].observe(self._warm, "value")
        one["reset"].on_click(lambda _: self.reset())
        self.box = widgets.VBox([self.transcript, widgets.HBox(list(one.values()))])

    def ask(self, question: str) -> None:
        """Ask, and show the answer as it comes."""
        note = ""
        try:
            for _ in self.chat.ask(question):
                self._show()
        except UserError as error:
            note = words(str(error))
        self._show(note)
        if self.controls:
            self.controls["question"].value = ""

    def reset(self) -> None:
        """Begin a new conversation."""
        self.chat.messages = []
        self._show()

    def _warm(self, change: dict[str, Any]) -> None:
        self.chat.sampling = dataclasses.replace(self.chat.sampling, temperature=change["new"])

    def _show(self, note: str = "") -> None:
        if self.controls:
            self.transcript.value = self._page() + note

    def _page(self) -> str:
        """The transcript as HTML; what the model says is escaped."""
        look = "white-space:pre-wrap;overflow-wrap:anywhere;line-height:1.5;padding:4px 8px;border-left:4px solid"
        speakers = {"user": ("you", "#0072B2"), "assistant": ("model", "#767676")}
        turns = [(*speakers[message["role"]], html.escape(message["content"]) or "…") for message in self.chat.messages]
        rows = "".join(f'<b>{who}</b><div style="{look} {colour};margin-bottom:4px">{text}</div>'
                       for who, colour, text in turns)
        return f'<div style="max-width:640px">{rows}</div>'

    def _ipython_display_(self) -> None:
        """Show the controls in a kernel, else the transcript."""
        from IPython.core.getipython import get_ipython
        from IPython.display import display

        if self.controls and hasattr(get_ipython(), "kernel"):
            display(self.box._repr_mimebundle_() | {"text/plain": repr(self), "text/html": self._page()}, raw=True)
        else:
            display({"text/plain": repr(self), "text/html": self._page()}, raw=True)

    def __repr__(self) -> str:
        return "\n".join(f"{message['role']}: {message['content']}" for message in self.chat.messages) or "(a chat)"

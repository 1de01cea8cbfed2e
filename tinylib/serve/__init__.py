"""OpenAI-compatible server of one model, with continuous batching, and a page to talk to it.

Nothing that the model says is executed, and the page shows it as text.
"""

from __future__ import annotations

import contextlib
import socket
import sys

import uvicorn

from tinylib.checks import UserError
from tinylib.model import GPT
from tinylib.serve.app import LOCAL, create_app
from tinylib.tokenizer import Tokenizer

__all__ = ["create_app", "serve"]


def serve(model: GPT, tokenizer: Tokenizer, name: str, *, host: str = "127.0.0.1", port: int = 8000,
          token: str | None = None, max_rows: int = 16) -> None:
    """Serve until interrupted, and print the address; port 0 takes a free one.

    On the loopback address only requests to that address are taken, so that no web page from elsewhere reaches it.
    Raises UserError for an address that can't be used.
    """
    shown = f"[{host}]" if ":" in host else host
    try:
        listening = socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except (OSError, OverflowError) as error:
        raise UserError(f"host={host}, port={port} can't be used ({error}): choose others") from None
    app = create_app(model, tokenizer, name, token=token, max_rows=max_rows, hosts=LOCAL if shown in LOCAL else None)
    if token is None and shown not in LOCAL:
        print(f"without a token, everybody who reaches {host} can use the model", file=sys.stderr)
    print(f"{name}: http://{shown}:{listening.getsockname()[1]} is a page to chat, /v1 there is for OpenAI's clients; "
          "Ctrl-C ends it", flush=True)
    with contextlib.suppress(KeyboardInterrupt):
        _Server(uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=2)).run(sockets=[listening])


class _Server(uvicorn.Server):
    """uvicorn, which on its own would wait for the texts that are generated, and then cut them off with a traceback."""

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """End the texts with an error that clients understand, then the connections."""
        self.config.app.state.batcher.close()
        await super().shutdown(sockets)

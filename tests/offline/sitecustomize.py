"""Refuses every connection but loopback, in this Python and, through PYTHONPATH, in every Python it starts.

An audit hook can't be taken out again, and it sees the sockets of every library written in Python.  Native code that
opens its own sockets isn't seen; for the hub, HF_HUB_OFFLINE=1 is set beside this.
"""

from __future__ import annotations

import os
import sys
from typing import Any

LOOPBACK = ("localhost", "::1", "0.0.0.0", "::", "")
CONNECTS = ("socket.connect", "socket.sendto", "socket.sendmsg")
LOOKUPS = ("socket.getaddrinfo", "socket.gethostbyname", "socket.gethostbyaddr")


class NetworkBlocked(OSError):
    """A connection that left this machine was tried in a test."""


def local(host: Any) -> bool:
    """Whether `host` is this machine; looking up its own name is no connection (torchrun does it)."""
    if isinstance(host, bytes):
        host = host.decode()
    return host is None or host in LOOPBACK or host.startswith("127.") or host == os.uname().nodename


def refuse(event: str, args: tuple[Any, ...]) -> None:
    """The audit hook."""
    if event in LOOKUPS and not local(args[0]):
        raise NetworkBlocked(f"the network is blocked in tests: {event} of {args[0]!r}")
    if event in CONNECTS and isinstance(args[1], tuple) and not local(args[1][0]):
        raise NetworkBlocked(f"the network is blocked in tests: {event} to {args[1]!r}")


sys.addaudithook(refuse)

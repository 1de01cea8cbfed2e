"""The network block of the tests blocks connections, here and in child processes, but not those to loopback."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import urllib.request

import pytest

OUTSIDE = ("203.0.113.1", 80)    # an address of RFC 5737, reserved for documentation
TRIES = {
    "connect": f"import socket; socket.socket().connect({OUTSIDE!r})",
    "connect_ex": f"import socket; socket.socket().connect_ex({OUTSIDE!r})",
    "datagram": f"import socket; socket.socket(type=socket.SOCK_DGRAM).sendto(b'x', {OUTSIDE!r})",
    "lookup": "import socket; socket.getaddrinfo('example.org', 80)",
    "urllib": "import urllib.request; urllib.request.urlopen('http://example.org', timeout=5)",
}


def test_blocks_here():
    with pytest.raises(OSError, match="blocked in tests"):
        socket.create_connection(OUTSIDE, timeout=5)
    with pytest.raises(OSError, match="blocked in tests"):
        urllib.request.urlopen("http://example.org", timeout=5)


@pytest.mark.parametrize("attempt", TRIES)
def test_blocks_in_a_child(attempt):
    child = subprocess.run([sys.executable, "-c", TRIES[attempt]], capture_output=True, text=True, timeout=60)
    assert child.returncode != 0
    assert "the network is blocked in tests" in child.stderr


def test_blocks_in_a_grandchild():
    code = f"import subprocess, sys; sys.exit(subprocess.run([sys.executable, '-c', {TRIES['lookup']!r}]).returncode)"
    child = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert child.returncode != 0
    assert "the network is blocked in tests" in child.stderr


def test_lets_loopback_through():
    with socket.create_server(("127.0.0.1", 0)) as server:
        def serve() -> None:
            with server.accept()[0] as connection:
                connection.sendall(b"here")

        answer = threading.Thread(target=serve)
        answer.start()
        with socket.create_connection(server.getsockname()[:2], timeout=5) as client:
            assert client.recv(4) == b"here"
        answer.join()


def test_the_hub_is_offline_in_children():
    assert os.environ["HF_HUB_OFFLINE"] == "1"

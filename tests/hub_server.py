"""HTTP server on loopback: the part of the hub's protocol that `huggingface_hub` uses for a data set, with faults.

Two servers, as on the real hub: one lists and resolves, the other, the content network, sends the bytes.  The protocol
is that of `huggingface_hub` 2.4: `HfApi.dataset_info`, `HfApi.list_repo_tree` (pages joined by `Link`), `HEAD` and
redirect of `resolve` with `X-Repo-Commit`, `X-Linked-Size` and `X-Linked-Etag`, `GET` of the bytes with `Range`.
"""

from __future__ import annotations

import hashlib
import json
import re
import socket
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple
from urllib.parse import parse_qs, quote, unquote, urlsplit

FAULTS = ("cut", "dead", "short", "wrong", "429", "500", "503")
PAGE = 3    # files in a page of the listing


class Request(NamedTuple):
    """A request: `server` is hub or cdn; `start` is the first byte of a range."""

    server: str
    method: str
    path: str
    start: int
    token: str | None


@dataclass
class Dataset:
    """A data set: its files by name, its card, its revision."""

    files: dict[str, bytes]
    card: dict[str, Any] = field(default_factory=dict)
    gated: bool = False

    @property
    def revision(self) -> str:
        """Forty hex digits that change with the content, like a commit."""
        whole = b"".join(name.encode() + hashlib.sha1(data).digest() for name, data in sorted(self.files.items()))
        return hashlib.sha1(whole).hexdigest()


class Hub:
    """A server of `datasets`, in threads; a context manager.  `requests` are those received, in order."""

    def __init__(self, datasets: dict[str, Dataset]) -> None:
        self.datasets = datasets
        self.requests: list[Request] = []
        self._faults: dict[str, list[tuple[str, int | None]]] = {}
        self._servers = {role: ThreadingHTTPServer(("127.0.0.1", 0), _handler(self, role)) for role in ("hub", "cdn")}
        self._urls = {role: f"http://127.0.0.1:{server.server_port}" for role, server in self._servers.items()}

    def __enter__(self) -> Hub:
        for server in self._servers.values():
            server.daemon_threads = True
            threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(self, *failure: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop both servers."""
        while self._servers:
            _, server = self._servers.popitem()
            server.shutdown()
            server.server_close()

    def url(self, role: str = "hub") -> str:
        """Address of one of the two servers."""
        return self._urls[role]

    def fail(self, file: str, fault: str, times: int | None = 1) -> None:
        """Send `file` (or the listing, called `list`) with a fault the next `times` times; None: until `heal`."""
        assert fault in FAULTS
        self._faults[file] = [(fault, times)]

    def heal(self) -> None:
        """No more faults."""
        self._faults.clear()

    def fault(self, file: str) -> str | None:
        """The fault with which to send `file` now."""
        for fault, times in self._faults.pop(file, []):
            if times is None or times > 1:
                self._faults[file] = [(fault, times and times - 1)]
            return fault
        return None

    def sent(self, file: str) -> list[int]:
        """For each time that the bytes of `file` were asked for, where the range began."""
        return [request.start for request in self.requests
                if (request.server, request.method) == ("cdn", "GET") and unquote(request.path).endswith("/" + file)]


def _handler(hub: Hub, role: str) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: Any) -> None:
            """Silent: `hub.requests` is the log."""

        def do_HEAD(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            start = int((re.findall(r"bytes=(\d+)-", self.headers.get("Range", "")) or ["0"])[0])
            hub.requests.append(Request(role, self.command, self.path, start, self.headers.get("Authorization")))
            path, query = urlsplit(self.path).path, parse_qs(urlsplit(self.path).query)
            if role == "cdn":
                return self.content(unquote(path), start)
            listing = re.fullmatch(r"/api/datasets/([^/]+/[^/]+)(?:/tree/([0-9a-f]{40})/?(.*))?", path)
            file = re.fullmatch(r"/datasets/([^/]+/[^/]+)/resolve/([0-9a-f]{40})/(.+)", path)
            found = hub.datasets.get((listing or file or [None, ""])[1])
            if found is None:
                return self.reply(401, headers={"X-Error-Code": "RepoNotFound"})
            if found.gated and not self.headers.get("Authorization"):
                return self.reply(403, headers={"X-Error-Code": "GatedRepo"})
            if listing and (fault := hub.fault("list")):
                return self.reply_with_error(fault)
            if file:
                return self.resolve(found, unquote(file[3]), file[1])
            return self.tree(found, unquote(listing[3]), query) if listing[2] else self.info(found, listing[1])

        def info(self, found: Dataset, name: str) -> None:
            self.reply(200, {"id": name, "sha": found.revision, "cardData": found.card, "siblings": [], "tags": []})

        def tree(self, found: Dataset, folder: str, query: dict[str, list[str]]) -> None:
            names = sorted(name for name in found.files if not folder or name.startswith(folder + "/"))
            first = int(query.get("cursor", ["0"])[0])
            page = [{"type": "directory", "oid": "0" * 40, "size": 0, "path": "folder"}] * (first == 0)
            for name in names[first:first + PAGE]:
                data = found.files[name]
                lfs = {"oid": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 130}
                page.append({"type": "file", "oid": "1" * 40, "size": len(data), "path": name, "lfs": lfs})
            more = f"{hub.url()}{urlsplit(self.path).path}?recursive=true&cursor={first + PAGE}"
            self.reply(200, page, {"Link": f'<{more}>; rel="next"'} if first + PAGE < len(names) else {})

        def resolve(self, found: Dataset, name: str, dataset: str) -> None:
            data = found.files.get(name)
            if data is None:
                return self.reply(404, headers={"X-Error-Code": "EntryNotFound", "X-Repo-Commit": found.revision})
            self.reply(302, headers={
                "Location": f"{hub.url('cdn')}/{dataset}/{quote(name)}", "X-Repo-Commit": found.revision,
                "X-Linked-Size": str(len(data)), "X-Linked-Etag": f'"{hashlib.sha256(data).hexdigest()}"'})

        def content(self, path: str, start: int) -> None:
            """Send the bytes from `start` on, or a part of them, or wrong ones, if a fault is set."""
            owner, title, name = path.lstrip("/").split("/", 2)
            data, fault = hub.datasets[f"{owner}/{title}"].files[name], hub.fault(name.split("/")[-1])
            if fault and fault.isdigit():
                return self.reply_with_error(fault)
            if fault == "wrong":
                data = bytes([data[0] ^ 255]) + data[1:]
            if fault == "short":
                data = data[:-100]
            half = len(data) // 2 if fault in ("cut", "dead") else len(data)
            self.send_response(206 if start else 200)
            if start:
                self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
            self.send_header("Content-Length", str(len(data) - start))
            self.end_headers()
            self.wfile.write(data[start:half])
            if half < len(data):
                self.wfile.flush()
                self.close_connection = True
                self.connection.shutdown(socket.SHUT_RDWR)

        def reply_with_error(self, status: str) -> None:
            self.reply(int(status), headers={"Retry-After": "7"} if status == "429" else {})

        def reply(self, status: int, value: Any = None, headers: dict[str, str] | None = None) -> None:
            body = b"" if value is None else json.dumps(value).encode()
            self.send_response(status)
            for name, text in {**(headers or {}), "Content-Length": str(len(body))}.items():
                self.send_header(name, text)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

    return Handler

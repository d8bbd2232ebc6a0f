"""A small hub of our own on this machine, from which data sets are fetched as from the real one."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

COMMIT = sha256(b"commit").hexdigest()[:40]


class DataHub(BaseHTTPRequestHandler):
    """As much of the hub as downloads of a data set need, or, by its `kind`, of a model. files: path -> bytes."""

    repository = "bfshi/HLVid"
    kind = "datasets"
    files: dict[str, bytes] = {}  # noqa: RUF012
    size = 0  # of every file, where the hub is to say another
    commit = COMMIT

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = self.path.split("?")[0]
        headers = {"X-Repo-Commit": self.commit}
        place = f"/{self.repository}/" if self.kind == "models" else f"/{self.kind}/{self.repository}/"
        if path.startswith(f"/api/{self.kind}/{self.repository}/tree/"):
            tree = [{"type": "file", "path": name, "size": len(b), "oid": "0" * 40} for name, b in self.files.items()]
            content = json.dumps(tree).encode()
        elif path.startswith(f"/api/{self.kind}/{self.repository}"):
            siblings = [{"rfilename": name, "size": self.size or len(b)} for name, b in self.files.items()]
            content = json.dumps({"id": self.repository, "sha": self.commit, "siblings": siblings}).encode()
        elif path.startswith(f"{place}resolve/{self.commit}/"):
            content = self.files[path.split(f"{self.commit}/")[1]]
            headers["ETag"] = f'"{sha256(content).hexdigest()}"'
        else:
            self.send_error(404)
            return
        self.send_response(200)
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def serving(hub: type[DataHub]) -> Iterator[str]:
    """-> its address, meanwhile."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()

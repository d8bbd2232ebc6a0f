"""Clients of all kinds at once: good ones, slow ones, some that hang up, some that mean harm."""

from __future__ import annotations

import contextlib
import http.client
import json
import random
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from .servers import PATIENCE

GOOD = ("whole", "stream", "slow")
LEAVING = ("cut upload", "gone at once", "gone in the stream")
REFUSED = {
    "cut json": (400,),
    "junk": (400,),
    "wrong types": (400,),
    "foreign url": (400,),
    "inside url": (400,),
    "secret file": (400,),
    "many frames": (400,),
    "frames by time": (400,),
    "unknown part": (400,),
    "other model": (404,),
    "no route": (404,),
    "huge body": (413,),
}


@dataclass
class Load:
    """requests: what good clients send. alone: their answers when nobody else asks. found: how often each kind came to
    which end."""

    address: str
    requests: Sequence[dict[str, Any]]
    long_video: str  # a data URL of a video with thousands of frames
    alone: list[str] = field(default_factory=list)
    found: Counter[tuple[str, str]] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def ask_alone(self) -> None:
        self.alone = [self._whole(request)[1] for request in self.requests]

    def run(self, count: int, clients: int, seed: int = 0) -> None:
        """Half of the requests are good ones; which comes when is a matter of the seed."""
        kinds = [GOOD[number % 3] for number in range(count // 2)]
        kinds += [([*REFUSED, *LEAVING] * count)[number] for number in range(count - len(kinds))]
        random.Random(seed).shuffle(kinds)
        with ThreadPoolExecutor(clients) as pool:
            list(pool.map(self._one, kinds, range(count)))

    def _one(self, kind: str, number: int) -> None:
        which = number % len(self.requests)
        if kind in GOOD:
            status, text = getattr(self, f"_{kind}")(self.requests[which])
            end = "as alone" if (status, text) == (200, self.alone[which]) else f"{status} {text[:80]!r}"
            ok = end == "as alone"
        elif kind in LEAVING:
            self._leave(kind, self.requests[which])
            end, ok = "left", True
        else:
            status = self._refused(kind, self.requests[which])
            end, ok = str(status), status in REFUSED[kind]
        with self._lock:
            self.found[kind, end] += 1
            if not ok:
                self.wrong.append(f"{kind}: {end}")

    # -- good ones -----------------------------------------------------------------------------------------------

    def _post(self, body: bytes, path: str = "/v1/chat/completions", **headers: str) -> http.client.HTTPConnection:
        connection = http.client.HTTPConnection(self.address, timeout=5 * PATIENCE)
        connection.request("POST", path, body, {"Content-Type": "application/json", **headers})
        return connection

    def _whole(self, request: dict[str, Any]) -> tuple[int, str]:
        return _told(self._post(json.dumps(request).encode()))

    def _slow(self, request: dict[str, Any]) -> tuple[int, str]:
        """The body comes in pieces, with pauses."""
        body = json.dumps(request).encode()
        connection = http.client.HTTPConnection(self.address, timeout=5 * PATIENCE)
        connection.putrequest("POST", "/v1/chat/completions")
        connection.putheader("Content-Type", "application/json")
        connection.putheader("Content-Length", str(len(body)))
        connection.endheaders()
        step = len(body) // 5 + 1
        for begin in range(0, len(body), step):
            connection.send(body[begin : begin + step])
            time.sleep(0.05)
        return _told(connection)

    def _stream(self, request: dict[str, Any]) -> tuple[int, str]:
        connection = self._post(json.dumps({**request, "stream": True}).encode())
        with contextlib.closing(connection):
            answer, text = connection.getresponse(), ""
            for line in answer.read().decode().splitlines():
                if line.startswith("data: {"):
                    event = json.loads(line[6:])
                    if "error" in event:
                        return 500, str(event["error"])
                    text += "".join(choice["delta"].get("content", "") for choice in event["choices"])
            return answer.status, text

    # -- others --------------------------------------------------------------------------------------------------

    def _leave(self, kind: str, request: dict[str, Any]) -> None:
        body = json.dumps({**request, "stream": kind == "gone in the stream"}).encode()
        if kind == "cut upload":
            host, port = self.address.split(":")
            with socket.create_connection((host, int(port))) as sock:
                head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n"
                sock.sendall(f"{head}Content-Type: application/json\r\n\r\n".encode() + body[: len(body) // 2])
            return
        connection = self._post(body)
        if kind == "gone in the stream":
            connection.getresponse().read(20)
        connection.close()

    def _refused(self, kind: str, request: dict[str, Any]) -> int:
        body = json.dumps(request).encode()
        made: dict[str, Callable[[], bytes]] = {
            "cut json": lambda: body[: len(body) // 2],
            "junk": lambda: random.Random(len(body)).randbytes(10_000),
            "wrong types": lambda: changed(request, messages=[{"role": ["user"], "content": {"a": 1}}]),
            "foreign url": lambda: changed(request, messages=_about("https://example.com/clip.mp4")),
            "inside url": lambda: changed(request, messages=_about("http://169.254.169.254/latest/meta-data")),
            "secret file": lambda: changed(request, messages=_about("file:///etc/passwd")),
            "many frames": lambda: changed(request, gaze={"frames": 10_000}),
            "frames by time": lambda: changed(request, messages=_about(self.long_video, fps=1000)),
            "unknown part": lambda: changed(request, messages=[{"role": "user", "content": [{"type": "audio_url"}]}]),
            "other model": lambda: changed(request, model="gpt"),
        }
        if kind == "no route":
            return _status(self._post(b"{}", "/v1/../admin"))
        if kind == "huge body":
            return _status(self._post(b"", **{"Content-Length": str(1 << 30)}))
        return _status(self._post(made[kind]()))


def changed(request: dict[str, Any], **fields: Any) -> bytes:
    return json.dumps({**request, **fields}).encode()


def _about(url: str, **part: Any) -> list[dict[str, Any]]:
    return [{"role": "user", "content": [{"type": "video_url", "video_url": {"url": url, **part}}]}]


def _told(connection: http.client.HTTPConnection) -> tuple[int, str]:
    with contextlib.closing(connection):
        answer = connection.getresponse()
        found = json.loads(answer.read())
        return answer.status, found["choices"][0]["message"]["content"] if answer.status == 200 else str(found)


def _status(connection: http.client.HTTPConnection) -> int:
    with contextlib.closing(connection):
        answer = connection.getresponse()
        answer.read()
        return answer.status

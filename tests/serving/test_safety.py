"""What is not allowed is refused, and nothing is learned from the refusal."""

from __future__ import annotations

import json
import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from openai import AuthenticationError, PermissionDeniedError
from PIL import Image

import autogaze_mllm as am
from autogaze_mllm.serving.config import ServeConfig
from autogaze_mllm.serving.intake.fetching import is_public
from autogaze_mllm.serving.intake.media import MediaPolicy
from autogaze_mllm.video.synthetic import moving_scene
from autogaze_mllm.video.writer import write_video

from ..helpers.serving.servers import Served, asked, body_of, data_url, served, talkative

TEXT = [{"role": "user", "content": "Hello"}]
NOT_ALLOWED = ("this URL is not allowed here", "this file is not allowed here")


@pytest.fixture(scope="module")
def model() -> am.GazedModel:
    return talkative()


@pytest.fixture(scope="module")
def folder(tmp_path_factory, clip) -> Path:
    """allowed/ with a clip, a damaged one and ways out; outside/ with another clip."""
    root = tmp_path_factory.mktemp("media")
    (root / "allowed" / "deep").mkdir(parents=True)
    (root / "outside").mkdir()
    for place in ("allowed/deep/a b.mp4", "outside/secret.mp4"):
        (root / place).write_bytes(clip.read_bytes())
    (root / "allowed" / "damaged.mp4").write_bytes(b"not a video at all")
    (root / "allowed" / "way out.mp4").symlink_to(root / "outside" / "secret.mp4")
    (root / "allowed" / "folder").symlink_to(root / "outside")
    (root / "allowed-too").symlink_to(root / "outside")
    return root


class Host(BaseHTTPRequestHandler):
    """A host of media, some of them hostile. data: what it has; seen: the paths that were asked for."""

    data = b""
    seen: list[str] = []  # noqa: RUF012

    def do_GET(self) -> None:
        self.seen.append(self.path)
        if self.path.startswith("/redirect"):
            self.send_response(302)
            self.send_header("Location", "/clip.mp4")
            self.end_headers()
        elif self.path == "/missing":
            self.send_error(404)
        elif self.path == "/endless":
            self.send_response(200)
            self.end_headers()
            try:
                while True:
                    self.wfile.write(b"x" * (1 << 16))
            except OSError:
                return
        elif self.path == "/slow":
            self.send_response(200)
            self.end_headers()
            self.close_connection = True
            time.sleep(30)
        elif self.path == "/packed":
            self.send_response(200)
            self.send_header("Content-Encoding", "gzip")
            self.end_headers()
        else:
            broken = self.path == "/broken"
            self.send_response(200)
            self.send_header("Content-Length", str(len(self.data)))
            self.end_headers()
            self.wfile.write(self.data[: len(self.data) // 2] if broken else self.data)
            self.close_connection = True

    def log_message(self, *_: object) -> None:
        return


@pytest.fixture(scope="module")
def host(clip):
    Host.data = clip.read_bytes()
    server = ThreadingHTTPServer(("127.0.0.1", 0), Host)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"localhost:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def server(model, folder, host):
    """One that allows a folder and a host."""
    allowed = {"allow_folder": [str(folder / "allowed")], "allow_domain": [host, "example.org"]}
    with served(model, **allowed, allow_private=True, max_download=1) as running:
        yield running


def refusal(server: Served, url: str) -> str:
    status, found, _ = server.post(body_of(asked(url)))
    assert status == 400, found
    return found["error"]["message"]


# -- files and URLs ----------------------------------------------------------------------------------------------------


def test_nothing_is_allowed_unless_it_is_told(model, clip, host):
    with served(model) as server:
        for url in (f"file://{clip}", "file:///etc/passwd", f"http://{host}/clip.mp4", "https://example.org/a.mp4"):
            assert any(said in refusal(server, url) for said in NOT_ALLOWED), url
        assert server.post(body_of(asked(data_url(clip))))[0] == 200
    assert "/clip.mp4" not in Host.seen


def test_files_of_an_allowed_folder_can_be_asked_about(server, folder, clip):
    by_name = server.post(body_of(asked(f"file://{folder}/allowed/deep/a%20b.mp4")))
    by_bytes = server.post(body_of(asked(data_url(clip))))
    assert by_name[0] == by_bytes[0] == 200 and by_name[1]["choices"] == by_bytes[1]["choices"]


@pytest.mark.parametrize(
    "path",
    [
        "/etc/passwd",
        "{root}/outside/secret.mp4",
        "{root}/allowed/../outside/secret.mp4",
        "{root}/allowed/%2e%2e/outside/secret.mp4",
        "{root}/allowed/way out.mp4",
        "{root}/allowed/folder/secret.mp4",
        "{root}/allowed-too/secret.mp4",
        "{root}/allowed/missing.mp4",
        "{root}/allowed/deep",
        "{root}/allowed/a%00b.mp4",
        "{root}/allowed/" + "x" * 5000,
        "//example.org/share/clip.mp4",
        "/dev/zero",
        "allowed/deep/a b.mp4",
    ],
)
def test_other_files_are_refused_all_alike(server, folder, path):
    assert refusal(server, f"file://{path.format(root=folder)}") == "message 0, part 0: this file is not allowed here"


def test_no_path_stands_in_an_answer(server, folder):
    said = refusal(server, f"file://{folder}/allowed/damaged.mp4")
    assert "not a readable video" in said and "/" not in said and "damaged" not in said


def test_urls_of_an_allowed_host_are_fetched(server, host, clip):
    by_url = server.post(body_of(asked(f"http://{host}/clip.mp4?a=b")))
    by_bytes = server.post(body_of(asked(data_url(clip))))
    assert by_url[0] == 200 and by_url[1]["choices"] == by_bytes[1]["choices"] and Host.seen[-1] == "/clip.mp4?a=b"


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("/redirect", "answered 302; redirects are not followed"),
        ("/missing", "answered 404"),
        ("/endless", "more than the 1 MiB"),
        ("/broken", "the download"),
        ("/packed", "sent it packed"),
    ],
)
def test_downloads_that_are_not_what_was_asked_for(server, host, path, said):
    status, found, _ = server.post(body_of(asked(f"http://{host}{path}")))
    assert status == (413 if path == "/endless" else 400) and said in found["error"]["message"]
    assert path not in Host.seen[:-1] and Host.seen[-1] == path  # once, and nothing after it


@pytest.mark.parametrize(
    "url",
    [
        "http://user:pass@{host}/clip.mp4",
        "http://{host}@example.com/clip.mp4",
        "http://127.0.0.1:{port}/clip.mp4",
        "http://2130706433:{port}/clip.mp4",
        "http://localhost/clip.mp4",
        "https://{host}.example.com/",
        "http://sub.example.org/",
        "ftp://{host}/clip.mp4",
        "http://{host}\\@example.org/",
        "http:///clip.mp4",
        "http://{host}:99999/clip.mp4",
        "http://[::1/clip.mp4",
        "http://exämple.org/",
        "http://{host}/a b\r\nHost: x",
        "javascript:alert(1)",
        "",
    ],
)
def test_urls_that_only_look_allowed(server, host, url):
    before = list(Host.seen)
    refusal(server, url.format(host=host, port=host.partition(":")[2]))
    assert Host.seen == before


def test_what_a_name_means_is_looked_at_not_the_name(model, host):
    """localhost is allowed by name, and refused by its address, as is a public name that leads into this machine."""
    with served(model, allow_domain=[host]) as server:
        before = list(Host.seen)
        assert refusal(server, f"http://{host}/clip.mp4") == "message 0, part 0: this URL is not allowed here"
        assert Host.seen == before


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("93.184.216.34", True),
        ("2606:2800:220:1:248:1893:25c8:1946", True),
        ("127.0.0.1", False),
        ("127.255.255.254", False),
        ("0.0.0.0", False),
        ("10.1.2.3", False),
        ("172.16.0.1", False),
        ("192.168.1.1", False),
        ("169.254.169.254", False),  # where clouds keep their secrets
        ("100.64.0.1", False),
        ("224.0.0.1", False),
        ("255.255.255.255", False),
        ("192.0.2.1", False),
        ("::1", False),
        ("::", False),
        ("fe80::1%eth0", False),
        ("fc00::1", False),
        ("fec0::1", False),
        ("ff02::1", False),
        ("::ffff:127.0.0.1", False),
        ("::ffff:93.184.216.34", True),
        ("64:ff9b::7f00:1", False),
        ("2002:7f00:1::", False),
    ],
)
def test_which_addresses_are_of_the_internet(address, public):
    assert is_public(address) is public


# -- too much ----------------------------------------------------------------------------------------------------------


def test_videos_and_pictures_have_limits(model, tmp_path, clip):
    write_video(tmp_path / "long.mp4", moving_scene(64, 64, 40), fps=1)
    write_video(tmp_path / "large.mp4", moving_scene(1280, 1024, 2), fps=10)
    Image.new("RGB", (1200, 1000)).save(tmp_path / "large.png")
    picture = {"type": "image_url", "image_url": {"url": data_url(tmp_path / "large.png", "image/png")}}
    with served(model, max_duration=20, max_megapixels=1, max_media=2, max_characters=50, max_frames=16) as server:
        assert "may last 20 seconds" in refusal(server, data_url(tmp_path / "long.mp4"))
        assert "1 million pixels" in refusal(server, data_url(tmp_path / "large.mp4"))
        for content, said in (
            ([picture], "1 million pixels"),
            ([{"type": "video_url", "video_url": {"url": data_url(clip)}}] * 3, "2 videos and pictures"),
            ("x" * 50, "50 characters"),
            ([{"type": "text", "text": ""}] * 60, "50 characters"),
        ):
            status, found, _ = server.post(body_of([{"role": "user", "content": content}]))
            assert status == 400 and said in found["error"]["message"]
        status, found, _ = server.post(body_of(asked(data_url(clip), fps=10)))
        assert status == 400 and "20 frames would be looked at, and 16 may be" in found["error"]["message"]


def test_large_bodies_are_refused_without_reading_them(model):
    with served(model, max_body=1) as server:
        status, found, headers = server.post(b"", Content_Length=str(1 << 30))
        assert status == 413 and "1 MiB" in found["error"]["message"] and headers["connection"] == "close"
        with socket.create_connection(server.url.removeprefix("http://").split(":")) as sock:  # of unknown length
            head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            sock.sendall(head + b"Transfer-Encoding: chunked\r\n\r\n")
            with pytest.raises(OSError):  # the answer is there, and the line closed, long before all is sent
                for _ in range(1 << 14):
                    sock.sendall(b"10000\r\n" + b"x" * 0x10000 + b"\r\n")
        assert 'requests_total{status="413"} 2.0' in server.get("/metrics")[1].decode()
        assert server.post(body_of(TEXT))[0] == 200


def test_a_request_that_dribbles_in_is_given_up(model):
    with served(model, max_upload_seconds=0.2) as server:
        connection = server.connection()
        connection.putrequest("POST", "/v1/chat/completions")
        connection.putheader("Content-Type", "application/json")
        connection.putheader("Content-Length", "100")
        connection.endheaders(b"{")
        answer = connection.getresponse()
        assert answer.status == 408 and "within 0.2 seconds" in json.loads(answer.read())["error"]["message"]


# -- who may come in ---------------------------------------------------------------------------------------------------


def test_a_key_guards_all_but_health(model):
    with served(model, api_key="right key") as server:
        assert server.client.chat.completions.create(model="tiny", messages=TEXT, max_tokens=2).choices
        for key in ("wrong", "right ke", "right keys"):
            with pytest.raises(AuthenticationError):
                server.client.with_options(api_key=key).models.list()
        status, found, _ = server.post(body_of(TEXT))
        assert status == 401 and found["error"]["code"] == "invalid_api_key"
        assert server.get("/metrics", Authorization="Bearer schlüssel")[0] == 401
        assert server.get("/metrics")[0] == 401 and server.get("/health")[0] == 200
        assert server.get("/metrics", Authorization="Bearer right key")[0] == 200


def test_without_a_key_pages_of_a_browser_stay_outside(model):
    """A form needs no permission of the browser but cannot send json, and a name that a page had resolved to this
    machine is not one of its own."""
    with served(model) as server:
        assert server.post(body_of(TEXT), Content_Type="text/plain")[0] == 415
        assert server.post(body_of(TEXT), Host="evil.example")[0] == 403
        assert server.post(body_of(TEXT), Host="localhost:80")[0] == 200
        with pytest.raises(PermissionDeniedError):
            server.client.with_options(default_headers={"Host": "evil.example"}).models.list()


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"allow_folder": ["no such folder"]}, "--allow-folder no such folder: no such folder"),
        ({"api_key": ""}, "api_key must be printable ASCII"),
        ({"api_key": "ключ"}, "api_key must be printable ASCII"),
        ({"port": 70000}, "port must lie in [0, 65535]"),
    ],
)
def test_settings_that_cannot_be(given, said):
    with pytest.raises(am.InputError) as error:
        MediaPolicy(ServeConfig(**given))
    assert said in str(error.value)

"""The page as its server gives it: to Gradio's client, which goes the browser's way, and to whoever asks for more."""

from __future__ import annotations

import socket

import pytest

import autogaze_mllm as am
from autogaze_mllm.app.config import AppConfig
from autogaze_mllm.app.examples import Example
from autogaze_mllm.app.looker import SLIDERS, Looker
from autogaze_mllm.app.ports import free_port
from autogaze_mllm.cli import main
from autogaze_mllm.commands import app, ask
from autogaze_mllm.commands.app import options_of
from autogaze_mllm.commands.arguments.options import given
from autogaze_mllm.common import extras
from autogaze_mllm.common.fields import settings_of
from autogaze_mllm.video.reader import VideoReader

from ..helpers.tiny_models import make

pytest.importorskip("gradio", reason="the extra `app` is not installed")
httpx = pytest.importorskip("httpx")
gradio_client = pytest.importorskip("gradio_client")
ADDRESS = "https://example.com/clip.mp4"


@pytest.fixture(scope="module")
def asked():
    """Every host that this process looks up or connects to."""
    hosts: set[str] = set()
    look_up, connect = socket.getaddrinfo, socket.socket.connect

    def looked_up(host, *arguments, **named):
        hosts.add(str(host))
        return look_up(host, *arguments, **named)

    def connected(own, address):
        if isinstance(address, tuple):
            hosts.add(str(address[0]))
        return connect(own, address)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket, "getaddrinfo", looked_up)
        patch.setattr(socket.socket, "connect", connected)
        yield hosts


@pytest.fixture(scope="module")
def server(tmp_path_factory, clip, asked):
    """The page of a tiny model, served by this process. -> its address."""
    from autogaze_mllm.app.page import Page, launch

    folder = tmp_path_factory.mktemp("page")
    (folder / "made").mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRADIO_TEMP_DIR", str(folder / "uploads"))
        _, model = make("llava")
        config = AppConfig(max_upload=1, max_new_tokens=4)
        looker = Looker(model, folder / "made", config)
        blocks, address = launch(
            Page(looker, [Example(clip)], "Reads <nothing>.", "Test"),
            config,
            free_port(config.host, None),
            folder / "made",
        )
        yield address
        blocks.close(verbose=False)


@pytest.fixture(scope="module")
def client(server, asked):
    made = gradio_client.Client(server, verbose=False, analytics_enabled=False)
    asked.discard("huggingface.co")  # the client's: hub headers, for which it looks up what may drive it
    return made


def test_a_video_is_gazed_and_asked_about(client, clip):
    video = gradio_client.handle_file(str(clip))
    viewer, facts, answers = client.predict(video, frames=6, ratio=0.2, api_name="/gaze")
    assert facts["frames"] == 6 and facts["settings"]["ratio"] == 0.2 and not answers
    assert viewer.count("<video") == 3 and viewer.count('<g class="frame"') == 2 * 6  # for wide and for narrow pages
    assert (
        f"of {facts['patches_total']:,}" in viewer
        and f"the dense model, whole frames: {facts['dense_tokens']:,}" in viewer
    )
    viewer, facts, answers = client.predict(video, "What is <b>it</b>?", frames=6, ratio=0.2, api_name="/ask")
    assert facts["frames"] == 6 and set(facts["answers"]) == {"gaze", "dense"}
    assert facts["answers"]["gaze"]["visual_tokens"] == facts["visual_tokens"] < facts["dense_tokens"]
    assert "What is &lt;b&gt;it&lt;/b&gt;?" in answers and answers.count("<section") == 2
    assert client.predict(video, "What?", False, frames=6, api_name="/ask")[1]["answers"].keys() == {"gaze"}


def test_what_the_viewer_shows_can_be_fetched_and_nothing_else_can(client, server, clip, tmp_path):
    viewer = client.predict(gradio_client.handle_file(str(clip)), frames=3, api_name="/gaze")[0]
    source = viewer.partition('src="')[2].partition('"')[0]
    film = httpx.get(server + source)
    path = tmp_path / "film.mp4"
    path.write_bytes(film.content)
    assert len(VideoReader(path)) == 3
    other = tmp_path / "other.mp4"
    other.write_bytes(b"secret")
    assert httpx.get(f"{server}gradio_api/file={other}").status_code == 403


@pytest.mark.parametrize("question", ["", "  \n"])
def test_a_question_without_text_and_a_page_without_a_video(client, clip, question):
    told = client.predict(gradio_client.handle_file(str(clip)), question, api_name="/ask")
    assert told[1] == {"error": "the question has no text"} and "the question has no text" in told[2]
    told = client.predict(None, api_name="/gaze")
    assert told[1] == {"error": "there is no video yet: drop one, or take an example"}


def test_an_unreadable_file_is_one_line_without_a_path(client, tmp_path):
    path = tmp_path / "no <video>.mp4"
    path.write_bytes(b"nothing of the kind" * 50)
    viewer, facts, answers = client.predict(gradio_client.handle_file(str(path)), api_name="/gaze")
    assert facts["error"].endswith("not a readable video (Invalid data found when processing input)")
    assert "/" not in facts["error"] and "Traceback" not in viewer + answers and 'role="alert"' in viewer


def test_addresses_are_never_fetched(client, server):
    file = {"path": ADDRESS, "meta": {"_type": "gradio.FileData"}}
    with pytest.raises(httpx.HTTPStatusError, match="403"):
        client.predict(file, api_name="/gaze")
    for source in (ADDRESS, ADDRESS.upper()):
        found = httpx.get(f"{server}gradio_api/file={source}")
        assert found.status_code == 403 and "files, not addresses" in found.text
    # In a question an address is text.
    assert client.predict(None, f"What is {ADDRESS}?", api_name="/ask")[1]["error"].startswith("there is no video")


def test_a_browser_may_ask_no_other_machine(server):
    page = httpx.get(server)
    assert "default-src 'self'" in page.headers["content-security-policy"]


def test_sizes_are_limited_and_the_queue_cannot_be_passed_by(server):
    big = httpx.post(f"{server}gradio_api/upload", files={"files": ("big.mp4", b"0" * 1_200_000)})
    assert big.status_code == 413
    assert httpx.post(f"{server}gradio_api/queue/join", content=b"0" * 1_200_000).status_code == 413
    assert httpx.post(f"{server}gradio_api/run/gaze", json={"data": [None]}).status_code == 404


def test_sliders_have_the_ranges_and_words_of_the_settings(server):
    config = httpx.get(f"{server}config").json()
    sliders = {one["props"]["elem_id"]: one["props"] for one in config["components"] if one["type"] == "slider"}
    declared = {one.name: one for one in settings_of(am.VideoSettings)}
    assert sliders.keys() == SLIDERS.keys() == {"frames", "max_tiles", "ratio", "loss"}
    for name, slider in sliders.items():
        one = declared[name]
        assert slider["info"] == one.help and slider["minimum"] < slider["maximum"]
        one.check(slider["minimum"]), one.check(slider["maximum"])  # refuses what is out of range
    assert sliders["frames"]["value"] == 8 and sliders["frames"]["maximum"] == AppConfig().most_frames


def test_the_server_asks_nobody(client, asked):
    """After all of the above."""
    assert client and "127.0.0.1" in asked
    assert asked <= {"127.0.0.1", "localhost", "::1", "0.0.0.0", "None"}


# -- the verb --------------------------------------------------------------------------------------------------------


def test_without_the_extra_the_verb_says_what_to_install(monkeypatch, capsys):
    monkeypatch.setitem(extras.EXTRAS, "app", {"gradio": "no_such_gradio"})
    assert main(["app"]) == 2
    assert (
        capsys.readouterr().err
        == "autogaze-mllm: error: autogaze-mllm app needs gradio: pip install 'autogaze_mllm[app]'\n"
    )


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--port", "0"], "app: port must lie in [1, 65535], got 0"),
        (["--ratio", "2"], "ratio must lie in (0, 1], got 2"),
        (
            ["--host", "192.0.2.1"],
            "a port from 7860 to 7959 cannot be had at 192.0.2.1 (Cannot assign requested address)",
        ),
    ],
)
def test_what_cannot_be_served_is_one_line(words, line, capsys):
    assert main(["app", *words]) == 2
    told = capsys.readouterr().err
    assert line in told and told.count("\n") == 1


def test_a_port_that_is_taken(server, capsys):
    port = server.rstrip("/").rpartition(":")[2]
    assert main(["app", "--port", port]) == 2
    assert f"port {port} cannot be had at 127.0.0.1 (Address already in use)" in capsys.readouterr().err


def test_the_options_of_the_page_make_the_same_model_of_ask(monkeypatch):
    """What the page shows as the command line repeats what it was started with."""
    said = ["--gaze", "random", "--preset", "fast", "--ratio", "0.3", "--frames", "7", "--no-enlarge"]
    said += ["--decoder", "torchcodec"]
    taken = []
    for verb, words in ((app, ["some/model", *said]), (ask, None)):
        monkeypatch.setattr(verb, "run", lambda arguments: taken.append(arguments) or 0)
        words = ["clip.mp4", "QUESTION", *options_of(taken[0])] if words is None else words
        assert main([verb.__name__.rpartition(".")[2], *words]) == 0
    started, repeated = taken
    assert repeated.model == "some/model" and given(repeated) == given(started) != {}
    assert (repeated.gaze, repeated.preset) == (started.gaze, started.preset)

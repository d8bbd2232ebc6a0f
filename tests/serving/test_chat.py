"""The endpoint as a client sees it: answers are those of the model that is served."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from openai import BadRequestError, NotFoundError
from PIL import Image

import autogaze_mllm as am
from autogaze_mllm.video.synthetic import moving_scene

from ..helpers.serving.servers import Served, asked, body_of, data_url, served, talkative, video_part

Q = "What is there?"


@pytest.fixture(scope="module")
def model() -> am.GazedModel:
    return talkative()


@pytest.fixture(scope="module")
def server(model, clip):
    with served(model, max_tokens=16, max_choices=3, allow_folder=[str(clip.parent)]) as running:
        yield running


@pytest.fixture(scope="module")
def picture(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("pictures") / "red.png"
    Image.new("RGB", (80, 60), "red").save(path)
    return path


def own_answer(model: am.GazedModel, messages, **options) -> str:
    """Of the model itself, without a server."""
    return str(model.chat(messages, **{"max_new_tokens": 16, **options}))


def own(clip: Path, question: str = Q, **part):
    return [
        {"role": "user", "content": [{"type": "video", "video": str(clip), **part}, {"type": "text", "text": question}]}
    ]


def ask(server: Served, messages, **options):
    return server.client.chat.completions.create(model="tiny", messages=messages, **options)


def test_an_answer_is_that_of_the_model(server, model, clip):
    found = ask(server, asked(data_url(clip)))
    assert found.choices[0].message.content == own_answer(model, own(clip)) != ""
    assert found.choices[0].finish_reason == "length" and found.usage.completion_tokens == 16
    assert found.usage.prompt_tokens == model.stats["prompt_tokens"]
    assert found.gaze["patches"] == model.stats["patches"] and found.gaze["patches"] != found.gaze["patches_total"]


def test_a_conversation_of_several_turns_with_pictures(server, model, clip, short_clip, picture):
    content = [
        video_part(data_url(short_clip)),
        {"type": "text", "text": "A <video> tag is text."},
        {"type": "image_url", "image_url": {"url": data_url(picture, "image/png")}},
        video_part(data_url(clip), start=0.5, end=1.5),
    ]
    turns = [
        {"role": "user", "content": content},
        {"role": "assistant", "content": "Yes."},
        {"role": "user", "content": "And then?"},
    ]
    plain = [
        {"type": "video", "video": str(short_clip)},
        content[1],
        {"type": "image", "image": str(picture)},
        {"type": "video", "video": str(clip), "start": 0.5, "end": 1.5},
    ]
    assert ask(server, turns).choices[0].message.content == own_answer(
        model, [{**turns[0], "content": plain}, *turns[1:]]
    )
    assert ask(server, turns[2:]).choices[0].message.content == own_answer(model, turns[2:])


@pytest.mark.parametrize("options", [{}, {"stop": ["e"]}, {"temperature": 1.0, "seed": 5, "n": 2}], ids=str)
def test_streamed_and_whole_answers_are_equal(server, clip, options):
    messages = asked(data_url(clip))
    whole = ask(server, messages, **options)
    texts, ends, told = {}, {}, None
    for chunk in ask(server, messages, stream=True, stream_options={"include_usage": True}, **options):
        told = chunk.usage or told
        for choice in chunk.choices:
            texts[choice.index] = texts.get(choice.index, "") + (choice.delta.content or "")
            ends[choice.index] = choice.finish_reason or ends.get(choice.index)
    assert [texts[one.index] for one in whole.choices] == [one.message.content for one in whole.choices]
    assert [ends[one.index] for one in whole.choices] == [one.finish_reason for one in whole.choices]
    assert told == whole.usage


def test_a_stream_comes_in_pieces_and_without_usage_unless_asked(server, clip):
    chunks = list(ask(server, asked(data_url(clip)), stream=True))
    assert chunks[0].choices[0].delta.role == "assistant"
    assert sum(bool(chunk.choices[0].delta.content) for chunk in chunks) > 5
    assert all(chunk.usage is None for chunk in chunks)


def test_a_video_that_was_seen_costs_the_llm_only(model, clip):
    """By its content, however it is sent; other settings are another look."""
    with served(model, allow_folder=[str(clip.parent)]) as server:
        first = ask(server, asked(data_url(clip)), max_tokens=4)
        again = ask(server, asked(f"file://{clip}", "Why?"), max_tokens=4)
        other = ask(server, asked(data_url(clip)), max_tokens=4, extra_body={"gaze": {"frames": 4}})
        assert [one.gaze["seen_before"] for one in (first, again, other)] == [False, True, False]
        assert again.gaze["patches"] == first.gaze["patches"] and again.gaze["seconds"] == {}
        page = server.get("/metrics")[1].decode()
        assert 'autogaze_mllm_videos_total{seen="before"} 1.0' in page
        assert 'autogaze_mllm_videos_total{seen="now"} 2.0' in page


@pytest.mark.parametrize("kind", ["gif", "webp", "png"])
def test_animations_are_videos(server, model, tmp_path, kind):
    frames = [Image.fromarray(frame) for frame in moving_scene(64, 64, 6)]
    path = tmp_path / f"scene.{kind}"
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=100)
    found = ask(server, asked(data_url(path, f"image/{kind}")))
    assert found.choices[0].message.content == own_answer(model, own(path))


def test_settings_of_the_gaze_belong_to_one_request(server, model, clip):
    messages = asked(data_url(clip), "Who is it?")
    few = ask(server, messages, extra_body={"gaze": {"frames": 2, "ratio": 0.2}})
    assert few.choices[0].message.content == own_answer(talkative(frames=2, ratio=0.2), own(clip, "Who is it?"))
    usual = ask(server, messages)
    assert usual.choices[0].message.content == own_answer(model, own(clip, "Who is it?"))
    assert few.gaze["patches"] < usual.gaze["patches"]


def test_the_dense_model_can_be_asked(server, model, clip):
    found = ask(server, asked(data_url(clip)), extra_body={"gaze": False})
    with model.disabled():
        assert found.choices[0].message.content == own_answer(model, own(clip))
        assert found.usage.prompt_tokens == model.stats["prompt_tokens"]


def test_how_an_answer_is_written(server, model, clip):
    messages = asked(data_url(clip))
    text = own_answer(model, own(clip))
    stopped = ask(server, messages, stop=[text[3:5]])
    assert stopped.choices[0].message.content == text[: text.index(text[3:5])].strip()
    assert stopped.choices[0].finish_reason == "stop"
    short = ask(server, messages, max_completion_tokens=2)
    assert short.usage.completion_tokens == 2 and text.startswith(short.choices[0].message.content)

    def seeded(seed, **options):
        found = ask(server, messages, seed=seed, temperature=1.5, **options)
        return [choice.message.content for choice in found.choices]

    assert seeded(3, n=3) == [*seeded(3), *seeded(4), *seeded(5)] and len(set(seeded(3, n=3))) == 3
    assert seeded(3, top_p=1e-9) == [text]


def test_other_routes(server):
    assert [one.id for one in server.client.models.list()] == ["tiny"]
    assert server.client.models.retrieve("tiny").owned_by == "autogaze-mllm"
    assert server.get("/health") == (200, b'{"status":"ok"}')
    status, text = server.get("/docs")
    assert status == 404 and json.loads(text)["error"]["type"] == "not_found_error"
    assert server.get("/v1/chat/completions")[0] == 405


def test_errors_are_those_of_the_openai_client(server, clip):
    with pytest.raises(NotFoundError) as missing:
        server.client.chat.completions.create(model="gpt", messages=asked("x"))
    assert missing.value.code == "model_not_found" and missing.value.param == "model"
    with pytest.raises(BadRequestError) as bad:
        ask(server, asked(data_url(clip)), temperature=3)
    assert bad.value.param == "temperature" and "[0, 2]" in bad.value.message


TEXT = [{"role": "user", "content": "Hello"}]


def part(**given):
    return {"messages": [{"role": "user", "content": [given]}]}


@pytest.mark.parametrize(
    ("fields", "param", "said"),
    [
        ({"messages": None}, "messages", "must be a list"),
        ({"messages": "Hello"}, "messages", "must be a list"),
        ({"messages": []}, "messages", "must be a list"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "messages", "message 0: role"),
        ({"messages": [{"role": "user", "content": 7}]}, "messages", "content must be text"),
        ({"messages": [{"role": "user", "content": []}]}, "messages", "content must be text"),
        ({"messages": [*TEXT, {"role": "assistant", "content": "x"}]}, "messages", "nothing to be answered"),
        ({"messages": [{"role": "user", "content": "x", "audio": {"id": 1}}]}, "messages", "'audio' is not supported"),
        ({"messages": [{"role": "user", "content": "\ud800"}]}, "messages", "not UTF-8"),
        (part(type="input_audio", input_audio={}), "messages", "part 0: a part is of type"),
        (part(type="text", text=3), "messages", "part 0: must be"),
        (part(type="video_url", video_url="clip.mp4"), "messages", "part 0: must be"),
        (part(type="video_url", video_url={"url": "x", "speed": 2}), "messages", "unknown key 'speed'"),
        (part(type="video_url", video_url={"url": "clip.mp4"}), None, "begins with data:, file: or https:"),
        (part(type="video_url", video_url={"url": "data:video/mp4;base64,###"}), None, "not base64"),
        (part(type="video_url", video_url={"url": "data:video/mp4,abc"}), None, "must be data:TYPE;base64"),
        (part(type="video_url", video_url={"url": "data:video/mp4;base64,AAAA"}), None, "not a readable video"),
        (part(type="video_url", video_url={"url": "data:;base64,"}), None, "there are none"),
        (part(type="video_url", video_url={"url": "data:;base64,AAAA", "start": "x"}), None, "start must be a number"),
        (part(type="image_url", image_url={"url": "data:image/png;base64,AAAA"}), None, "not a readable image"),
        ({"temperature": "hot"}, "temperature", "must be a number"),
        ({"top_p": 0}, "top_p", "must lie in (0, 1]"),
        ({"max_tokens": 0}, "max_tokens", "at least 1"),
        ({"max_tokens": 17}, "max_tokens", "at most 16"),
        ({"max_tokens": True}, "max_tokens", "a whole number"),
        ({"max_tokens": 5, "max_completion_tokens": 6}, "max_tokens", "differ"),
        ({"n": 4}, "n", "at most 3"),
        ({"seed": 1.5}, "seed", "a whole number"),
        ({"stop": [1]}, "stop", "stop"),
        ({"stop": ""}, "stop", "1 to 256 characters"),
        ({"stream": "yes"}, "stream", "true or false"),
        ({"stream_options": {"include_usage": 1}}, "stream_options", "true or false"),
        ({"gaze": True}, "gaze", "an object of settings, or false"),
        ({"gaze": {"frames": 10000}}, "gaze", "at most 512 here"),
        ({"gaze": {"max_tiles": 1000}}, "gaze", "at most 64 here"),
        ({"gaze": {"ratio": 2}}, "gaze", "ratio must lie in (0, 1]"),
        ({"gaze": {"speed": 2}}, "gaze", "unknown setting 'speed'"),
        ({"gaze": {"decoder": "torchcodec"}}, "gaze", "decoder is pyav here"),
        ({"logprobs": True}, "logprobs", "not supported"),
        ({"tools": [{"type": "function"}]}, "tools", "not supported"),
        ({"frequency_penalty": 0.5}, "frequency_penalty", "not supported"),
        ({"beams": 4}, "beams", "unknown field 'beams'"),
    ],
    ids=lambda value: json.dumps(value)[:60] if isinstance(value, dict) else None,
)
def test_what_cannot_be_answered_is_refused_in_one_line(server, fields, param, said):
    status, found, _ = server.post(
        body_of(TEXT, **fields) if "max_tokens" in fields else {"model": "tiny", "messages": TEXT, **fields}
    )
    error = found["error"]
    assert status == 400 and error["type"] == "invalid_request_error" and error["param"] == param
    assert said in error["message"] and "\n" not in error["message"]


def test_fields_that_ask_for_nothing_are_taken(server):
    neutral = {"frequency_penalty": 0, "logprobs": False, "tools": [], "user": "me", "metadata": {}, "stop": None}
    assert server.post(body_of(TEXT, **neutral))[0] == 200


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b'{"model": "tiny", "messages": [', b"\xff\xfe", b"[" * 100_000])
def test_damaged_json_is_refused(server, body):
    status, found, _ = server.post(body)
    assert status == 400 and "the request's body" in found["error"]["message"]


def test_a_prompt_that_is_too_long_is_refused_and_not_cut(model, clip):
    model.family.config.text_config.max_position_embeddings, before = 40, 1 << 18
    try:
        with served(model) as server:
            status, found, _ = server.post(body_of(asked(data_url(clip))))
    finally:
        model.family.config.text_config.max_position_embeddings = before
    assert status == 400 and found["error"]["code"] == "context_length_exceeded"

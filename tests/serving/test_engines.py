"""The LLM on an engine: answers are those of transformers in this process, whatever runs them."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import autogaze_mllm as am
from autogaze_mllm.cli import main
from autogaze_mllm.mllm.families import FAMILIES, OWN
from autogaze_mllm.serving.config import ServeConfig
from autogaze_mllm.serving.engines.vllm import VllmEngine
from autogaze_mllm.serving.engines.vllm_images import VllmImagesEngine
from autogaze_mllm.serving.engines.ways import refusal, rows
from autogaze_mllm.serving.export import causal_llm, export_llm

from ..helpers.families.conformance import copy_of
from ..helpers.forked import command
from ..helpers.serving.servers import asked, body_of, data_url, served, talkative, video_part
from ..helpers.serving.vllm_route import vllm_route

TEXT = [{"role": "user", "content": "Hello"}]
ENGINES = [family.model_type for family in OWN if refusal(family, "prompt") is None]


@pytest.fixture(scope="module")
def model() -> am.GazedModel:
    return talkative()


@pytest.fixture(scope="module")
def folder(model, tmp_path_factory) -> Path:
    return export_llm(model, tmp_path_factory.mktemp("llm") / "out")


@pytest.fixture(scope="module")
def route(folder):
    with vllm_route(folder) as running:
        yield running


def engine(route, **config):
    return lambda model: VllmEngine(model, ServeConfig(engine=route.url, **config))


# -- answers -----------------------------------------------------------------------------------------------------------


def test_answers_are_those_of_transformers_streamed_or_not(model, route, clip):
    questions = [asked(data_url(clip)), asked(data_url(clip), "Why?"), TEXT]
    fields = [{}, {"stop": ["S"]}, {"max_tokens": 1}, {"gaze": {"frames": 2}}, {"gaze": False}]
    with served(model) as here, served(model, engine(route)) as there:
        for messages in questions:
            for options in fields:
                body = body_of(messages, **options)
                local, remote = here.post(body)[1], there.post(body)[1]
                assert remote["choices"] == local["choices"] and remote["usage"] == local["usage"], options
        stream = there.client.chat.completions.create(**body_of(questions[0]), stream=True)
        text = "".join(chunk.choices[0].delta.content or "" for chunk in stream)
        assert text == here.post(body_of(questions[0]))[1]["choices"][0]["message"]["content"]
    assert set(route.dtypes) == {torch.float32}


def test_embeddings_are_sent_in_the_dtype_of_the_llm_or_in_float32(route, folder):
    half = talkative()
    half.base.to(torch.bfloat16)
    for dtype, expected in (("llm", torch.bfloat16), ("float32", torch.float32)):
        found = VllmEngine(half, ServeConfig(engine=route.url, engine_dtype=dtype))  # type: ignore[arg-type]
        assert route.dtypes[-1] == expected
        text = found.ready(half.prepare("Hello"))["prompt_embeds"]
        assert route.bodies[-1]["prompt_embeds"] == text  # equal prompts are equal bytes, for the engine's cache


def test_llava_as_text_and_embeddings_of_its_images(tmp_path, clip, short_clip):
    llava = talkative(family="llava")
    folder = export_llm(llava, tmp_path / "llm")
    both = [video_part(data_url(clip)), {"type": "text", "text": "or"}, video_part(data_url(short_clip))]
    turns = [*asked(data_url(clip)), {"role": "assistant", "content": "A\n b."}, {"role": "user", "content": "Why?"}]
    with vllm_route(folder, tokenizer=llava.tokenizer) as route, served(llava) as here:
        with served(llava, lambda model: VllmImagesEngine(model, ServeConfig(engine=route.url))) as there:
            for messages in (asked(data_url(clip)), [{"role": "user", "content": both}], turns, TEXT):
                local, remote = here.post(body_of(messages))[1], there.post(body_of(messages))[1]
                assert remote["choices"] == local["choices"] and remote["usage"] == local["usage"]
            status, found, _ = there.post(body_of([{"role": "user", "content": "Is <image> a tag?"}]))
            assert status == 400 and "would be read as a picture" in found["error"]["message"]
            route.more_read = 1  # of a chat template that adds something
            assert there.post(body_of(TEXT))[0] == 502
        with pytest.raises(am.InputError, match="it reads a prompt of"):
            VllmImagesEngine(llava, ServeConfig(engine=route.url))
        with pytest.raises(am.InputError, match="only LLaVA takes embeddings of an image"):
            VllmImagesEngine(talkative(), ServeConfig(engine=route.url))


def test_a_question_on_a_video_that_was_seen_is_sent_alike(model, route, clip):
    with served(model, engine(route)) as server:
        sent = [server.post(body_of(asked(data_url(clip))))[1]["gaze"]["seen_before"] for _ in range(2)]
    assert sent == [False, True] and route.bodies[-1]["prompt_embeds"] == route.bodies[-2]["prompt_embeds"]
    told = {key: value for key, value in route.bodies[-1].items() if key != "prompt_embeds"}
    assert told == {
        "prompt": None,
        "model": "llm",
        "stream": True,
        "return_token_ids": True,
        "max_tokens": 8,
        "temperature": 0.0,
        "top_p": 1,
        "top_k": 0,
        "min_p": 0,
        "repetition_penalty": 1.0,
        "seed": None,
        "stop_token_ids": [1],
    }


def test_several_requests_run_at_once_on_an_engine(model, folder, clip):
    with vllm_route(folder) as route, served(model, engine(route)) as server:
        server.post(body_of(TEXT))  # and no sooner is the engine told to wait
        route.wait = threading.Event()
        jobs = [threading.Thread(target=server.post, args=(body_of(TEXT),)) for _ in range(4)]
        before = len(route.bodies)
        for job in jobs:
            job.start()
        while len(route.bodies) < before + 4:
            threading.Event().wait(0.01)
        route.wait.set()
        for job in jobs:
            job.join(60)


def test_who_leaves_hangs_up_on_the_engine(model, folder):
    with vllm_route(folder) as route, served(model, engine(route)) as server:
        server.post(body_of(TEXT))
        route.wait = threading.Event()
        connection = server.connection()
        body = json.dumps(body_of(TEXT, max_tokens=500, stream=True))
        connection.request("POST", "/v1/chat/completions", body, {"Content-Type": "application/json"})
        connection.getresponse().read(30)
        connection.close()
        while server.gateway.in_work:
            threading.Event().wait(0.01)
        route.wait.set()
        assert route.hung_up.wait(60)


# -- what goes wrong ---------------------------------------------------------------------------------------------------


def test_an_engine_that_is_not_there_or_not_the_right_one_is_told_of_at_the_start(model, folder, tmp_path):
    other = talkative()
    with torch.no_grad():
        other.base.lm_head.weight.copy_(other.base.lm_head.weight.roll(1, 0))
    export_llm(other, tmp_path / "other")
    with vllm_route(tmp_path / "other") as wrong, pytest.raises(am.InputError, match="is not the LLM of this one"):
        engine(wrong)(model)
    with (
        vllm_route(folder, enabled=False) as shut,
        pytest.raises(am.InputError, match="does not take what is sent: 400"),
    ):
        engine(shut)(model)
    with vllm_route(folder, key="k") as locked:
        with pytest.raises(am.InputError, match="no engine answers there"):
            engine(locked)(model)
        assert engine(locked, engine_key="k")(model).context_length == 4096
        gone = locked.url
    for url, said in (
        (gone, "no engine answers there"),
        ("ftp://x", "expected a URL such as"),
        ("http://", "expected a URL such as"),
        ("http://x:y", "Port could not be cast"),
    ):
        with pytest.raises(am.InputError, match=said):
            VllmEngine(model, ServeConfig(engine=url))


def test_an_engine_that_fails_in_the_middle(model, folder, clip, caplog):
    with vllm_route(folder) as route, served(model, engine(route)) as server:
        route.break_after = 2
        status, found, _ = server.post(body_of(TEXT))
        assert status == 502 and found["error"]["message"] == "the engine that runs the LLM does not answer"
        assert "its answer broke off" in caplog.text
        route.break_after, route.enabled = None, False
        assert server.post(body_of(TEXT))[0] == 502 and "--enable-prompt-embeds" in caplog.text
        route.enabled = True
        assert server.post(body_of(TEXT))[0] == 200


def test_what_is_longer_than_the_engine_takes_is_the_clients_fault(model, folder, clip):
    with vllm_route(folder, max_model_len=60) as route, served(model, engine(route)) as server:
        assert server.post(body_of(TEXT))[0] == 200
        status, found, _ = server.post(body_of(asked(data_url(clip))))
        assert status == 400 and found["error"]["code"] == "context_length_exceeded"


def test_embeddings_that_are_no_numbers_are_not_sent(route, clip):
    broken = talkative()
    with served(broken, engine(route)) as server:
        with torch.no_grad():
            broken.family.projector.linear_1.weight.fill_(float("nan"))
        before = len(route.bodies)
        assert server.post(body_of(asked(data_url(clip))))[0] == 502 and len(route.bodies) == before


# -- families ----------------------------------------------------------------------------------------------------------


def test_which_families_can_be_sent_which_way():
    assert {row[0]: (row[1] == "yes", row[2] == "yes") for row in rows()} == {
        **{family.title: (False, False) for family in OWN},
        **{FAMILIES[name].title: (True, False) for name in ENGINES},
        "LLaVA": (True, True),
    }
    assert {"NVILA-HD-Video", "VILA-style folders", "LLaVA-OneVision"} <= {FAMILIES[name].title for name in ENGINES}
    said = {row[0]: row[1] for row in rows()}
    assert "mRoPE" in said["Qwen2.5-VL"] and "which tokens are visual" in said["Gemma 3"]


@pytest.mark.parametrize("name", ["qwen2_5_vl", "gemma3"])
def test_a_family_that_cannot_is_refused_in_one_line(name, route, tmp_path):
    base, preprocessing = copy_of(name)
    model = am.wrap(base, "pixel-diff", processor=preprocessing, cache=False)
    with pytest.raises(am.InputError, match="cannot run on an engine this way: its LLM"):
        engine(route)(model)
    with pytest.raises(am.InputError, match="would be of no use"):
        export_llm(model, tmp_path / "llm")
    assert not (tmp_path / "llm").exists()


@pytest.mark.parametrize("name", ENGINES)
def test_the_exported_llm_goes_on_as_the_model_does(name, tmp_path):
    """From embeddings that are in no vocabulary."""
    base, preprocessing = copy_of(name)
    model = am.wrap(base, "pixel-diff", processor=preprocessing, cache=False)
    before = {key: tensor.clone() for key, tensor in model.base.state_dict().items()}
    folder = export_llm(model, tmp_path / "llm")
    llm = AutoModelForCausalLM.from_pretrained(folder).eval()
    embedded = torch.randn(1, 12, llm.config.hidden_size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.allclose(llm(inputs_embeds=embedded).logits, causal_llm(model)(inputs_embeds=embedded).logits)
        ids = torch.arange(20, 30)[None]
        assert torch.allclose(llm(ids).logits, model.base(input_ids=ids).logits, atol=1e-5)
    assert AutoTokenizer.from_pretrained(folder).decode([30]) == model.tokenizer.decode([30])
    after = model.base.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(before[key], after[key]) for key in before)


def test_export_by_the_command(tmp_path, capsys):
    (tmp_path / "llm").mkdir()
    code, _, said = command(["export-llm", "bundled", str(tmp_path / "llm")], file_bytes=100_000)
    assert code == 2 and "make room" in said.splitlines()[-1] and not list(tmp_path.glob("**/*.*"))  # so it can be
    assert main(["export-llm", "bundled", str(tmp_path / "llm"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"folder": str(tmp_path / "llm")}
    assert (tmp_path / "llm" / "chat_template.jinja").is_file()
    assert main(["export-llm", "bundled", str(tmp_path / "llm")]) == 2
    assert "is not empty" in capsys.readouterr().err

"""Training an LLM by the clock: what it reads and learns is what asking one by one would show it."""

from __future__ import annotations

import dataclasses
import json
import re
import subprocess
import sys
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import autogaze_mllm as am
from autogaze_mllm.common.errors import InputError
from autogaze_mllm.finetuning.on_device.answering import answers
from autogaze_mllm.finetuning.on_device.letters import choices, optimizers_of
from autogaze_mllm.finetuning.on_device.looks import Look, look_at
from autogaze_mllm.finetuning.on_device.packs import IGNORED, Rows
from autogaze_mllm.finetuning.on_device.shared_prefix import question_states, sharing_prefix
from autogaze_mllm.finetuning.on_device.signs import Speech, speech_of, texts
from autogaze_mllm.gaze.selector_registry import load_selector
from autogaze_mllm.gaze.settings import VideoSettings
from autogaze_mllm.mllm.loading import BUNDLED_FOLDER
from autogaze_mllm.signvid.dataset import DEVELOPMENT_SEED
from autogaze_mllm.signvid.exercises import verdicts
from autogaze_mllm.signvid.plan import VideoShape, plan_video
from autogaze_mllm.signvid.render import render_video
from autogaze_mllm.video.sources import Video
from scripts.train_signvid_llm import parser, run

from ..helpers.paths import ROOT

SHAPE = VideoShape(448, 224, 4, signs=3)
QUESTIONS = ["What does the red sign say?", "Question: How many of these signs are shown: A2, H3, left 4?", "Why?"]


@pytest.fixture(scope="module")
def model() -> am.GazedModel:
    return am.load(cache=False, gaze="pixel-diff", frames=4, max_tiles=2)


@pytest.fixture(scope="module")
def videos() -> list[np.ndarray]:
    """A clean one and a noisy one, of which pixel-diff keeps more."""
    shapes = (SHAPE, dataclasses.replace(SHAPE, noise=0.1))
    return [np.stack(list(render_video(plan_video(shape, "train", 5, n)))) for n, shape in enumerate(shapes)]


@pytest.fixture(scope="module")
def speech(model) -> Speech:
    return speech_of(model, BUNDLED_FOLDER / "llm" / "tokenizer.json")


def test_many_questions_after_one_video_are_as_each_alone(model, videos, speech):
    """Against the model's own forward on the whole prompt of each question."""
    turns = speech.turns()
    packs = [turns.pack([(question, "K7 (B)") for question in QUESTIONS[:count]]) for count in (3, 2)]
    rows = Rows.of(packs, torch.device("cpu"))
    prompts = [
        [model.prepare(f"<video>\n{asked}", videos=[Video(video, fps=4)]) for asked in QUESTIONS] for video in videos
    ]
    tokens = [model.encode_video(Video(video, fps=4)).content for video in videos]
    with torch.no_grad():
        expected = [[model(**prompt).logits[0] for prompt in some] for some in prompts]
        with sharing_prefix(model.base.llm) as llm:
            embed = llm.model.embed_tokens(torch.tensor(turns.prefix()))
            prefix = [torch.cat([embed, part]) for part in tokens]
            lengths = torch.tensor([len(part) for part in prefix])
            padded = torch.nn.utils.rnn.pad_sequence(prefix, batch_first=True)
            found = llm.lm_head(question_states(llm, padded, lengths, rows.ids, rows.question))
    assert len(prefix[0]) != len(prefix[1])  # so that one is filled up
    for row, count in enumerate((3, 2)):
        for number in range(count):
            whole = expected[row][number]
            here = found[row][rows.question[row] == number]
            asked = len(whole) - len(prefix[row])
            torch.testing.assert_close(here[:asked], whole[-asked:], rtol=1e-4, atol=1e-4)
            assert rows.ids[row][rows.question[row] == number][:asked].tolist() == _ids(prompts[row][number])[-asked:]


def _ids(prompt) -> list[int]:
    return prompt["input_ids"][0].tolist()


def test_answers_side_by_side_are_those_that_ask_gives(model, videos, speech):
    end = model.tokenizer.eos_token_id
    sources = [Video(video, fps=4) for video in videos]
    asked = [
        ["What does the red sign say?", "What do the signs say, in order?"],
        [*QUESTIONS, "What do the signs say?"],
    ]
    expected = [
        [str(model.ask(video, one, max_new_tokens=6)) for one in some]
        for video, some in zip(sources, asked, strict=True)
    ]
    tokens = [model.encode_video(video).content for video in sources]
    with sharing_prefix(model.base.llm) as llm:
        found = answers(llm, speech.turns(), tokens, asked, end, 6, nullcontext())
    assert [[model.tokenizer.decode(reply).strip() for reply in some] for some in found] == expected
    lengths = {len(reply) for some in found for reply in some}
    assert len(lengths) > 1 and 6 in lengths  # some end by themselves, some are cut off


def test_only_answers_are_learnt(speech, model):
    pack = speech.turns().pack([("Why?", "K7 (B)"), ("What?", "none")])
    for number, answer in enumerate(("K7 (B)", "none")):
        labels = pack.labels[pack.question == number]
        learnt = labels[labels != IGNORED]
        assert model.tokenizer.decode(learnt) == answer + "<|im_end|>"
        ids = pack.ids[pack.question == number]
        assert (ids[1:][labels[:-1] != IGNORED] == learnt).all()  # each token is learnt from where it is to follow


@pytest.mark.parametrize(
    ("gaze", "changes"),
    [
        ("pixel-diff", {"ratio": 0.1}),
        ("random", {"ratio": 0.1}),
        ("bundled", {"ratio": 0.1, "loss": 0.0, "chunk_frames": 2}),
        ("all", {"ratio": 1, "max_tiles": 1}),
    ],
)
def test_videos_side_by_side_are_seen_as_each_alone(model, videos, gaze, changes):
    selector = load_selector(gaze)
    settings = VideoSettings().changed(**{"frames": 4, "max_tiles": 2, **changes})
    found = look_at(model, videos, [Look("it", selector, settings)])
    alone = am.load(cache=False, gaze=gaze, **{"frames": 4, "max_tiles": 2, "loss": None, **changes})
    for video, row in zip(videos, found, strict=True):
        expected = alone.encode_video(Video(video, fps=4)).content
        torch.testing.assert_close(row["it"], expected, rtol=1e-4, atol=1e-4)


def test_a_text_tells_all_that_is_asked(speech, model):
    """Signs that an answer names stand in the text, those that it denies do not."""
    count = 0
    for text in texts(speech, 3, range(6), 8):
        shown = model.tokenizer.decode(text.prefix)
        for number in range(8):
            mine = text.pack.question == number
            labels = text.pack.labels[mine]
            said = model.tokenizer.decode(labels[labels != IGNORED]).removesuffix("<|im_end|>")
            for code in said.partition(" (")[0].split():
                if code[-1] in "+-" and code[:1].isupper():
                    assert (f" {code[:-1]}" in shown) == (code[-1] == "+"), (shown, said)
                    count += 1
    assert count > 20


def test_a_choice_asks_for_the_letter_of_what_was_said_and_for_nothing_else(speech, model):
    kinds = set()
    for text in choices(speech.turns(), 60, np.random.default_rng(4)):
        options = dict(re.findall(r"^([A-D])\. (.+)$", model.tokenizer.decode(text.prefix), re.MULTILINE))
        assert sorted(options) == list("ABCD")
        for number in range(4):
            mine = text.pack.question == number
            (label,) = text.pack.labels[mine][text.pack.labels[mine] != IGNORED]
            said = model.tokenizer.decode(text.pack.ids[mine])
            assert said.endswith(" (") and text.pack.labels[mine][-1] == label
            words = said.removesuffix(" (")
            if "+" in words or "-" in words:
                kinds.add("count")
                assert words.count("+") == int(words[-1])
                words = words[-1]
            assert options[model.tokenizer.decode([label])] == words
    assert kinds  # numbers were among the options, too


def test_verdicts_tell_what_a_video_shows(speech, model):
    plan = plan_video(SHAPE, "train", 5, 0)
    said = verdicts(plan, 40, np.random.default_rng(2))
    told = re.findall(r"((?:left|right|up|down) \d|\w\d)([+-])", said)
    assert len(told) == 40 and {(code in plan.codes) for code, mark in told if mark == "+"} == {True}
    assert not {code for code, mark in told if mark == "-"} & set(plan.codes)
    pack = speech.turns().deciding(said)
    learnt = pack.labels[pack.labels != IGNORED]
    assert model.tokenizer.decode(learnt) == "".join(mark for _, mark in told)
    assert (pack.ids[1:][pack.labels[:-1] != IGNORED] == learnt).all()
    both = speech.turns().pack([("Why?", "K7 (B)"), ("What?", "none")]).and_then(pack)
    assert sorted(set(both.question.tolist())) == [0, 1, 2] and len(both.ids) == len(both.labels) == len(both.question)


@pytest.mark.parametrize("muon", [False, True])
def test_every_weight_of_the_llm_is_learnt_once(model, muon):
    optimizers = optimizers_of(model.base.llm, 1e-3, muon)
    learnt = [p for optimizer in optimizers for group in optimizer.param_groups for p in group["params"]]
    assert len(learnt) == len({id(p) for p in learnt}) == len(list(model.base.llm.parameters()))


def test_the_development_split_is_not_trained_on(tmp_path):
    with pytest.raises(InputError, match="development"):
        run(parser().parse_args([str(tmp_path), "--small", "--seed", str(DEVELOPMENT_SEED)]))


@pytest.mark.slow
@pytest.mark.parametrize("letters", [(), ("kept",)])
def test_letters_are_learnt_before_videos_count_in_full_and_kept_behind_every_look(tmp_path, letters):
    start = BUNDLED_FOLDER / "llm" / "model.safetensors"
    command = [sys.executable, ROOT / "scripts/train_signvid_llm.py", tmp_path, "--small", "--workers", "1"]
    command += ["--minutes", "5", "--llm", start, "--letters", *letters]
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert all("letters" in line for line in lines) and len(lines) == 8
    assert set(lines[0]["videos"]) == ({"small", "large", "long"} if letters else {"small", "clips", "large", "gazed"})
    weights, before = load_file(tmp_path / "llm.safetensors"), load_file(start)
    assert any(not torch.equal(weights[name], before[name]) for name in weights)


@pytest.mark.slow
def test_the_script_trains_the_llm_alone_and_says_how_well_it_answers(tmp_path):
    command = [sys.executable, ROOT / "scripts/train_signvid_llm.py", tmp_path, "--small", "--workers", "1"]
    done = subprocess.run([*map(str, command), "--minutes", "5"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert {line["group"] for line in lines} >= {"words", "small"}
    small = next(line for line in lines if line["group"] == "small")
    assert {f"small {name}" for name in ("all", "gaze", "pixel-diff", "random", "shrunk")} <= small.keys()
    found = json.loads((tmp_path / "result.json").read_text())["development"]
    assert set(found) == {"clean", "noisy"} and found["clean"]["all"]["tokens"] == 4 * 67  # 265 patches by four
    weights = load_file(tmp_path / "llm.safetensors")
    before = load_file(BUNDLED_FOLDER / "llm" / "model.safetensors")
    assert weights.keys() == before.keys() and {tensor.dtype for tensor in weights.values()} == {torch.bfloat16}
    assert any(not torch.equal(weights[name], before[name]) for name in weights)
    assert {path.name for path in tmp_path.iterdir()} == {"llm.safetensors", "metrics.jsonl", "result.json"}

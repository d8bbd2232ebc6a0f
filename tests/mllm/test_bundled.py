"""The MLLM that comes with the package: what `ask` and `am.load()` take without a name."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import autogaze_mllm as am
from autogaze_mllm.cli import main
from autogaze_mllm.mllm.loading import BUNDLED_FOLDER
from autogaze_mllm.signvid import SignVidConfig, VideoShape, write_signvid
from autogaze_mllm.signvid.conversations import plainly
from autogaze_mllm.signvid.dataset import DEVELOPMENT_SEED, video_name, write_videos

from ..helpers.eval_runs import evaluate

RECIPE = SignVidConfig(VideoShape(448, 448, 8, signs=3), "test", videos=4, questions=6, seed=5)


@pytest.fixture(scope="module")
def signs(tmp_path_factory) -> Path:
    return write_signvid(tmp_path_factory.mktemp("signs"), RECIPE) / "videos"


def right_answers(model: am.GazedModel, videos: Path) -> int:
    """Of 12 signs, how many are read: mark and digit, 1 of 160."""
    right = 0
    for number in range(RECIPE.videos):
        seen = model.encode_video(videos / video_name(number), share_prompt=True)
        for question, code in plainly(RECIPE.plan(number)):
            right += model.ask(seen, question, max_new_tokens=8) == code
    return right


def test_it_is_small_and_needs_no_pickle():
    files = [file for file in BUNDLED_FOLDER.rglob("*") if file.is_file()]
    assert sum(file.stat().st_size for file in files) < 15e6
    assert {file.suffix for file in files} <= {".json", ".safetensors", ".jinja", ".txt"}


def test_what_it_looks_through_by_default_leaves_noise_alone():
    assert am.load(cache=False).gaze.identity() == am.PixelDiffSelector(noise_floor=True).identity()


def test_it_reads_signs_of_the_test_split(signs):
    """Fonts, backgrounds and seeds that it was not trained on."""
    assert right_answers(am.load(cache=False, gaze="pixel-diff", loss=None), signs) >= 8


def test_without_the_video_it_is_lost(signs, tmp_path):
    model = am.load(cache=False, gaze="pixel-diff", loss=None)
    for number in range(RECIPE.videos):  # every question about the next video
        (tmp_path / video_name(number)).symlink_to(signs / video_name((number + 1) % RECIPE.videos))
    assert right_answers(model, tmp_path) <= 2


def test_it_reads_large_frames_and_not_shrunk_ones(tmp_path):
    recipe = SignVidConfig(VideoShape(), "train", videos=1, questions=0, seed=DEVELOPMENT_SEED)
    write_videos(tmp_path, recipe)
    right, tokens = {}, {}
    for name, tiles in (("pixel-diff", 36), ("all", 4)):
        model = am.load(cache=False, gaze=name, max_tiles=tiles)
        seen = model.encode_video(tmp_path / video_name(0), share_prompt=True)
        plain = plainly(recipe.plan(0))
        right[name] = sum(model.ask(seen, question, max_new_tokens=8) == code for question, code in plain)
        tokens[name] = seen.tokens
    assert right["pixel-diff"] >= 4 and right["all"] <= 1
    assert tokens["pixel-diff"] < tokens["all"] == 16 * 265  # 2 x 2 tiles


def test_ask_takes_it_by_default(signs, capsys):
    number, plan, _ = next(iter(RECIPE.asked()))
    colour = plan.signs[0].sign.colour
    question = f"What does the {colour} sign say?"
    assert main(["ask", str(signs / video_name(number)), question, "--no-cache", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["frames"] == 8 and found["patches_total"] == 8 * 4 * 265  # 2 x 2 tiles
    assert found["patches"] <= 0.15 * found["patches_total"] and "nothing else" in found["note"]


def test_it_is_loaded_as_any_other(tmp_path, signs):
    model = am.load(cache=False, frames=4)
    assert model.settings.frames == 4 and not model.settings.enlarge
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    model.save_pretrained(tmp_path / "copy")
    copy = am.load(tmp_path / "copy", cache=False)
    video = signs / video_name(0)
    assert copy.ask(video, "What do the signs say, in order?") == model.ask(video, "What do the signs say, in order?")


def test_it_answers_multiple_choice_questions_in_the_harness(signs, tmp_path, capsys):
    """24 questions of four options: by luck 6 are right, and 11 or more once in 50 times. It says the letter, so that
    both rules find it; HLVid's 16 tokens are too few for counts that begin with an arrow."""
    report = evaluate(capsys, "hlvid", signs.parent, tmp_path, "--no-cache", "--max-new-tokens", "24", model=None)
    for rule in ("official", "strict"):
        scores = report["scores"][rule]
        assert scores["score"]["n"] == 24 and scores["score"]["correct"] >= 11 and scores["unparsed"] <= 2, scores


def test_a_stored_loss_is_that_of_the_stored_selector(tmp_path):
    am.load(cache=False, loss=0.3).save_pretrained(tmp_path / "copy")
    assert am.load(tmp_path / "copy", cache=False).settings.loss == 0.3
    assert am.load(tmp_path / "copy", cache=False, gaze="pixel-diff").settings.loss == 0.3
    assert am.load(tmp_path / "copy", cache=False, gaze="bundled").settings.loss is None
    assert am.load(tmp_path / "copy", cache=False, gaze="bundled", loss=0.1).settings.loss == 0.1

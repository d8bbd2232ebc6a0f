"""SignVid: the data are as described, the same every time, and unreadable when shrunk."""

from __future__ import annotations

import dataclasses
import json
import runpy
import sys
import time
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer

from autogaze_mllm.common.errors import InputError
from autogaze_mllm.evaluation.benchmarks.hlvid import HLVid
from autogaze_mllm.evaluation.extraction import first_word, strict
from autogaze_mllm.finetuning.data.sample_gaze import GazeSpec
from autogaze_mllm.finetuning.data.samples import check_samples
from autogaze_mllm.mllm.loading import BUNDLED_FOLDER
from autogaze_mllm.signvid import SignVidConfig, VideoShape, ensure_signvid, read_truth, write_signvid
from autogaze_mllm.signvid.backgrounds import FAMILIES
from autogaze_mllm.signvid.conversations import BY_COLOUR, BY_SIGN, BY_TIME, reply, write_conversations
from autogaze_mllm.signvid.dataset import DEVELOPMENT_SEED, stored_recipe, video_name, write_videos
from autogaze_mllm.signvid.legible import check_legible
from autogaze_mllm.signvid.plan import hold_of, plan_video
from autogaze_mllm.signvid.questions import LETTERS
from autogaze_mllm.signvid.render import render_video
from autogaze_mllm.signvid.signs import ARROWS, FONTS, plate_size
from autogaze_mllm.video.reader import VideoReader

from ..helpers.eval_runs import evaluate
from ..helpers.paths import ROOT

SMALL = SignVidConfig(VideoShape(448, 336, 10, signs=4), videos=5, questions=8, seed=3)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return write_signvid(tmp_path_factory.mktemp("signvid"), SMALL)


def test_the_hlvid_harness_runs_it(data, tmp_path, capsys):
    for script, right in (("right", 1.0), ("wrong", 0.0)):
        report = evaluate(capsys, "hlvid", data, tmp_path / script, model=f"scripted:{script}")
        assert report["scores"]["n"] == 40 and report["scores"]["official"]["score"]["value"] == right
    assert set(report["scores"]["official"]["categories"]["category"]) == {"read", "first", "count"}


def test_right_letters_are_balanced_and_options_differ(data):
    questions = HLVid(data).questions()
    assert Counter(question.answer for question in questions) == dict.fromkeys(LETTERS, 10)
    for question in questions:
        options = [line[3:] for line in question.text.splitlines() if line[:2] in ("A.", "B.", "C.", "D.")]
        assert len(set(options)) == 4


def parts(text: str) -> tuple[str, dict[str, str]]:
    """A question's first line, and its options by letter."""
    lines = text.removeprefix("Question: ").splitlines()
    return lines[0], {line[0]: line[3:] for line in lines[1:5]}


def listed(question: str) -> list[str]:
    return question.removesuffix("?").split(": ")[1].split(", ")


@pytest.mark.parametrize("signs", [3, 4, 5])
def test_no_question_is_asked_twice_in_another_order(signs):
    recipe = SignVidConfig(VideoShape(448, 448, 16, signs=signs), videos=20, questions=10)
    for _, plan, questions in recipe.asked():
        asked = set()
        for one in questions:
            question, options = parts(one.text)
            of = listed(question) if one.kind == "count" else set(options.values()) & set(plan.codes)
            asked.add((question.split(":")[0], *sorted(of)))
        assert len(asked) == 10


def blind_scores(recipe: SignVidConfig) -> dict[str, float]:
    """Accuracy of solvers that see the questions' text alone, by kind and solver.

    shares: the option that shares a glyph with most others; common: whose glyphs are most frequent among the options;
    pairs: the best answer to "how many" for each number of glyphs that the listed codes share.
    """
    right: Counter[str] = Counter()
    asked: Counter[str] = Counter()
    by_pairs: dict[int, Counter[str]] = defaultdict(Counter)
    draw = np.random.default_rng(0)

    def glyphs(code: str) -> tuple[str, str]:
        return code[:-1].strip(), code[-1]

    for one in (one for _, _, questions in recipe.asked() for one in questions):
        question, options = parts(one.text)
        asked[one.kind] += 1
        if one.kind == "count":
            codes = [glyphs(code) for code in listed(question)]
            shared = sum(len({*a} & {*b}) for number, a in enumerate(codes) for b in codes[:number])
            by_pairs[shared][options[one.answer]] += 1
            continue
        codes_of = {letter: glyphs(code) for letter, code in options.items()}
        frequent = Counter(glyph for code in codes_of.values() for glyph in code)
        scores = {
            "shares": {a: sum(len({*mine} & {*b}) == 1 for b in codes_of.values()) for a, mine in codes_of.items()},
            "common": {a: sum(frequent[glyph] for glyph in mine) for a, mine in codes_of.items()},
        }
        for solver, found in scores.items():
            best = [letter for letter in found if found[letter] == max(found.values())]
            right[f"{one.kind} {solver}"] += draw.choice(best) == one.answer
    result = {name: right[name] / asked[name.split()[0]] for name in right}
    return result | {"count pairs": sum(max(found.values()) for found in by_pairs.values()) / asked["count"]}


@pytest.mark.parametrize("signs", [3, 4, 5])
def test_questions_cannot_be_answered_without_the_video(signs):
    shape = VideoShape(448, 448, 16, signs=signs)
    scores = blind_scores(SignVidConfig(shape, videos=300, questions=10))
    assert len(scores) == 5 and max(scores.values()) <= 0.35, scores


def test_answers_follow_from_what_is_shown(data):
    truth = read_truth(data)
    kinds = Counter()
    for question in HLVid(data).questions():
        signs = truth[question.video]
        codes = [sign["code"] for sign in signs]
        asked, options = parts(question.text)
        kind = question.categories["category"]
        kinds[kind] += 1
        if kind == "read":
            colour = asked.split()[3]
            found = next(sign["code"] for sign in signs if sign["colour"] == colour)
        elif kind == "first":
            found = next(code for code in codes if code in options.values())
        else:
            found = str(sum(code in codes for code in listed(asked)))
        assert options[question.answer] == found, question.text
        starts = [sign["frames"][0] for sign in signs]
        assert starts == sorted(set(starts))  # one after the other, so that "first" has an answer
    assert all(kinds[kind] >= 5 for kind in ("read", "first", "count"))


def test_signs_are_where_the_truth_says_and_nowhere_else_in_time():
    plan = plan_video(SMALL.shape, "test", 3, 0)
    bare = dataclasses.replace(plan, signs=())
    frames, without = list(render_video(plan)), list(render_video(bare))
    assert len(frames) == 10 and frames[0].shape == (336, 448, 3)
    for time_, (frame, empty) in enumerate(zip(frames, without, strict=True)):
        changed = (frame != empty).any(axis=2)
        for shown in plan.signs:
            if shown.start <= time_ < shown.end:
                x, y = shown.x, shown.y
                height, width = plate_size()
                assert x >= 0 and x + width <= 448 and y >= 0 and y + height <= 336
                assert changed[y : y + height, x : x + width].mean() > 0.9
                changed[y : y + height, x : x + width] = False
        assert not changed.any()


def test_the_same_recipe_gives_the_same_files_and_another_seed_others(data, tmp_path):
    again = write_signvid(tmp_path / "again", dataclasses.replace(SMALL, videos=2))
    for number in range(2):
        name = f"videos/{video_name(number)}"
        assert (again / name).read_bytes() == (data / name).read_bytes()
    other = write_signvid(tmp_path / "other", dataclasses.replace(SMALL, videos=1, seed=4))
    assert (other / "videos/00000.mp4").read_bytes() != (data / "videos/00000.mp4").read_bytes()


def test_what_is_there_is_not_made_again_and_another_recipe_is_refused(data):
    before = (data / "videos/00001.mp4").stat().st_mtime_ns
    ensure_signvid(data, SMALL)
    assert (data / "videos/00001.mp4").stat().st_mtime_ns == before
    with pytest.raises(InputError, match="another recipe"):
        ensure_signvid(data, dataclasses.replace(SMALL, seed=9))


def test_videos_of_another_recipe_are_never_kept_under_new_labels(tmp_path):
    recipe = SignVidConfig(VideoShape(224, 224, 2, signs=1, order=False), "train", videos=2, questions=0)
    write_conversations(tmp_path, "stills", recipe)
    before = (tmp_path / "stills/00001.mp4").stat().st_mtime_ns
    for changed in (
        dataclasses.replace(recipe, seed=1),
        dataclasses.replace(recipe, shape=dataclasses.replace(recipe.shape, jitter=0)),
    ):
        with pytest.raises(InputError, match="another recipe"):
            write_conversations(tmp_path, "stills", changed)
    write_conversations(tmp_path, "stills", dataclasses.replace(recipe, videos=3))  # more of the same are welcome
    assert (tmp_path / "stills/00001.mp4").stat().st_mtime_ns == before and (tmp_path / "stills/00002.mp4").is_file()
    (tmp_path / "stills/recipe.json").unlink()
    with pytest.raises(InputError, match="nothing says"):
        write_conversations(tmp_path, "stills", recipe)


def test_an_interrupted_benchmark_is_not_gone_on_with_by_another_recipe(tmp_path):
    write_videos(tmp_path / "videos", dataclasses.replace(SMALL, videos=1))  # no table, no signvid.json yet
    with pytest.raises(InputError, match="another recipe"):
        ensure_signvid(tmp_path, dataclasses.replace(SMALL, videos=1, seed=9))


def test_workers_must_be_one_at_least(tmp_path):
    with pytest.raises(InputError, match="one worker at least"):
        write_videos(tmp_path, SMALL, workers=0)


def test_the_train_split_is_written_for_development_as_the_test_split_is(tmp_path, capsys, monkeypatch):
    script = ROOT / "scripts" / "make_signvid.py"
    size = ["--size", "224x224", "--frames", "5", "--signs", "3", "--videos", "2", "--questions", "4"]
    monkeypatch.setattr(sys, "argv", [str(script), str(tmp_path / "dev"), "--dev", *size, "--workers", "1"])
    assert runpy.run_path(str(script))["main"]() == 0
    capsys.readouterr()
    recipe = stored_recipe(tmp_path / "dev")
    assert (recipe.split, recipe.seed) == ("train", DEVELOPMENT_SEED)
    assert {sign["font"] for signs in read_truth(tmp_path / "dev").values() for sign in signs} <= set(FONTS["train"])
    report = evaluate(capsys, "hlvid", tmp_path / "dev", tmp_path / "out", model="scripted:right")
    assert report["scores"]["n"] == 8
    with pytest.raises(InputError, match="for development"):
        write_conversations(tmp_path, "clips", recipe)


@pytest.mark.parametrize(
    "shape", [VideoShape(448, 448, 16), VideoShape(448, 448, 10, signs=6), VideoShape(448, 448, 100, signs=6)]
)
def test_signs_are_shown_for_their_time_also_beside_cuts(shape):
    cuts = 0
    for number in range(300):
        plan = plan_video(shape, "train", 0, number)
        cuts += len(plan.scenes) - 1
        for shown in plan.signs:
            assert shown.end - shown.start >= hold_of(shape)
            assert any(scene.start <= shown.start and shown.end <= scene.end for scene in plan.scenes)
    assert cuts > 100


def test_train_and_test_share_neither_fonts_nor_backgrounds():
    plans = {split: [plan_video(SMALL.shape, split, 0, number) for number in range(30)] for split in ("train", "test")}
    fonts = {split: {shown.sign.font for plan in found for shown in plan.signs} for split, found in plans.items()}
    families = {split: {scene.family for plan in found for scene in plan.scenes} for split, found in plans.items()}
    assert fonts["train"] == set(FONTS["train"]) and fonts["test"] == set(FONTS["test"])
    assert families["train"] == set(FAMILIES["train"]) and families["test"] == set(FAMILIES["test"])
    assert not fonts["train"] & fonts["test"] and not families["train"] & families["test"]
    assert not {tuple(plan.codes) for plan in plans["train"]} & {tuple(plan.codes) for plan in plans["test"]}


def test_a_reader_of_the_full_frame_fails_on_the_shrunk_one(data):
    found = check_legible(data, SMALL, factor=3)
    assert found.n == 20
    assert found.full >= 0.95 and found.shrunk <= 0.2


def test_the_reader_would_read_ordinary_print_when_shrunk(tmp_path, monkeypatch):
    """So it is the fine print that fails it, not a weakness of the reader."""
    from autogaze_mllm.signvid import signs

    monkeypatch.setattr(signs, "CORE", 30.0)  # nothing is taken away from the letters
    monkeypatch.setattr(signs, "GRAIN", 2.0)
    for cached in (signs.glyphs,):
        cached.cache_clear()
    from autogaze_mllm.signvid import legible

    legible._templates.cache_clear()
    try:
        plain = write_signvid(tmp_path, dataclasses.replace(SMALL, videos=3))
        assert check_legible(plain, dataclasses.replace(SMALL, videos=3), factor=3).shrunk >= 0.8
    finally:
        signs.glyphs.cache_clear()
        legible._templates.cache_clear()


def test_training_samples_are_accepted_and_never_from_the_test_split(tmp_path):
    recipe = SignVidConfig(VideoShape(224, 224, 4, signs=3), "train", videos=3, questions=2)
    path = write_conversations(tmp_path, "clips", recipe)
    samples, faults = check_samples([path])
    assert len(samples) == 12 and not faults  # 2 listings, 3 signs and 2 questions for each video, 2 in a conversation
    stored = [json.loads(line) for line in path.read_text().splitlines()]
    assert [sample["video"] for sample in stored] == [f"clips/0000{n}.mp4" for n in (0, 1, 2) for _ in range(4)]
    assert all(sample["conversations"][0]["value"].startswith("<video>\n") for sample in stored)
    said = {}
    for sample in stored[:4]:
        turns = [turn["value"].removeprefix("<video>\n") for turn in sample["conversations"]]
        said |= dict(zip(turns[::2], turns[1::2], strict=True))
    assert said.pop(BY_TIME) == ", ".join(recipe.plan(0).codes)
    assert all(f"{shown.sign.colour} {shown.sign.code}" in said[BY_COLOUR] for shown in recipe.plan(0).signs)
    del said[BY_COLOUR]
    for shown in recipe.plan(0).signs:
        assert said.pop(BY_SIGN.format(shown.sign.colour)) == shown.sign.code
    assert len(said) == 2
    assert all(first_word(answer, LETTERS) for answer in said.values())
    looked, _ = check_samples([write_conversations(tmp_path, "clips", recipe, look={"name": "all", "frames": 2})])
    looks = {medium.gaze_spec for sample in looked for medium in sample.media}
    assert looks == {GazeSpec("all", (("frames", 2),))} and samples[0].media[0].gaze_spec is None
    with pytest.raises(InputError, match="train split"):
        write_conversations(tmp_path, "clips", dataclasses.replace(recipe, split="test"))


@pytest.mark.parametrize(
    "wrong",
    [
        *({"width": 3842}, {"height": 101}, {"frames": 1025}, {"signs": 7}, {"frames": 3}),
        *({"size": 0}, {"size": 200}, {"raster": 0}, {"jitter": -1}, {"jitter": 30}, {"noise": -0.1}, {"noise": 2}),
    ],
)
def test_sizes_out_of_reach_are_refused(wrong):
    with pytest.raises(InputError, match="SignVid"):
        VideoShape(**wrong)


@pytest.mark.parametrize("sides", [(64, 64), (64, 224), (224, 64)])
def test_the_smallest_frames_hold_their_distractors(sides):
    for number in range(12):
        plan = plan_video(VideoShape(*sides, 2, signs=1), "train", 0, number)
        assert all(frame.shape == (*sides[::-1], 3) for frame in render_video(plan))


def test_questions_need_enough_signs():
    with pytest.raises(InputError, match="3 signs"):
        SignVidConfig(VideoShape(signs=2))


def test_the_largest_size_is_written_frame_by_frame(tmp_path):
    recipe = SignVidConfig(VideoShape(3840, 2160, 12, signs=3), videos=1, questions=2)
    folder = write_signvid(tmp_path, recipe)
    reader = VideoReader(folder / "videos/00000.mp4")
    assert len(reader) == 12
    frame = next(iter(reader.read([3], chunk=1))).frames[0]
    assert frame.shape == (2160, 3840, 3)


def test_frames_come_fast():
    plan = plan_video(VideoShape(), "test", 0, 1)
    frames = iter(render_video(plan))
    next(frames)  # makes the scene
    start = time.process_time()
    count = sum(1 for _ in frames)
    assert count == 15 and count / (time.process_time() - start) > 20


def test_scenes_have_texture_and_motion():
    plan = plan_video(VideoShape(448, 448, 16), "train", 0, 2)
    frames = np.stack(list(render_video(plan))).astype(int)
    assert frames.std(axis=(1, 2)).mean() > 8
    assert (np.abs(np.diff(frames, axis=0)).mean(axis=(1, 2, 3)) > 1).all()


def test_what_the_model_is_taught_to_say_names_the_letter():
    """By HLVid's own rule, after what the letter rests on; within the tokens that HLVid allows, but for counts of codes
    that begin with an arrow."""
    recipe = SignVidConfig(VideoShape(448, 448, 8, signs=4), "train", videos=40, questions=8, seed=3)
    tokenizer = Tokenizer.from_file(str(BUNDLED_FOLDER / "llm/tokenizer.json"))
    for _, plan, questions in recipe.asked():
        for asked in questions:
            said = reply(asked)
            assert first_word(said, LETTERS) == strict(said, LETTERS) == asked.answer
            with_arrow = asked.kind == "count" and any(name in said for name in ARROWS)
            assert len(tokenizer.encode(said.removesuffix(")")).ids) <= (24 if with_arrow else 16)
            if asked.kind == "count":
                verdicts, number = said.partition(" (")[0].rsplit(" ", 1)
                assert number == asked.option
                codes = listed(parts(asked.text)[0])
                assert verdicts == " ".join(f"{code}{'+' if code in plan.codes else '-'}" for code in codes)
                assert parts(asked.text)[1][asked.answer] == str(verdicts.count("+"))
            else:
                assert said == f"{asked.option} ({asked.answer})"


def test_a_noisy_video_shows_what_the_clean_one_does():
    """Sensor noise of the strength that was asked for, stronger where it is bright, other in every frame; the codec and
    all questions see the same video."""
    clean = SignVidConfig(VideoShape(448, 448, 8, signs=4), "train", videos=1, questions=8, seed=3)
    noisy = dataclasses.replace(clean, shape=dataclasses.replace(clean.shape, noise=0.05))
    assert [q for _, _, q in clean.asked()] == [q for _, _, q in noisy.asked()]
    assert clean.plan(0).signs == noisy.plan(0).signs
    frames = [np.stack(list(render_video(recipe.plan(0)))).astype(np.float32) for recipe in (clean, noisy)]
    noise = frames[1] - frames[0]
    level = frames[0] / 255
    expected = 255 * 0.05 * np.sqrt(0.3 + 1.4 * level)
    inside = (level > 0.25) & (level < 0.75)  # where nothing is clipped
    assert (noise / expected)[inside].std() == pytest.approx(1, abs=0.03)
    assert abs(noise[inside].mean()) < 0.2
    pairs = [np.corrcoef(noise[0].ravel(), other.ravel())[0, 1] for other in noise[1:]]
    assert np.abs(pairs).max() < 0.05


def test_noisy_signs_are_still_read_by_the_template_reader(tmp_path):
    recipe = SignVidConfig(VideoShape(448, 448, 8, signs=4, noise=0.05), "train", videos=3, questions=2, seed=3)
    write_signvid(tmp_path, recipe)
    assert stored_recipe(tmp_path) == recipe
    assert check_legible(tmp_path, recipe, signs=12).full >= 0.9


def test_clean_data_of_earlier_versions_stay_good(data):
    """What was stored before there was noise has no word of it."""
    stored = json.loads((data / "signvid.json").read_text())
    assert "noise" not in stored["recipe"]["shape"]
    assert ensure_signvid(data, SMALL) == data
    other = dataclasses.replace(SMALL, shape=dataclasses.replace(SMALL.shape, noise=0.1))
    with pytest.raises(InputError, match="another recipe"):
        ensure_signvid(data, other)

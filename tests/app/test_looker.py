"""What the page does with a video, without the page: what is kept, what is shown of it, and the two answers."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest
import torch

import autogaze_mllm as am
from autogaze_mllm.app import looker as looking
from autogaze_mllm.app.config import AppConfig
from autogaze_mllm.app.examples import Example, write_examples
from autogaze_mllm.app.lines import one_line
from autogaze_mllm.app.looker import SLIDERS, Looker, Reply
from autogaze_mllm.cli import main
from autogaze_mllm.common.compute.cancelling import Cancellation, CancelledCall, cancellable
from autogaze_mllm.gaze.pictures.overlay import Overlay
from autogaze_mllm.gaze.pipeline import GazedChunk
from autogaze_mllm.gaze.selectors.base import Selector
from autogaze_mllm.video.reader import VideoReader
from autogaze_mllm.video.synthetic import moving_scene
from autogaze_mllm.video.writer import write_video

from ..helpers.families.models import FAMILIES, build
from ..helpers.tiny_models import make


def nobody(done: int, total: int) -> None:
    """Nobody is told how far it is."""


def last(replies) -> Reply:
    return list(replies)[-1]


@pytest.fixture(scope="module")
def examples(tmp_path_factory) -> list[Example]:
    return write_examples(tmp_path_factory.mktemp("examples"))


@pytest.fixture
def looker(tmp_path) -> Looker:
    """With the bundled model."""
    (tmp_path / "made").mkdir()
    return Looker(am.load(), tmp_path / "made", AppConfig())


@pytest.fixture
def tiny(tmp_path) -> Looker:
    """With a model that answers anything, at once."""
    _, model = make("llava")
    (tmp_path / "made").mkdir()
    return Looker(model, tmp_path / "made", AppConfig(max_new_tokens=4))


def test_numbers_videos_and_chart_tell_of_the_same_patches(looker, tmp_path):
    told = []
    wide = tmp_path / "wide.mp4"
    write_video(wide, moving_scene(448, 224, 12), fps=6)
    moved = {"frames": 10, "max_tiles": 2}
    seen = looker.look(str(wide), "pixel-diff", moved, lambda *far: told.append(far))
    facts = seen.facts
    assert facts["frames"] == 10 == len(seen.counts.kept) and facts["tiles"] == [2, 1]
    assert sum(map(sum, seen.counts.kept)) == facts["patches"] == len(seen.gazed)
    assert facts["patches_total"] == 10 * 2 * 265
    assert facts["reduction"] == facts["patches_total"] / facts["patches"]
    assert told[0] == (0, 10) and told[-1] == (10, 10) and told == sorted(set(told))
    assert facts["seconds_wall"] > 0 and {"decode", "gaze"} <= facts["seconds"].keys()
    json.dumps(facts)
    clips = {name: VideoReader(path) for name, path in seen.clips.items()}
    assert {len(reader) for reader in clips.values()} == {10}
    frames, kept, rebuilt = (next(clips[name].read()).frames.astype(float) for name in ("frames", "kept", "rebuilt"))
    # Something is dimmed in the second, and the third is near the first.
    assert kept.mean() < 0.9 * frames.mean() and abs(rebuilt - frames).mean() < 15


def test_the_command_keeps_the_same_patches(looker, clip, monkeypatch, capsys):
    seen = looker.look(str(clip), "random", {"frames": 6, "max_tiles": 2, "ratio": 0.05}, nobody)
    command = shlex.split(seen.facts["command"])
    assert command[:4] == ["autogaze-mllm", "ask", clip.name, "QUESTION"]
    monkeypatch.chdir(clip.parent)
    assert main([*command[1:], "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert {name: found[name] for name in ("patches", "frames", "visual_tokens")} == {
        name: seen.facts[name] for name in ("patches", "frames", "visual_tokens")
    }
    assert "--gaze bundled" in looker.look(str(clip), "bundled", {"frames": 2}, nobody).facts["command"]
    assert found["from_cache"] == 1  # what the page saw is there for everybody


def test_answers_are_those_of_the_model(tiny, clip):
    question = "What is it?"
    seen = tiny.look(str(clip), tiny.selectors[0], {"frames": 5}, nobody)
    with_gaze, dense = last(tiny.ask(seen, question)), last(tiny.ask_dense(str(clip), seen, question))
    settings = tiny.model.settings
    assert settings.frames == 8  # as they were
    tiny.model.settings = settings.changed(frames=5)
    expected = tiny.model.ask(str(clip), question, max_new_tokens=4)
    with tiny.model.disabled():
        expected_dense = tiny.model.ask(str(clip), question, max_new_tokens=4)
    assert (with_gaze.text, dense.text) == (expected, expected_dense)
    assert dense.stats["visual_tokens"] == seen.facts["dense_tokens"] == expected_dense.stats["visual_tokens"]
    assert seen.media is not None and seen.media.tokens == seen.facts["visual_tokens"]
    assert {"tower", "projector", "llm"} <= with_gaze.stats["seconds"].keys()
    assert last(tiny.ask(seen, "Another?")).stats["seconds"].keys() == {"llm"}  # the tower has seen it


@pytest.mark.slow
def test_the_example_is_read_with_gaze(looker, examples):
    signs = examples[0]
    seen = looker.look(str(signs.path), looker.selectors[0], {}, nobody)
    assert [last(looker.ask(seen, question)).text for question in signs.questions[:3]] == ["F5", "L6", "C4"]


def test_a_dense_model_that_does_not_fit_says_so(tiny, clip, monkeypatch):
    seen = tiny.look(str(clip), tiny.selectors[0], {}, nobody)
    monkeypatch.setattr(tiny.model.family.config.text_config, "max_position_embeddings", 20)
    reply = last(tiny.ask_dense(str(clip), seen, "What?"))
    assert not reply.text and f"would read {seen.facts['dense_tokens'] + 4:,} tokens" in reply.refusal


def test_what_was_seen_is_kept_and_the_oldest_goes(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(looking, "KEPT", 2)
    paths = [tmp_path / f"{number}.mp4" for number in range(looking.KEPT + 1)]
    for number, path in enumerate(paths):
        write_video(path, moving_scene(64, 64, 3, seed=number), fps=4)
    first = tiny.look(str(paths[0]), tiny.selectors[0], {}, nobody)
    assert tiny.look(str(paths[0]), tiny.selectors[0], {}, nobody) is first
    for path in paths[1:]:
        tiny.look(str(path), tiny.selectors[0], {}, nobody)
    assert len(list(tiny.folder.iterdir())) == looking.KEPT and not first.clips["kept"].exists()
    again = tiny.look(str(paths[0]), tiny.selectors[0], {}, nobody)
    assert again is not first and again.key == first.key and again.clips["kept"].exists()


def test_sliders_stand_where_the_model_does_and_only_what_is_moved_changes(looker):
    own = looker.model.settings
    usual = {name: looker.usual(name, "pixel-diff") for name in SLIDERS}
    assert usual == {"frames": 16, "max_tiles": 144, "ratio": 0.147, "loss": 0.05}
    assert looker.settings("pixel-diff", usual) == own
    assert looker.settings("pixel-diff", {**usual, "frames": 4}) == own.changed(frames=4)
    # The loss of another selector is in another unit, so it stands at that one's own.
    assert looker.usual("loss", "bundled") == 0.2 and looker.usual("loss", "random") == 0
    assert looker.settings("bundled", {**usual, "loss": 0.2}) == own
    assert looker.settings("bundled", usual).loss == 0.05
    looker.model.settings = own.changed(ratio=(0.5, *[0.25] * 15), frames=300, fps=2)
    assert looker.usual("ratio", "pixel-diff") == 0.266 and looker.range_of("frames") == (1, 300, 1)
    assert looker.settings("pixel-diff", {"ratio": 0.266}).ratio == (0.5, *[0.25] * 15)
    assert looker.settings("pixel-diff", {"frames": 30}).fps is None


@pytest.mark.parametrize(
    ("name", "value", "line"),
    [
        ("frames", 257, r"frames must lie in \[1, 256\] here, got 257"),
        ("frames", True, "frames must lie in"),
        ("ratio", 0.0, "ratio must lie in"),
        ("loss", float("nan"), "loss must lie in"),
    ],
)
def test_values_beyond_a_slider_are_refused(looker, clip, name, value, line):
    with pytest.raises(am.InputError, match=line):
        looker.look(str(clip), "pixel-diff", {name: value}, nobody)
    with pytest.raises(am.InputError, match=r"selector '\.\./x' is not one of pixel-diff"):
        looker.look(str(clip), "../x", {}, nobody)


def test_more_frames_a_second_than_the_page_takes_on_are_refused(tmp_path, clip):
    looker = Looker(make("llava", fps=10)[1], tmp_path, AppConfig(most_frames=9))
    with pytest.raises(am.InputError, match="20 frames would be looked at, here at most 9: lower fps"):
        looker.look(str(clip), looker.selectors[0], {}, nobody)
    assert not list(tmp_path.iterdir())  # nothing is left of it


def test_tokens_that_go_behind_the_tower_are_counted(tmp_path, clip):
    looker = Looker(make("llava", gaze="post-tower", ratio=0.25)[1], tmp_path, AppConfig(max_new_tokens=2))
    assert looker.selectors[0] == "post-tower"
    seen = looker.look(str(clip), "post-tower", {"frames": 4}, nobody)
    assert (seen.facts["patches"], seen.facts["visual_tokens"]) == (4 * 196, 196)  # a quarter of the finest scale
    assert last(looker.ask(seen, "What?")).stats["visual_tokens"] == seen.facts["visual_tokens"]


def test_frames_that_are_kept_together_are_drawn_together(tmp_path, clip):
    """Qwen's tower looks at two frames at once: a bar of the chart is two frames of the videos."""
    base, preprocessing = build("qwen2_vl")
    model = am.wrap(base, "pixel-diff", processor=preprocessing, frames=7, ratio=0.2, cache=False)
    looker = Looker(model, tmp_path, AppConfig(max_new_tokens=2))
    seen = looker.look(str(clip), "pixel-diff", {}, nobody)
    assert len(seen.counts.kept) == 4 and sum(map(sum, seen.counts.kept)) == seen.facts["patches"]
    assert len(VideoReader(seen.clips["kept"])) == 7
    assert last(looker.ask(seen, "What?")).stats["visual_tokens"] == seen.facts["visual_tokens"]


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_is_looked_at_and_asked_in_both_ways(family, tmp_path, clip):
    base, preprocessing = build(family)
    model = am.wrap(base, "pixel-diff", processor=preprocessing, frames=6, ratio=0.3, cache=False)
    looker = Looker(model, tmp_path, AppConfig(max_new_tokens=2))
    seen = looker.look(str(clip), "pixel-diff", {}, nobody)
    assert last(looker.ask(seen, "What?")).stats["visual_tokens"] == seen.facts["visual_tokens"]
    dense = last(looker.ask_dense(str(clip), seen, "What?"))
    assert dense.stats["visual_tokens"] == seen.facts["dense_tokens"]


def test_an_overlay_shows_what_any_frame_of_a_tubelet_keeps():
    grid = am.PatchGrid.of("32+64", 16)
    pictures = torch.full((3, 3, 64, 64), 200, dtype=torch.uint8)
    masks = [torch.zeros(1, 3, count) for count in grid.counts]
    masks[1][0, 1, 5] = masks[1][0, 2, 7] = 1
    shown = []
    Overlay(grid, show=shown.append, tubelet=2)(GazedChunk(pictures, masks, (1, 1), pictures, grid))
    assert [panels.masks[1][0].nonzero()[0].tolist() for panels in shown] == [[5], [5], [7]]
    assert all((panels.kept == 200).any() and (panels.kept == 70).any() for panels in shown)  # bright, and dimmed


def test_a_line_tells_no_paths_and_no_more_than_is_known(tmp_path, caplog):
    video = tmp_path / "secret" / "clip.mp4"
    assert one_line(am.InputError(f"{video}: no such file"), str(video)) == "clip.mp4: no such file"
    assert "too little memory" in one_line(MemoryError(), str(video))
    assert one_line(CancelledCall(), str(video)) == "stopped"
    line = one_line(KeyError("x"), str(video))
    assert line == "KeyError: a fault of autogaze-mllm, not of your video; the terminal says more"
    assert "please report it" in caplog.text and "KeyError: 'x'" in caplog.text


def test_a_job_ends_when_it_is_stopped_and_leaves_nothing(looker, tmp_path):
    path, wanted = tmp_path / "wide.mp4", Cancellation()
    write_video(path, moving_scene(1344, 672, 4), fps=4)
    with cancellable(wanted), pytest.raises(CancelledCall):
        looker.look(str(path), "pixel-diff", {}, lambda done, total: wanted.cancel() if done else None)
    assert not list(looker.folder.iterdir()) and not looker.busy.locked()
    assert looker.look(str(path), "pixel-diff", {}, nobody).facts["frames"] == 4


class Broken(Selector):
    name = "broken"

    def select(self, frames, grid, ratio, loss):
        raise RuntimeError("no")


def test_a_fault_in_the_middle_leaves_nothing(tmp_path, clip):
    looker = Looker(make("llava", gaze=Broken())[1], tmp_path, AppConfig())
    with pytest.raises(RuntimeError):
        looker.look(str(clip), "broken", {}, nobody)
    assert not list(Path(tmp_path).iterdir()) and not looker.busy.locked()

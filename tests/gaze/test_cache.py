"""The cache: what it saves, what it notices, and that nothing half-written is ever trusted."""

from __future__ import annotations

import json
import multiprocessing
import os
import time
from multiprocessing.synchronize import Event
from pathlib import Path

import pytest
import torch

import autogaze_mllm as am
from autogaze_mllm.cli import main
from autogaze_mllm.gaze.cache import VideoCache
from autogaze_mllm.gaze.grid import PatchGrid
from autogaze_mllm.gaze.token_map import TokenMap
from autogaze_mllm.mllm.tiny import tiny_model
from autogaze_mllm.video.synthetic import moving_scene
from autogaze_mllm.video.writer import write_video

NOTHING = torch.empty(0, dtype=torch.long)
MAP = TokenMap([], [], NOTHING, NOTHING, PatchGrid.of("32+64", 16))


def make(folder, gaze="pixel-diff", seed=0, **settings):
    base, processor = tiny_model("llava_onevision", image_size=64, seed=seed)
    return am.wrap(base, gaze, processor=processor, cache=folder, **{"frames": 6, **settings})


def test_a_second_question_decodes_gazes_and_encodes_nothing(clip, tmp_path):
    model = make(tmp_path)
    first = model.ask(clip, "what?", max_new_tokens=4)
    costs = model.stats
    assert {"decode", "gaze", "tower"} <= costs["seconds"].keys() and not costs["from_cache"]
    assert model.ask(clip, "what?", max_new_tokens=4) == first
    assert model.stats["from_cache"] == 1
    assert set(model.stats["seconds"]) == {"cache", "llm"}
    assert {k: model.stats[k] for k in ("patches", "patches_total", "visual_tokens", "frames", "dense_tokens")} == {
        k: costs[k] for k in ("patches", "patches_total", "visual_tokens", "frames", "dense_tokens")
    }
    again = make(tmp_path)  # another process, another day
    assert again.ask(clip, "what?", max_new_tokens=4) == first and again.stats["from_cache"] == 1


def test_whatever_decides_the_result_makes_a_miss(clip, tmp_path):
    make(tmp_path).ask(clip, "what?", max_new_tokens=1)
    for other in (
        make(tmp_path, frames=5),
        make(tmp_path, ratio=0.2),
        make(tmp_path, "random"),
        make(tmp_path, seed=1),
        make(tmp_path, am.RandomSelector(3)),
    ):
        other.ask(clip, "what?", max_new_tokens=1)
        assert "tower" in other.stats["seconds"]
    changed = make(tmp_path)
    with torch.no_grad():
        changed.base.model.multi_modal_projector.linear_1.weight.mul_(1.5)
    changed.ask(clip, "what?", max_new_tokens=1)
    assert "gaze" not in changed.stats["seconds"] and "tower" in changed.stats["seconds"]  # same patches, other tokens


def test_the_file_is_known_by_its_content(tmp_path):
    video, copy = tmp_path / "a.mp4", tmp_path / "b.mp4"
    write_video(video, moving_scene(96, 64, 8), fps=8)
    copy.write_bytes(video.read_bytes())
    model = make(tmp_path / "cache")
    model.ask(video, "what?", max_new_tokens=1)
    model.ask(copy, "what?", max_new_tokens=1)
    assert model.stats["from_cache"] == 1
    write_video(video, moving_scene(96, 64, 8, seed=5), fps=8)
    model.ask(video, "what?", max_new_tokens=1)
    assert not model.stats["from_cache"]


def test_prepare_for_training_takes_patches_but_no_finished_tokens(clip, tmp_path):
    model = make(tmp_path)
    model.ask(clip, "what?", max_new_tokens=1)
    inputs = model.prepare("<video>what?", [clip])
    assert model.stats["from_cache"] == 1 and isinstance(inputs["media"][0][0].content, am.GazedVideo)
    model(**inputs, labels=inputs["input_ids"]).loss.backward()
    assert model.base.model.multi_modal_projector.linear_1.weight.grad.abs().sum() > 0


def test_damaged_entries_are_dropped_and_made_again(clip, tmp_path):
    model = make(tmp_path)
    answer = model.ask(clip, "what?", max_new_tokens=4)
    for entry in model.cache.entries():
        entry.path.write_bytes(entry.path.read_bytes()[:-100])
    assert model.ask(clip, "what?", max_new_tokens=4) == answer
    assert not model.stats["from_cache"]
    model.ask(clip, "what?", max_new_tokens=4)
    assert model.stats["from_cache"] == 1


def test_the_size_limit_drops_what_was_used_longest_ago(tmp_path):
    cache = VideoCache(tmp_path, limit=4500)
    for number in range(4):
        cache.put_tokens(f"key{number}", torch.zeros(200), {}, MAP)
        os.utime(cache.entries()[0].path, (number, number))
    assert cache.get_tokens("key0") is None
    cache.get_tokens("key2")  # used again, so now the latest
    cache.put_tokens("key4", torch.zeros(200), {}, MAP)
    cache.put_tokens("key5", torch.zeros(200), {}, MAP)
    kept = {entry.key for entry in cache.entries()}
    assert "key2" in kept and "key3" not in kept and sum(e.bytes for e in cache.entries()) <= 4500


def test_stale_half_written_files_are_swept(tmp_path):
    cache = VideoCache(tmp_path)
    half = tmp_path / ".key.gazed.safetensors.abc"
    half.write_bytes(b"half")
    cache.put_tokens("key", torch.zeros(2), {}, MAP)
    assert half.exists()  # it may belong to a running process
    os.utime(half, (time.time() - 2 * 86400,) * 2)
    cache.put_tokens("key", torch.zeros(2), {}, MAP)
    assert not half.exists()


def write_for_ever(folder: Path, ready: Event) -> None:
    cache = VideoCache(folder)
    ready.set()
    while True:
        for key in ("one", "two"):
            cache.put_tokens(key, torch.full((500_000,), 7.0), {"n": 1}, MAP)


def test_two_processes_fill_it_at_once_and_one_is_killed(tmp_path):
    """Readers see a whole entry or none, whatever happens to those who write."""
    fork = multiprocessing.get_context("fork")
    ready = [fork.Event() for _ in range(2)]
    writers = [fork.Process(target=write_for_ever, args=(tmp_path, event)) for event in ready]
    try:
        for writer in writers:
            writer.start()
        assert all(event.wait(60) for event in ready)
        cache, hits = VideoCache(tmp_path), 0
        end = time.monotonic() + 2
        while time.monotonic() < end:
            for key in ("one", "two"):
                found = cache.get_tokens(key)
                if found is not None:
                    assert bool((found[0] == 7).all()) and len(found[0]) == 500_000
                    hits += 1
            if hits > 10 and writers[0].is_alive():
                writers[0].kill()
        assert hits > 10
    finally:
        for writer in writers:
            writer.kill()
            writer.join()
    assert {entry.key for entry in cache.entries()} == {"one", "two"}
    cache.clear()
    assert not list(tmp_path.iterdir())


def test_cache_on_the_command_line(clip, capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    ask = ["ask", str(clip), "what?", "--frames", "5", "--max-new-tokens", "2", "--json"]
    found = []
    for extra in ([], [], ["--no-cache"]):
        assert main([*ask, *extra]) == 0
        found.append(json.loads(capsys.readouterr().out))
    assert [bool(f["from_cache"]) for f in found] == [False, True, False]
    assert found[0]["reply"] == found[1]["reply"] == found[2]["reply"]
    assert main(["cache", "ls", "--json"]) == 0
    assert {entry["kind"] for entry in json.loads(capsys.readouterr().out)["entries"]} == {"gazed", "tokens"}
    assert main(["cache", "ls"]) == 0 and "2 entries" in capsys.readouterr().out
    assert main(["cache", "clear"]) == 0 and "freed" in capsys.readouterr().out
    assert main(["cache", "ls"]) == 0 and "0 entries" in capsys.readouterr().out


def test_a_selector_of_ones_own_is_not_cached(clip, tmp_path):
    class Mine(am.AllSelector):
        name = "all"

    model = make(tmp_path, Mine())
    for _ in range(2):
        model.ask(clip, "what?", max_new_tokens=1)
        assert "gaze" in model.stats["seconds"]
    assert not model.cache.entries()


def test_an_unusable_cache_folder_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(am.InputError, match="cannot write here"):
        make(tmp_path / "file" / "cache")

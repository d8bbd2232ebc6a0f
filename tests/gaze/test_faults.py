"""Gazed files and entries of the cache that hold what cannot be: one line, or made anew, and never another answer."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

import autogaze_mllm as am
from autogaze_mllm.common.storage.summed import read_summed, write_summed
from autogaze_mllm.gaze.cache import INDEX_FILE, VideoCache
from autogaze_mllm.gaze.gazed_video import TENSORS, GazedVideo
from autogaze_mllm.gaze.settings import VideoSettings

from ..helpers.tiny_models import make


@pytest.fixture(scope="module")
def saved(clip: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("gazed") / "clip.gazed.safetensors"
    am.gaze_video(clip, am.PixelDiffSelector(), VideoSettings(frames=4)).save(path)
    return path


def rewritten(saved: Path, path: Path, tensors: Callable[[dict], Any], facts: Callable[[dict], Any]) -> Path:
    """The file with other contents, and no sum of its own: a format that others may write, too."""
    with safe_open(saved, framework="pt") as stored:
        values, told = {name: stored.get_tensor(name) for name in TENSORS}, json.loads(stored.metadata()["gazed_video"])
    tensors(values)
    facts(told)
    save_file(values, path, metadata={"gazed_video": json.dumps(told)})
    return path


def same(_: object) -> None:
    return None


def put(name: str, value: Any) -> Callable[[dict], Any]:
    return lambda found: found.__setitem__(name, value(found[name]) if callable(value) else value)


TENSOR_FAULTS = {
    "a position beyond the grid": put("positions", lambda t: t + 10**6),
    "a negative position": put("positions", lambda t: t - 1),
    "positions as floats": put("positions", lambda t: t.float()),
    "counts below 0": put("frame_counts", lambda t: torch.cat([t[:1] + t[1:2] + 5, -torch.full_like(t[:1], 5), t[2:]])),
    "counts of more than the grid": lambda found: found.update(
        positions=torch.zeros(300, dtype=torch.int64),
        patches=torch.zeros(300, found["patches"].shape[1]),
        frame_counts=torch.tensor([300, 0, 0, 0]),
    ),
    "patches that are not finite": put("patches", lambda t: t.index_fill(0, torch.tensor([0]), float("nan"))),
    "patches of bytes": put("patches", lambda t: t.byte()),
    "patches of another size": put("patches", lambda t: t[:, :-1].contiguous()),
    "patches in another shape": put("patches", lambda t: t[None].clone()),
    "times that are not finite": put("timestamps", lambda t: t * float("inf")),
    "times as text": put("timestamps", lambda t: t.long()),
    "pictures below 0": put("pictures", lambda t: t - 7),
    "a clip of no frames": put("clip_frames", lambda t: torch.cat([t, t[:1] * 0])),
    "no tensors": lambda found: found.pop("positions"),
}
FACT_FAULTS = {
    "no grid": lambda facts: facts.pop("grid"),
    "a grid of text": put("grid", "56+112"),
    "a grid of nothing": put("grid", {"scales": [], "patch": 14}),
    "a patch of text": put("grid", {"scales": [[32, 32]], "patch": "14"}),
    "a patch of nothing": put("grid", {"scales": [[32, 32]], "patch": 0}),
    "another grid": put("grid", {"scales": [[16, 16]], "patch": 16}),
    "no tiles": put("tiles", [0, 1]),
    "tiles as text": put("tiles", "1x1"),
    "more thumbnails than clips": put("thumbnails", 10**9),
    "thumbnails below 0": put("thumbnails", -1),
    "settings of a list": put("settings", [1]),
    "stats of text": put("stats", "fast"),
    "seconds as text": put("stats", {"seconds": {"gaze": "fast"}}),
    "another format": put("format", 7),
}


@pytest.mark.parametrize("what", [*TENSOR_FAULTS, *FACT_FAULTS])
def test_a_gazed_file_with_what_cannot_be_is_one_line(saved: Path, tmp_path: Path, what: str) -> None:
    path = rewritten(saved, tmp_path / "odd", TENSOR_FAULTS.get(what, same), FACT_FAULTS.get(what, same))
    with pytest.raises(am.InputError) as error:
        GazedVideo.load(path)
    assert str(path) in str(error.value) or "gazed video" in str(error.value)
    assert "\n" not in str(error.value) and len(str(error.value)) < 400


def test_a_gazed_file_that_others_wrote_needs_no_sum(saved: Path, tmp_path: Path) -> None:
    first, second = GazedVideo.load(saved), GazedVideo.load(rewritten(saved, tmp_path / "other", same, same))
    assert torch.equal(first.patches, second.patches) and first.stats == second.stats


@pytest.mark.parametrize("metadata", [None, {"gazed_video": "[" * 10**5}, {"gazed_video": "[1]"}, {"gazed_video": "{"}])
def test_metadata_that_is_no_json_is_one_line(tmp_path: Path, metadata: dict[str, str] | None) -> None:
    save_file({name: torch.zeros(1) for name in TENSORS}, tmp_path / "x", metadata=metadata)
    with pytest.raises(am.InputError, match=r"gazed video|json"):
        GazedVideo.load(tmp_path / "x")


def test_a_flipped_bit_never_changes_an_answer(clip: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Anywhere in an entry: it is made anew, with one warning, and the answer is that of an empty cache."""
    _, model = make("llava", frames=3, cache=tmp_path)
    answer = model.ask(clip, "What?", max_new_tokens=4)
    draw = random.Random(3)
    for entry in model.cache.entries():
        whole = entry.path.read_bytes()
        for place in (9, *(draw.randrange(len(whole)) for _ in range(3))):
            flipped = bytearray(whole)
            flipped[place] ^= 1 << draw.randrange(8)
            for other in model.cache.entries():
                if other.kind == "tokens":
                    other.path.unlink()  # so that a gazed entry is looked at, too
            entry.path.write_bytes(flipped)
            caplog.clear()
            assert model.ask(clip, "What?", max_new_tokens=4) == answer
            told = [record.getMessage() for record in caplog.records if "made anew" in record.getMessage()]
            assert len(told) == 1 and entry.path.name in told[0]
            assert model.ask(clip, "What?", max_new_tokens=4) == answer and model.stats["from_cache"] == 1


def test_what_is_no_entry_does_not_stop_a_question(clip: Path, tmp_path: Path) -> None:
    _, model = make("llava", frames=3, cache=tmp_path)
    answer = model.ask(clip, "What?", max_new_tokens=3)
    entries = model.cache.entries()
    for entry in entries:
        entry.path.unlink()
        entry.path.mkdir()  # cannot even be removed as a file
    assert model.ask(clip, "What?", max_new_tokens=3) == answer
    assert all(entry.path.is_dir() for entry in entries)


def test_no_home_is_no_reason_not_to_answer(clip: Path, monkeypatch: pytest.MonkeyPatch, caplog) -> None:
    """As in a container whose user the system does not know."""
    import pwd

    def unknown(_: int) -> None:
        raise KeyError("no such user")

    for name in ("HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(pwd, "getpwuid", unknown)
    monkeypatch.setattr(os, "getuid", lambda: 54321)
    with pytest.raises(am.InputError, match="set HOME, or XDG_CACHE_HOME"):
        VideoCache()
    _, model = make("llava", frames=2, cache=True)
    assert model.cache is None and isinstance(model.ask(clip, "What?", max_new_tokens=2), str)
    assert "going without a cache" in caplog.text


def test_an_index_is_read_where_nothing_can_be_kept(clip: Path, tmp_path: Path, monkeypatch, caplog) -> None:
    """As by a service without a home, to which somebody else's index is mounted."""
    base, first = make("llava", frames=2, cache=tmp_path / "index")
    answer = first.ask(clip, "What?", max_new_tokens=3)
    (tmp_path / "index" / INDEX_FILE).write_text("{}")
    first.unwrap()
    (tmp_path / "home").write_text("no folder")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    cache = VideoCache(index=tmp_path / "index")
    assert "what is not in the index is not kept" in caplog.text and cache.entries() == []
    caplog.clear()
    model = am.wrap(base, "pixel-diff", processor=first.preprocessing, frames=2, cache=cache)
    assert model.ask(clip, "What?", max_new_tokens=3) == answer and model.stats["from_cache"] == 1
    model.settings = VideoSettings(frames=3)
    assert isinstance(model.ask(clip, "What?", max_new_tokens=3), str) and not model.stats.get("from_cache")
    assert not caplog.text and cache.clear() == 0


@pytest.mark.skipif(os.getuid() == 0, reason="root may read everything")
def test_files_and_folders_that_may_not_be_read_are_said_to_be_so(saved: Path, tmp_path: Path) -> None:
    locked = tmp_path / "locked"
    locked.mkdir()
    (locked / "gazed.safetensors").write_bytes(saved.read_bytes())
    (locked / "gazed.safetensors").chmod(0)
    with pytest.raises(am.InputError, match=r"cannot be read \(Permission denied\)"):
        GazedVideo.load(locked / "gazed.safetensors")
    locked.chmod(0)
    try:
        for action in (lambda: VideoCache(index=locked), lambda: am.load(locked), lambda: am.wrap(locked)):
            with pytest.raises(am.InputError, match="Permission denied"):
                action()
    finally:
        locked.chmod(0o700)


def test_a_sum_is_that_of_names_types_shapes_values_and_facts(tmp_path: Path) -> None:
    path, tensors = (
        tmp_path / "x",
        {"a": torch.arange(4), "b": torch.ones(2, 2, dtype=torch.bfloat16), "c": torch.zeros(0)},
    )
    write_summed(path, tensors, "facts", {"n": 1})
    found, facts = read_summed(path, tuple(tensors), "facts", "it")
    assert all(torch.equal(found[name], value) for name, value in tensors.items()) and facts.get("n", int) == 1
    with safe_open(path, framework="pt") as stored:
        told = stored.metadata()
    for others, text in (
        ({**tensors, "a": tensors["a"].view(2, 2)}, told["facts"]),
        ({**tensors, "b": tensors["b"].float()}, told["facts"]),
        ({**tensors, "a": tensors["a"].flip(0)}, told["facts"]),
        (tensors, '{"n": 2}'),
    ):
        save_file({name: value.contiguous() for name, value in others.items()}, path, metadata={**told, "facts": text})
        with pytest.raises(am.InputError, match="checksum"):
            read_summed(path, tuple(tensors), "facts", "it")

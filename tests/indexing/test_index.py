"""`index` as a user meets it: what it leaves, what it leaves alone, what it refuses, and who finds the results."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

import autogaze_mllm as am
from autogaze_mllm.cli import main
from autogaze_mllm.gaze.cache import VideoCache
from autogaze_mllm.indexing.job import IndexJob, placed

from ..helpers.eval_runs import refused
from ..helpers.index_runs import DAMAGED, half_files, index, make_mixed, make_videos, records, stored, tiny_base

GAZE = ["--gaze", "pixel-diff", "--frames", "4", "--ratio", "0.4"]


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return tiny_base(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def videos(tmp_path_factory) -> Path:
    return make_mixed(tmp_path_factory.mktemp("videos"))


@pytest.fixture(scope="module")
def encoded(videos, model, tmp_path_factory) -> tuple[Path, int]:
    """An index with visual tokens, made by two processes, and the exit code."""
    out = tmp_path_factory.mktemp("index") / "new"
    return out, main(["index", str(videos), "--out", str(out), "--encode", str(model), "--workers", "2", *GAZE])


def test_every_video_has_its_line_and_its_results(encoded, videos, model):
    out, code = encoded
    assert code == 1  # two of them are damaged
    found = records(out)
    assert list(found) == [
        "0.mp4",
        "1.mp4",
        "cut.mp4",
        "deep/er/näme 'x'.MP4",
        "deep/notes.mp4",
        "deep/same.mp4",
        "deep/\udcff.mp4",
    ]
    assert [name for name, line in found.items() if line["error"]] == DAMAGED
    assert found["deep/notes.mp4"]["gazed"] is None and "not a readable video" in found["deep/notes.mp4"]["error"]
    assert found["deep/same.mp4"]["gazed"] == found["1.mp4"]["gazed"]
    assert len(list(out.glob("*.gazed.safetensors"))) == len(list(out.glob("*.tokens.safetensors"))) == 3
    assert not half_files(out)
    line = found["1.mp4"]
    wrapped = am.wrap(model, "pixel-diff", frames=4, ratio=0.4, cache=False)
    alone = wrapped.gaze_video(videos / "1.mp4")
    gazed = am.GazedVideo.load(out / line["gazed"])
    assert gazed.patches.equal(alone.patches) and gazed.positions.equal(alone.positions)
    assert line["patches"] == len(alone) and line["patches_total"] == alone.total_patches and line["frames"] == 4
    assert line["visual_tokens"] == len(alone) and line["settings"]["ratio"] == 0.4
    assert {"decode", "gaze", "tower", "wall"} <= line["seconds"].keys() and "seconds" not in gazed.stats


def test_the_same_bytes_however_many_workers_and_launched_processes(encoded, videos, model, tmp_path, monkeypatch):
    command = ["index", str(videos), "--encode", str(model), "--json", *GAZE]
    assert main([*command, "--out", str(tmp_path / "one"), "--workers", "1"]) == 1
    for rank in (1, 0):  # as a launcher would tell two processes, here one after the other
        for name, value in (("RANK", rank), ("WORLD_SIZE", 2), ("LOCAL_RANK", rank), ("LOCAL_WORLD_SIZE", 2)):
            monkeypatch.setenv(name, str(value))
        assert main([*command, "--out", str(tmp_path / "two")]) == (0 if rank else 1)  # both damaged ones are one's
        parts = [json.loads(line)["path"] for line in (tmp_path / "two" / "index.jsonl").read_text().splitlines()]
        assert len(parts) == (3 if rank else 7)
    assert stored(tmp_path / "one") == stored(tmp_path / "two") == stored(encoded[0])


def test_ask_finds_what_was_indexed(encoded, videos, model, tmp_path, capsys):
    """In another place, by another name, with gaze and settings of the index; and nothing is written into the index."""
    out, moved = encoded[0], tmp_path / "moved.mp4"
    shutil.copy(videos / "0.mp4", moved)
    before = sorted(path.name for path in out.iterdir())
    command = [
        "ask",
        str(moved),
        "What?",
        "--model",
        str(model),
        "--index",
        str(out),
        "--max-new-tokens",
        "2",
        "--json",
    ]
    assert main(command) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["from_cache"] == 1 and set(told["seconds"]) == {"cache", "llm"} and told["frames"] == 4
    assert main([*command, "--frames", "3"]) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert "made for" in line and "settings.frames: 4 -> 3" in line
    assert main([*command, "--gaze", "random"]) == 2
    assert "selector" in capsys.readouterr().err.splitlines()[-1]
    assert "no index here" in refused(capsys, [*command, "--index", str(tmp_path)])
    wrapped = am.wrap(model, "pixel-diff", frames=4, ratio=0.4, cache=out)
    assert wrapped.encode_video(moved).tokens and wrapped.stats["from_cache"] == 1
    wrapped = am.wrap(model, "pixel-diff", frames=3, cache=out)  # what the index lacks goes to the cache
    wrapped.encode_video(moved)
    assert "gaze" in wrapped.stats["seconds"]
    assert sorted(path.name for path in out.iterdir()) == before


def test_a_cache_does_not_take_an_index_for_its_own_folder(encoded):
    with pytest.raises(am.InputError, match="is an index"):
        VideoCache(encoded[0])


def test_a_damaged_entry_is_passed_over_and_not_removed(encoded, videos, model, tmp_path, caplog):
    out = shutil.copytree(encoded[0], tmp_path / "index")
    for path in out.glob("*.safetensors"):
        content = bytearray(path.read_bytes())
        content[-3] ^= 1
        path.write_bytes(content)
    wrapped = am.wrap(model, "pixel-diff", frames=4, ratio=0.4)
    wrapped.cache = VideoCache(tmp_path / "cache", index=out)
    assert "gaze" in wrapped.gaze_video(videos / "0.mp4").stats["seconds"]
    assert "passed over: remove it" in caplog.text
    assert len(list(out.glob("*.safetensors"))) == len(list(encoded[0].glob("*.safetensors")))
    assert wrapped.gaze_video(videos / "0.mp4").stats["from_cache"] == 1  # from the cache, where it went


def test_a_run_goes_on_with_what_is_not_done(model, tmp_path, capsys):
    videos, out = make_videos(tmp_path / "videos", 3), tmp_path / "index"
    more = ["--model", model, "--workers", "1", *GAZE]
    assert index(capsys, videos, out, *more)["tried"] == 3
    first = stored(out)
    # As if it had been killed: lines that no one put together, the last one torn, and a try that never ended.
    lines = (out / "index.jsonl").read_bytes().splitlines(keepends=True)
    (out / "index.jsonl").unlink()
    (out / "index-00000.jsonl").write_bytes(lines[0] + lines[1] + lines[2][:40])
    assert index(capsys, videos, out, *more)["tried"] == 1
    assert stored(out) == first
    assert main(["index", "--config", str(out / "config.yaml"), "--json"]) == 0  # what it leaves to repeat it
    told = json.loads(capsys.readouterr().out)
    assert told["tried"] == 0 and told["videos"] == 3 and told["videos_per_hour"] is None
    # One that is new, one that is another now, one whose result is gone.
    before = records(out)
    shutil.copy(make_videos(tmp_path / "others", 5) / "3.mp4", videos / "new.mp4")
    (videos / "1.mp4").write_bytes((tmp_path / "others" / "4.mp4").read_bytes())
    (out / before["2.mp4"]["gazed"]).unlink()
    assert index(capsys, videos, out, *more)["tried"] == 3
    after = records(out)
    assert after["0.mp4"] == before["0.mp4"] and list(after) == ["0.mp4", "1.mp4", "2.mp4", "new.mp4"]
    assert (
        after["1.mp4"]["content"] != before["1.mp4"]["content"] and after["2.mp4"]["gazed"] == before["2.mp4"]["gazed"]
    )


def test_failures_are_tried_again_when_asked_for_or_when_the_file_is_another(model, tmp_path, capsys):
    videos, out = make_videos(tmp_path / "videos", 1), tmp_path / "index"
    whole = (videos / "0.mp4").read_bytes()
    (videos / "0.mp4").write_bytes(b"nothing")
    more = ["--model", model, "--workers", "1", *GAZE]
    assert index(capsys, videos, out, *more, code=1)["tried"] == 1
    again = index(capsys, videos, out, *more, code=1)
    assert again["tried"] == 0 and "not a readable video" in again["failed"][0]["error"]
    assert index(capsys, videos, out, *more, "--retry-failed", code=1)["tried"] == 1
    (videos / "0.mp4").write_bytes(whole)
    assert index(capsys, videos, out, *more)["failed"] == []


def test_an_index_is_only_gone_on_with_by_the_same_settings(encoded, videos, model, tmp_path, capsys):
    base = ["index", str(videos), "--out", str(encoded[0])]
    line = refused(capsys, [*base, "--encode", str(model), "--gaze", "random", "--frames", "4"])
    assert (
        "begun with other settings" in line and "gaze.selector" in line and "gaze.settings.ratio: 0.4 -> 0.75" in line
    )
    assert "tokens.family: llava -> None" in refused(capsys, [*base, "--model", str(model), *GAZE])
    other = make_videos(tmp_path / "other", 1)
    line = refused(capsys, ["index", str(other), "--out", str(encoded[0]), "--encode", str(model), *GAZE])
    assert f"is the index of {videos.resolve()}" in line


def test_what_cannot_be_written_ends_the_run_and_is_held_against_no_video(model, tmp_path, capsys):
    videos, out = make_videos(tmp_path / "videos", 1), tmp_path / "index"
    more = ["--model", str(model), "--workers", "1", *GAZE]
    index(capsys, videos, out, *more)
    result = out / records(out)["0.mp4"]["gazed"]
    result.unlink()
    result.mkdir()  # in the way
    (videos / "0.mp4").touch()
    assert main(["index", str(videos), "--out", str(out), *more]) == 2
    assert f"{result}: cannot be written" in capsys.readouterr().err.splitlines()[-1]
    assert not list((out / ".attempts").iterdir())
    result.rmdir()
    assert index(capsys, videos, out, *more)["tried"] == 1


@pytest.mark.parametrize(
    ("file", "content", "words"),
    [
        ("index.json", "{", "index.json: not readable as json"),
        ("index.json", '{"format": 9}', "format 9, this version reads 1"),
        ("index.json", '{"format": 1, "folder": 3}', "'folder' must be text"),
        ("index.jsonl", '{"path": "0.mp4"}\n', "index.jsonl, line 1: 'bytes' is missing"),
        ("index.jsonl", "no json\n", "index.jsonl, line 1: not readable as json"),
        ("index.jsonl", '{"path": "a", "bytes": 1, "modified": 1, "seconds": 5}\n', "'seconds' must be an object"),
    ],
)
def test_a_damaged_index_is_named_in_one_line(encoded, videos, model, tmp_path, capsys, file, content, words):
    out = shutil.copytree(encoded[0], tmp_path / "index")
    (out / file).write_text(content)
    command = ["index", str(videos), "--out", str(out), "--encode", str(model), "--workers", "1", *GAZE]
    assert words in refused(capsys, command)


def test_bad_input_is_refused_in_one_line(videos, tmp_path, capsys, monkeypatch):
    out = ["--out", str(tmp_path / "out")]
    assert "no such folder" in refused(capsys, ["index", str(tmp_path / "none"), *out])
    assert "no such folder" in refused(capsys, ["index", str(videos / "0.mp4"), *out])
    (tmp_path / "empty").mkdir()
    assert "there are no videos" in refused(capsys, ["index", str(tmp_path / "empty"), *out])
    assert "--workers" in refused(capsys, ["index", str(videos), *out, "--workers", "-2"])
    assert "unknown preset" in refused(capsys, ["index", str(videos), *out, "--preset", "best"])
    # What only the worker sees, which loads the model:
    assert "none such" in refused(capsys, ["index", str(videos), *out, "--model", str(tmp_path / "none such")])
    assert not list((tmp_path / "out").glob("index*"))
    (tmp_path / "file").touch()
    assert "cannot write here" in refused(capsys, ["index", str(videos), "--out", str(tmp_path / "file" / "out")])
    monkeypatch.setenv("RANK", "2")
    assert "RANK must lie in" in refused(capsys, ["index", str(videos), *out])


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_cannot_be_listed_is_named(videos, tmp_path, capsys):
    closed = tmp_path / "closed"
    closed.mkdir(mode=0)
    assert "cannot be listed" in refused(capsys, ["index", str(closed), "--out", str(tmp_path / "out")])


def test_a_job_for_processes_that_work_elsewhere_names_what_lies_here_by_its_whole_path(tmp_path, monkeypatch):
    for name in ("videos", "tiny", "gaze"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path)
    found = placed(IndexJob("videos", "out", model="tiny", gaze="gaze"))
    assert [found.folder, found.out] == [str(tmp_path / "videos"), str(tmp_path / "out")]
    assert [found.model, found.gaze] == [str(tmp_path / "tiny"), str(tmp_path / "gaze")]
    hub = IndexJob("videos", "out", model="llava-hf/none-here", gaze="pixel-diff")
    assert (placed(hub).model, placed(hub).gaze) == ("llava-hf/none-here", "pixel-diff")

"""Bad data gets one line that names file and row; data from a hub arrive unpacked."""

from __future__ import annotations

import json
import tarfile
import time
import zipfile
from pathlib import Path

import pytest
from huggingface_hub import constants

from autogaze_mllm.cli import main
from autogaze_mllm.evaluation.data.hub import unpack

from ..helpers.files.data_hub import DataHub, serving
from ..helpers.files.eval_data import HLVID, LAYOUTS, VIDEOMME, write_parquet, write_sample


def fails(name: str, folder: Path, capsys, *more: str) -> str:
    """The one line that `eval` says about this data."""
    arguments = ["eval", name, "--data", str(folder), "--out", str(folder / "run"), "--model", "scripted:right"]
    assert main([*arguments, *more]) == 2
    captured = capsys.readouterr()
    line = captured.err.strip()
    assert captured.out == "" and "\n" not in line and line.startswith("autogaze-mllm: error: ")
    return line


def test_a_wrong_folder(tmp_path, capsys):
    assert f"{tmp_path / 'none'}: no such folder" in fails("hlvid", tmp_path / "none", capsys)
    assert "no data/test*.parquet in this folder" in fails("hlvid", tmp_path, capsys)


def test_data_without_videos(tmp_path, capsys):
    write_sample("hlvid", tmp_path)
    line = fails("hlvid", tmp_path, capsys)
    assert f"none of the 1 videos is in {tmp_path}" in line and "videos/drive_03.mp4 was expected" in line


@pytest.mark.parametrize(
    ("name", "column"), [("hlvid", "answer"), ("videomme", "options"), ("nextqa", "a4"), ("egoschema", "option")]
)
def test_a_parquet_without_a_column(name, column, tmp_path, capsys):
    path = write_sample(name, tmp_path, **{column: None})
    line = fails(name, tmp_path, capsys)
    assert f"{path}: no column '{column}'; it has: " in line


def test_a_json_without_a_field(tmp_path, capsys):
    path = write_sample("mvbench", tmp_path, candidates=None)
    assert f"{path}, row 1: no field 'candidates'" in fails("mvbench", tmp_path, capsys)


@pytest.mark.parametrize(
    ("name", "changes", "says"),
    [
        ("hlvid", {"answer": "E"}, "answer 'E' in 'answer' is not one of the options A, B, C, D"),
        ("videomme", {"answer": "F"}, "answer 'F' in 'answer' is not one of the options"),
        ("videomme", {"options": ["A. One.", "Two."]}, "option 'Two.' does not begin with 'B.'"),
        ("mvbench", {"answer": "Sorting"}, "answer 'Sorting' is not one of the options Not sure, Scattering, Piling"),
        ("nextqa", {"answer": 5}, "answer '5' in 'answer' is not one of the options 0 to 4"),
        ("nextqa", {"type": "XY"}, "type 'XY' begins with none of C, T, D"),
        ("longvideobench", {"correct_choice": 3}, "answer '3' in 'correct_choice' is not one of the options 0 to 2"),
        ("egoschema", {"answer": "9"}, "answer '9' in 'answer' is not one of the options 0 to 4"),
        ("mlvu", {"question": "What?"}, "the question names no options (A), (B), ..."),
        ("hlvid", {"question": " "}, "'question' must be text, got ' '"),
    ],
)
def test_a_bad_row(name, changes, says, tmp_path, capsys):
    path = write_sample(name, tmp_path, **changes)
    assert f"{path}, row 1: {says}" in fails(name, tmp_path, capsys)


def test_a_duplicate_question(tmp_path, capsys):
    path = write_parquet(tmp_path / LAYOUTS["hlvid"][1], [*HLVID, {**HLVID[0], "question": "Another?"}])
    line = fails("hlvid", tmp_path, capsys)
    assert f"{path}, row 2: question id '17' stands in {path.name}, row 1 already" in line


@pytest.mark.parametrize(("name", "ending"), [("hlvid", ".parquet"), ("mvbench", ".json")])
def test_a_damaged_file(name, ending, tmp_path, capsys):
    path = write_sample(name, tmp_path)
    path.write_bytes(path.read_bytes()[:-40])
    assert f"{path}: not readable as {ending[1:]}" in fails(name, tmp_path, capsys)


def with_subtitles(folder: Path, content: bytes) -> Path:
    write_sample("videomme", folder)
    path = folder / "subtitle" / f"{VIDEOMME[0]['videoID']}.srt"
    path.parent.mkdir()
    path.write_bytes(content)
    return path


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("1\n00:00:01,000 --> 00:00:02,000\nJürgen\n".encode("latin-1"), "line 3: not UTF-8 text"),
        ("1\n00:00:01,000 --> 00:00:02,000\nHello\n".encode("utf-16"), "line 1: not UTF-8 text"),
        (b"Hello there\n", "line 1: not an .srt file"),
        (b"1\n00:00:03,000 --> 00:00:02,000\nHello\n", "line 2: the cue ends before it starts"),
    ],
)
def test_bad_subtitles(content, says, tmp_path, capsys):
    path = with_subtitles(tmp_path, content)
    assert f"{path}, {says}" in fails("videomme", tmp_path, capsys, "--subtitles")


def test_subtitles_without_their_folder(tmp_path, capsys):
    write_sample("videomme", tmp_path)
    assert "no folder 'subtitle' here" in fails("videomme", tmp_path, capsys, "--subtitles")


def test_archives_are_unpacked_whatever_their_form(tmp_path):
    content = tmp_path / "videos"
    content.mkdir()
    for name in ("a.mp4", "b.mp4", "c.mp4"):
        (content / name).write_bytes(name.encode() * 5000)
    target = tmp_path / "data set"
    target.mkdir()
    with zipfile.ZipFile(target / "chunk_01.zip", "w") as archive:
        archive.write(content / "a.mp4", "data/a.mp4")
    with tarfile.open(target / "b.tar.gz", "w:gz") as tar:
        tar.add(content / "b.mp4", "videos/b.mp4")
    with tarfile.open(tmp_path / "whole.tar", "w") as tar:
        tar.add(content / "c.mp4", "videos/c.mp4")
    whole = (tmp_path / "whole.tar").read_bytes()
    for number, ending in enumerate(("aa", "ab", "ac")):  # as one large archive is published in parts
        (target / f"videos.tar.part.{ending}").write_bytes(whole[number * 10_000 : (number + 1) * 10_000])
    assert len(whole) > 20_000
    unpack(target)
    for place in ("data/a.mp4", "videos/b.mp4", "videos/c.mp4"):
        assert (target / place).read_bytes() == (content / Path(place).name).read_bytes()


def test_data_from_the_hub_are_fetched_unpacked_and_their_commit_recorded(tmp_path, clip, monkeypatch, capsys):
    write_sample("hlvid", tmp_path / "source")
    with tarfile.open(tmp_path / "videos_01.tar", "w") as tar:
        tar.add(clip, "videos/drive_03.mp4")
    table = LAYOUTS["hlvid"][1]
    content = (tmp_path / "source" / table).read_bytes()
    DataHub.files = {table: content, "videos_01.tar": (tmp_path / "videos_01.tar").read_bytes()}
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    arguments = ["eval", "hlvid", "--model", "scripted:right", "--json", "--out"]
    hub = constants.ENDPOINT
    with serving(DataHub) as here:
        for name in ("ENDPOINT", "HUGGINGFACE_CO_URL_TEMPLATE"):
            monkeypatch.setattr(constants, name, getattr(constants, name).replace(hub, here))
        monkeypatch.setattr(DataHub, "size", 10**15)
        assert main([*arguments, str(tmp_path / "run")]) == 2
        assert "bfshi/HLVid has 2000000.0 GB and needs 4000000.0 GB of room" in capsys.readouterr().err
        monkeypatch.setattr(DataHub, "size", 0)
        assert main([*arguments, str(tmp_path / "run")]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["scores"]["official"]["score"]["value"] == 1.0
    assert report["settings"]["data_commit"] == DataHub.commit
    # Without a hub, what was fetched can be had by its commit; for anything else there is a line that says what to do.
    assert main([*arguments, str(tmp_path / "again"), "--revision", DataHub.commit]) == 0
    assert json.loads(capsys.readouterr().out)["settings"] == report["settings"]
    monkeypatch.setattr(time, "sleep", lambda seconds: None)  # 23 s, between the five tries of the hub's client
    assert main([*arguments, str(tmp_path / "another run")]) == 2
    line = capsys.readouterr().err.strip()
    assert "could not be fetched from the hub" in line and "--data FOLDER" in line and "\n" not in line

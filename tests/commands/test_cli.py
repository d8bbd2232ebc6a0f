"""The command line as a user meets it: what it prints, what it writes, how it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import av
import numpy as np
import pytest

from autogaze_mllm.cli import main
from autogaze_mllm.common.drawing.palette import COLOURS
from autogaze_mllm.common.extras import EXTRAS
from autogaze_mllm.mllm.tiny import tiny_model
from autogaze_mllm.video.reader import VideoReader

from ..helpers.paths import shared_video


def test_ask_prints_reply_and_costs(clip, capsys):
    assert main(["ask", str(clip), "What does the sign say?", "--frames", "8", "--max-new-tokens", "4"]) == 0
    out = capsys.readouterr().out
    for word in ("patches kept", "reduction", "visual tokens", "seconds", "reply", "nothing else"):
        assert word in out


def test_ask_json_is_one_object(clip, capsys):
    assert main(["ask", str(clip), "What?", "--frames", "5", "--max-new-tokens", "3", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["frames"] == 5
    assert found["patches"] < found["patches_total"] == 5 * 265
    assert {"decode", "resize", "gaze", "tower", "llm"} <= found["seconds"].keys()
    assert isinstance(found["reply"], str) and "nothing else" in found["note"]


def test_ask_with_a_model_folder_and_settings(clip, tmp_path, capsys):
    base, processor = tiny_model("llava", image_size=64)
    base.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    arguments = [
        "ask",
        str(clip),
        "What?",
        "--model",
        str(tmp_path),
        "--max-new-tokens",
        "2",
        "--frames",
        "4",
        "--json",
    ]
    assert main([*arguments, "--gaze", "random", "--ratio", "0.1"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["patches"] == 4 * 26 and "note" not in found


def test_gaze_writes_an_overlay_that_shows_both_panels(clip, tmp_path, capsys):
    out = tmp_path / "new folder" / "overlay.mp4"
    assert main(["gaze", str(clip), "--out", str(out), "--frames", "12", "--gaze", "pixel-diff"]) == 0
    printed = capsys.readouterr().out
    for word in ("patches kept", "reduction", "PSNR", "seconds", "overlay"):
        assert word in printed
    reader = VideoReader(out)
    assert len(reader) == 12
    assert reader.duration == pytest.approx(VideoReader(clip).duration, rel=0.1)  # plays at the clip's own pace
    picture = next(reader.read([0])).frames[0].astype(float)
    half = picture.shape[1] // 2
    original = next(VideoReader(clip).read([0])).frames[0].astype(float)
    assert picture[40:, half:].mean() == pytest.approx(original.mean(), abs=12)  # rebuilt in full brightness
    later = next(reader.read([9])).frames[0].astype(float)[40:]
    assert later[:, :half].mean() < 0.8 * later[:, half:].mean()  # what was not kept is dimmed
    near = [np.abs(later[:, :half] - colour).max(axis=2).min() for colour in COLOURS[:4]]
    assert min(near) < 60  # and what was kept is outlined in the colour of its scale


def test_gaze_json(clip, capsys):
    assert main(["gaze", str(clip), "--json", "--frames", "6", "--ratio", "0.1"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["reduction"] == found["patches_total"] / found["patches"] >= 10
    assert found["psnr_db"] > 15 and found["overlay"] is None
    assert found["selector"] == "AutoGaze"  # the bundled one, since none was named


def test_a_part_and_frames_by_the_second(clip, tmp_path, capsys):
    """The clip lasts two seconds, with ten frames each."""

    def frames(*options):
        assert main(["gaze", str(clip), "--gaze", "pixel-diff", "--json", *options]) == 0
        return json.loads(capsys.readouterr().out)["frames"]

    assert frames() == 20
    assert frames("--start", "0.5") == 15
    assert frames("--end", "0.5") == 5
    assert frames("--start", "0.5", "--end", "1.5", "--fps", "2") == 2
    assert frames("--fps", "4", "--frames", "3") == 8
    out = tmp_path / "overlay.mp4"
    assert frames("--start", "1", "--fps", "5", "--out", str(out)) == 5
    assert len(VideoReader(out)) == 5 and VideoReader(out).duration == pytest.approx(1, rel=0.1)
    assert main(["ask", str(clip), "what?", "--json", "--start", "1", "--end", "1.5", "--no-cache"]) == 0
    assert json.loads(capsys.readouterr().out)["frames"] == 5
    for options in (["--start", "9"], ["--start", "nan"], ["--end", "-1"], ["--fps", "0"], ["--fps", "inf"]):
        assert main(["gaze", str(clip), "--gaze", "pixel-diff", *options]) == 2
        told = capsys.readouterr().err
        assert told.startswith("autogaze-mllm: error: ") and told.count("\n") == 1


def test_loss_zero_spends_the_whole_budget_and_a_looser_one_less(clip, capsys):
    kept = []
    for loss in ("0", "0.02", "0.3"):
        assert main(["gaze", str(clip), "--json", "--frames", "4", "--ratio", "0.2", "--loss", loss]) == 0
        kept.append(json.loads(capsys.readouterr().out)["patches"])
    assert kept[0] > kept[1] > kept[2] >= 4


def test_gaze_starts_anew_in_every_chunk(clip, capsys):
    kept = {}
    for chunk in ("2", "6"):
        options = ["--gaze", "pixel-diff", "--frames", "6", "--chunk-frames", chunk]
        assert main(["gaze", str(clip), "--json", *options]) == 0
        kept[chunk] = json.loads(capsys.readouterr().out)["patches"]
    assert kept["2"] > kept["6"] > 0  # pixel-diff keeps what changed, and all of a chunk's first frame


def test_info_names_versions_devices_backends_extras(capsys):
    assert main(["info", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["packages"]["torch"] and found["packages"]["transformers"] and found["packages"]["av"]
    assert found["devices"][0]["device"] == "cpu"
    assert found["attention"]["sdpa"] is True
    assert set(found["extras"]) == set(EXTRAS)
    assert main(["info"]) == 0
    assert "attention: flash_attention_2" in capsys.readouterr().out


def audio_only(path: Path) -> Path:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=16000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), dtype=np.float32), format="fltp", layout="mono")
        frame.sample_rate = 16000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def bad_inputs(tmp_path: Path, clip: Path) -> dict[str, tuple[list[str | Path], str]]:
    """What is wrong -> arguments and a part of the line that says so."""
    text, empty = tmp_path / "notes.txt", tmp_path / "empty.mp4"
    text.write_text("not a video")
    empty.write_bytes(b"")
    sound = audio_only(tmp_path / "sound.mp4")
    return {
        "missing file": (["gaze", tmp_path / "none.mp4"], "no such file"),
        "a folder": (["gaze", tmp_path], "is a folder"),
        "not a video": (["gaze", text], "not a readable video"),
        "empty file": (["ask", empty, "what?"], "not a readable video"),
        "audio only": (["ask", sound, "what?"], "no video stream (found: audio)"),
        "no such model": (["ask", clip, "what?", "--model", tmp_path / "nowhere"], "nowhere"),
        "no model in it": (["ask", clip, "what?", "--model", tmp_path], "no config.json"),
        "no such gaze": (["gaze", clip, "--gaze", tmp_path / "nowhere"], "nowhere"),
        "ratio 0": (["gaze", clip, "--ratio", "0"], "ratio must lie in (0, 1]"),
        "ratio 1.2": (["ask", clip, "what?", "--ratio", "1.2"], "ratio must lie in (0, 1]"),
        "ratio nan": (["ask", clip, "what?", "--ratio", "nan"], "ratio must lie in (0, 1]"),
        "negative loss": (["gaze", clip, "--loss", "-1"], "loss must be at least 0"),
        "no frames": (["gaze", clip, "--frames", "0"], "frames must be at least 1"),
        "no text": (["ask", clip, " "], "question has no text"),
        "no tokens": (["ask", clip, "what?", "--max-new-tokens", "0"], "at least 1"),
        "unwritable": (["gaze", clip, "--out", text / "o.mp4"], "cannot write here"),
        "no video name": (["gaze", clip, "--out", tmp_path / "o.txt"], "name of a video file"),
        "no such device": (["gaze", clip, "--device", "warp9"], "warp9"),
    }


FAULTS = [
    "missing file",
    "a folder",
    "not a video",
    "empty file",
    "audio only",
    "no such model",
    "no model in it",
    "no such gaze",
    "ratio 0",
    "ratio 1.2",
    "ratio nan",
    "negative loss",
    "no frames",
    "no text",
    "no tokens",
    "unwritable",
    "no video name",
    "no such device",
]


@pytest.mark.parametrize("fault", FAULTS)
def test_bad_input_gets_one_line_and_exit_code_2(fault, clip, tmp_path, capsys):
    arguments, message = bad_inputs(tmp_path, clip)[fault]
    assert main([str(part) for part in arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    line = captured.err.strip()
    assert message in line and "\n" not in line and line.startswith("autogaze-mllm: error: ")


def test_a_wrong_option_is_explained_without_a_traceback(clip, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["gaze", str(clip), "--rato", "0.5"])
    said = capsys.readouterr().err
    assert ended.value.code == 2 and "Traceback" not in said and "--rato" in said


@pytest.mark.parametrize("name", ["nasa_13013.mp4", "flipping_a_pancake.mkv"])
def test_real_videos(name, tmp_path):
    video = str(shared_video(name))
    assert main(["gaze", video, "--out", str(tmp_path / "overlay.mp4"), "--frames", "16"]) == 0
    assert main(["ask", video, "What is shown?", "--frames", "16", "--max-new-tokens", "4"]) == 0
    assert len(VideoReader(tmp_path / "overlay.mp4")) == 16

"""`--revision MODEL=REVISION`: the commit that is asked for is used, by every verb that takes a model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants

from autogaze_mllm.cli import _parser, main
from autogaze_mllm.commands.arguments.config_file import parse
from autogaze_mllm.commands.arguments.options import load_model
from autogaze_mllm.common.storage.hashing import fingerprint
from autogaze_mllm.common.storage.pinned import pinned

from ..helpers.files.data_hub import DataHub, serving
from ..helpers.files.hub_cache import COMMITS, cached_model, use_cache
from ..helpers.index_runs import index, make_videos, tiny_base
from ..helpers.training_models import small_gaze, small_videomae, write_clips

GAZE, TASK, BASE = "someone/gaze", "someone/videomae", "someone/mllm"
WITH_MODEL = ("ask", "app", "serve", "index", "finetune", "eval hlvid")


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two commits of a gaze model, of a VideoMAE and of an MLLM; the names alone mean the second ones."""
    root = tmp_path_factory.mktemp("hub")
    first, second = COMMITS
    cached_model(root, GAZE, {first: small_gaze(0).save_pretrained, second: small_gaze(1).save_pretrained})
    cached_model(root, "nvidia/AutoGaze", {first: small_gaze(2).save_pretrained})
    cached_model(root, TASK, {first: small_videomae(0).save_pretrained, second: small_videomae(1).save_pretrained})
    cached_model(root, BASE, {first: tiny_base})
    return root


@pytest.fixture(autouse=True)
def hub(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use_cache(monkeypatch, cache)


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clips")
    write_clips(folder, 2)
    return folder


def snapshot(cache: Path, name: str, commit: str) -> str:
    return str(cache / f"models--{name.replace('/', '--')}" / "snapshots" / commit)


def printed(capsys: pytest.CaptureFixture[str], *command: str | Path) -> dict[str, Any]:
    assert main([*map(str, command), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_gaze(cache: Path, clips: Path, capsys: pytest.CaptureFixture[str]) -> None:
    looking = ("gaze", clips / "000.mp4", "--ratio", "0.2", "--device", "cpu", "--gaze")
    found = [printed(capsys, *looking, GAZE, "--revision", f"{GAZE}={commit}")["psnr_db"] for commit in COMMITS]
    wanted = [printed(capsys, *looking, snapshot(cache, GAZE, commit))["psnr_db"] for commit in COMMITS]
    assert found == wanted and found[0] != found[1]


@pytest.mark.parametrize("verb", ["ask", "app", "serve"])
@pytest.mark.parametrize("named", [GAZE, None])
def test_what_answers(verb: str, named: str | None) -> None:
    """Both of them; the gaze model that is not named is the published one."""
    model = ["--model", BASE, "clip.mp4", "what?"] if verb == "ask" else [BASE]
    gaze = ["--gaze", named] if named else []
    pins = [f"--revision={BASE}={COMMITS[0]}", f"--revision={named or 'nvidia/AutoGaze'}={COMMITS[0]}"]
    loaded = load_model(parse(_parser(), [verb, *model, *gaze, *pins, "--device", "cpu"]))
    wanted = small_gaze(0 if named else 2)
    assert fingerprint(loaded.gaze.state_dict()) == fingerprint(wanted.state_dict())
    assert COMMITS[0] in loaded.unwrap().config.name_or_path


def test_a_benchmark_says_which_commit_answered(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = ("eval", "hlvid", "--made-up", tmp_path / "data", "--limit", 1, "--frames", 2, "--max-new-tokens", 1)
    pins = ("--revision", f"{BASE}={COMMITS[0]}", "--revision", f"{GAZE}={COMMITS[0]}")
    found = printed(
        capsys, *asked, "--model", BASE, "--gaze", GAZE, *pins, "--device", "cpu", "--out", tmp_path / "run"
    )
    model, seen = found["settings"]["model"], found["settings"]["seen"]
    assert (model["name"], model["revision"], seen["gaze"]) == (BASE, COMMITS[0], GAZE)
    assert seen["selector"]["weights"] == fingerprint(small_gaze(0).state_dict())


@pytest.mark.slow
def test_an_index_is_found_with_the_revision_that_it_was_made_with(
    cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    videos, pins = make_videos(tmp_path / "videos", 1), [f"--revision={GAZE}={COMMITS[0]}", f"--revision={BASE}=main"]
    model = snapshot(cache, BASE, COMMITS[0])
    index(capsys, videos, tmp_path / "index", "--model", BASE, "--gaze", GAZE, "--frames", "4", *pins)
    asked = ["serve", model, "--index", str(tmp_path / "index")]
    loaded = load_model(parse(_parser(), asked))
    loaded.encode_video(videos / "0.mp4")
    assert loaded.stats["from_cache"] == 1
    assert main(["ask", str(videos / "0.mp4"), "what?", "--index", str(tmp_path / "index"), "--model", model,
                 "--gaze", GAZE, f"--revision={GAZE}={COMMITS[1]}"]) == 2  # fmt: skip
    assert "gaze" in capsys.readouterr().err


def test_labels_and_training(cache: Path, clips: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    search = ("label", clips, "--frames", "2", "--device", "cpu", "--max-ratio", "0.3", "--out")
    for commit in COMMITS:
        by_name, by_folder = tmp_path / f"{commit[0]}.json", tmp_path / f"{commit[0]}-folder.json"
        printed(capsys, *search, by_name, "--task", TASK, "--revision", f"{TASK}={commit}")
        printed(capsys, *search, by_folder, "--task", snapshot(cache, TASK, commit))
        assert by_name.read_bytes() == by_folder.read_bytes()
    assert (tmp_path / "a.json").read_bytes() != (tmp_path / "b.json").read_bytes()

    run, pins = tmp_path / "run", ("--revision", f"{GAZE}={COMMITS[0]}", "--revision", f"{TASK}={COMMITS[1]}")
    training = ("train-gaze", clips, "--init", GAZE, "--task", TASK, "--labels", tmp_path / "b.json", "--frames", "2")
    printed(capsys, *training, "--steps", "1", "--batch-size", "1", "--device", "cpu", "--out", run, *pins)
    identity = json.loads((run / "settings.json").read_text())
    assert fingerprint(small_gaze(0).state_dict()) in json.dumps(identity)
    assert fingerprint(small_videomae(1).state_dict()) in json.dumps(identity)
    again = parse(_parser(), ["train-gaze", "--config", str(run / "config.yaml")])
    assert (again.init, again.task, again.revision) == (GAZE, TASK, [pin for pin in pins if "=" in pin])


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (["gaze", "c.mp4", "--gaze", GAZE, "--revision", f"{GAZE}=cccc"], f"{GAZE} at revision 'cccc': cannot be had"),
        (["gaze", "c.mp4", "--gaze", GAZE, "--revision", "main"], "expected MODEL=REVISION"),
        (["gaze", "c.mp4", "--revision", f"{GAZE}=main"], f"'{GAZE}' is none of the models: bundled"),
        (["gaze", "c.mp4", "--gaze", "all", "--revision", "all=main"], "all is no model of the hub"),
        (["ask", "c.mp4", "what?", "--revision", "nvidia/AutoGaze=main"], "is none of the models: bundled"),
        (["label", "clips", "--out", "l.json", "--revision", "mosaic=main"], "mosaic is no model of the hub"),
        (["train-gaze", "clips", "--out", "r", "--revision", f"{GAZE}=main"], "is none of the models: mosaic"),
        (["eval", "hlvid", "--out", "r", "--data", "d", "--revision", "main"], "of the data set on the hub"),
        (
            ["eval", "hlvid", "--out", "r", "--made-up", "d", "--model", "scripted:right", "--revision", "a/b=1"],
            "a script",
        ),
        (["export-llm", BASE, "f", "--revision", f"{GAZE}=main"], f"is none of the models: {BASE}"),
        (["merge", "tuned", "f", "--base", BASE, "--revision", f"{BASE}=v9"], f"{BASE} at revision 'v9'"),
    ],
)
def test_what_cannot_be_is_one_line(
    command: list[str], said: str, clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "c.mp4").symlink_to(clips / "000.mp4")
    (tmp_path / "clips").symlink_to(clips)
    assert main(command) == 2
    assert said in capsys.readouterr().err.strip().splitlines()[-1]


@pytest.mark.parametrize("verb", WITH_MODEL)
def test_a_file_of_options_names_one_or_several(verb: str, tmp_path: Path) -> None:
    (tmp_path / "several.yaml").write_text("revision: [a/b=1, c/d=2]\n")
    (tmp_path / "one.yaml").write_text("revision: a/b=1\n")
    needed = {
        "ask": ["c.mp4", "?"],
        "index": ["f", "--out", "o"],
        "finetune": ["--data", "d"],
        "eval hlvid": ["--out", "o"],
    }
    for name, wanted in (("several", ["a/b=1", "c/d=2"]), ("one", ["a/b=1"])):
        typed = [*verb.split(), *needed.get(verb, []), "--config", str(tmp_path / f"{name}.yaml")]
        assert parse(_parser(), typed).revision == wanted


@pytest.mark.parametrize("safe", [True, False])
def test_what_is_fetched(safe: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All files that a model, its processor and its tokenizer are read from; pickled weights where there are no
    others; no code."""
    files = {"config.json": b"{}", "llm/merges.txt": b"a b", "videomae.pt": b"pickled", "model.py": b"import os"}
    hub = type("Hub", (DataHub,), {"kind": "models", "repository": BASE, "files": files})
    if safe:
        files["llm/model.safetensors"] = b"weights"
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    with serving(hub) as address:
        monkeypatch.setattr(constants, "ENDPOINT", address)
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}"
        )
        folder = Path(pinned(BASE, "v2"))
    found = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    weights = "llm/model.safetensors" if safe else "videomae.pt"
    assert found == {"config.json", "llm/merges.txt", weights} and folder.name == DataHub.commit

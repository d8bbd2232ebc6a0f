"""What users run into: modes, adapters, broken checkpoints, odd templates, full disks."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path

import av
import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors.torch import load_file, save_file

import autogaze_mllm as am
from autogaze_mllm.cli import main
from autogaze_mllm.gaze.cache import VideoCache
from autogaze_mllm.mllm.tiny import tiny_model
from autogaze_mllm.video.reader import VideoReader
from autogaze_mllm.video.synthetic import moving_scene
from autogaze_mllm.video.writer import write_video

from ..helpers.tiny_models import tiny_gaze


def make(family="llava", gaze="pixel-diff", cache=False, **settings):
    base, processor = tiny_model(family, image_size=64)
    return am.wrap(base, gaze, processor=processor, cache=cache, **{"frames": 4, **settings})


def test_evaluation_mode_reaches_the_tower(clip):
    """The tower lies outside the wrapper's module tree; its mode must still be the base's."""
    model = make()
    model.base.config.vision_config.attention_dropout = 0.5
    model.tower.config.attention_dropout = 0.5
    gazed = model.gaze_video(clip)
    model.eval()
    assert torch.equal(model.tower.encode(gazed), model.tower.encode(gazed))
    model.train()
    assert not torch.equal(model.tower.encode(gazed), model.tower.encode(gazed))


def test_tokens_are_not_kept_when_the_model_changed_or_trains(clip, tmp_path):
    model = make(cache=tmp_path)
    weight = model.base.model.multi_modal_projector.linear_1.weight
    inputs = model.prepare("<video>what?", [clip], reuse=True)
    with torch.no_grad():
        weight.add_(1.0)
        model.generate(**inputs, max_new_tokens=1)
        weight.sub_(1.0)
    model.train()
    model.ask(clip, "what?", max_new_tokens=1)
    assert {entry.kind for entry in model.cache.entries()} == {"gazed"}
    model.eval()
    model.ask(clip, "what?", max_new_tokens=1)
    assert {entry.kind for entry in model.cache.entries()} == {"gazed", "tokens"}


def test_adapters_switched_off_are_another_model(clip, tmp_path):
    model = make(cache=tmp_path)
    inject_adapter_in_model(LoraConfig(target_modules=["q_proj"], init_lora_weights=False), model.family.tower)
    model.eval()
    model.ask(clip, "what?", max_new_tokens=1)
    for module in model.family.tower.modules():
        if isinstance(module, BaseTunerLayer):
            module.enable_adapters(False)
    model.ask(clip, "what?", max_new_tokens=1)
    assert "tower" in model.stats["seconds"]


def test_a_cached_answer_never_opens_the_video(clip, tmp_path, monkeypatch):
    model = make(cache=tmp_path)
    answer = model.ask(clip, "what?", max_new_tokens=3)

    def refuse(*_, **__):
        raise AssertionError("the video was opened")

    monkeypatch.setattr(av, "open", refuse)
    assert model.ask(clip, "what?", max_new_tokens=3) == answer


@pytest.mark.parametrize("change", ["attn_type", "scales", "dtype", "gaze weights", "tower weights"])
def test_more_that_makes_a_miss(change, clip, tmp_path):
    make(gaze=tiny_gaze(), cache=tmp_path).ask(clip, "what?", max_new_tokens=1)
    base, processor = tiny_model("llava", image_size=64)
    gaze, options = tiny_gaze(), {}
    if change == "attn_type":
        options = {"attn_type": "bidirectional"}
    elif change == "scales":
        options = {"scales": "48+96"}
    elif change == "dtype":
        base = base.to(torch.bfloat16)
    elif change == "gaze weights":
        with torch.no_grad():
            gaze.gazing_model.gaze_decoder.lm_head.weight.add_(
                torch.randn_like(gaze.gazing_model.gaze_decoder.lm_head.weight)
            )
    else:
        with torch.no_grad():
            base.model.vision_tower.encoder.layers[0].mlp.fc1.weight.mul_(1.1)
    other = am.wrap(base, gaze, processor=processor, cache=tmp_path, frames=4, **options)
    other.ask(clip, "what?", max_new_tokens=1)
    assert "tower" in other.stats["seconds"]


def test_a_cache_that_cannot_be_written_costs_nothing_but_time(clip, tmp_path, monkeypatch, caplog):
    model = make(cache=tmp_path)
    shutil.rmtree(tmp_path)
    (tmp_path).write_text("a file where the folder was")
    assert isinstance(model.ask(clip, "what?", max_new_tokens=1), str)
    assert "nothing was kept" in caplog.text
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))  # the default place, which nobody asked for
    assert make(cache=True).cache is None
    with pytest.raises(am.InputError, match="cannot write"):
        make(cache=tmp_path / "named")


def test_killed_writers_leave_nothing_for_ever(tmp_path):
    cache = VideoCache(tmp_path)
    (tmp_path / ".tmpAbC123").write_bytes(b"half")  # as safetensors leaves it
    cache.clear()
    assert not list(tmp_path.iterdir())


def test_a_checkpoint_with_gaps_is_refused(tmp_path):
    base, processor = tiny_model("llava", image_size=64)
    base.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    save_file(
        {k: v for k, v in weights.items() if "projector" not in k}, tmp_path / "model.safetensors", {"format": "pt"}
    )
    with pytest.raises(am.InputError, match=r"the checkpoint lacks .*projector"):
        am.wrap(tmp_path, "all")
    (tmp_path / "model.safetensors").write_bytes((tmp_path / "model.safetensors").read_bytes()[:2000])
    with pytest.raises(am.InputError, match="weights cannot be loaded"):
        am.wrap(tmp_path, "all")


def test_placeholders_are_never_targets(clip):
    model = make()
    inputs = model.prepare("<video>what moves?", [clip])
    ids = inputs["input_ids"]
    text_only = ids.masked_fill(ids == model.family.video_token_id, -100)
    assert torch.equal(model(**inputs, labels=ids).loss, model(**inputs, labels=text_only).loss)


def test_a_prompt_beyond_the_context_is_said(clip, caplog):
    model = make()
    model.config.text_config.max_position_embeddings = 20
    with caplog.at_level(logging.WARNING):
        model.prepare("<video>what moves?", [clip])
    assert "exceeds the 20 that the LLM was made for" in caplog.text


def test_one_gaze_model_serves_two_wrappers_of_different_type():
    gaze = tiny_gaze()
    first = make(gaze=gaze)
    base, processor = tiny_model("llava", image_size=64)
    second = am.wrap(base.to(torch.bfloat16), gaze, processor=processor, cache=False)
    assert first.gaze is gaze and gaze.dtype == torch.float32 and second.gaze.dtype == torch.bfloat16


@pytest.mark.parametrize(
    "template",
    [
        "{% for m in messages %}{{ '<|im_start|>' + m['role'] + ' ' + m['content'] + '<|im_end|>' }}{% endfor %}",
        "{% for m in messages %}{{ m['role'] }}: {{ m['content'] | trim }}{% endfor %}",
    ],
)
def test_templates_that_take_plain_text(template, clip):
    model = make()
    model.preprocessing.chat_template = template
    text = model.tokenizer.decode(model.prepare("  what moves?\n")["input_ids"][0])
    assert "what moves?" in text and "user" in text


def test_the_video_is_never_overwritten_by_its_overlay(clip, tmp_path, capsys):
    video = tmp_path / "clip.mp4"
    shutil.copy(clip, video)
    before = video.read_bytes()
    (tmp_path / "link.mp4").symlink_to(video)
    for out in (video, tmp_path / "link.mp4"):
        assert main(["gaze", str(video), "--out", str(out)]) == 2
        assert "is the video itself" in capsys.readouterr().err
    assert video.read_bytes() == before


@pytest.mark.parametrize("name", ["o.webm", "o.mkv", "o.avi"])
def test_overlays_in_other_containers(name, clip, tmp_path):
    assert main(["gaze", str(clip), "--out", str(tmp_path / name), "--frames", "4"]) == 0
    assert len(VideoReader(tmp_path / name)) == 4


def test_tiles_and_thumbnails_on_the_command_line(clip, capsys):
    options = ["--frames", "6", "--max-tiles", "2", "--thumbnails", "3", "--json"]
    assert main(["gaze", str(clip), *options]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["tiles"] == [2, 1] and found["thumbnails"] == 3 and found["patches_total"] == (6 * 2 + 3) * 265


def test_a_very_tall_video_has_an_overlay(tmp_path):
    write_video(tmp_path / "tall.mp4", moving_scene(32, 2000, 3), fps=5)
    assert main(["gaze", str(tmp_path / "tall.mp4"), "--out", str(tmp_path / "o.mp4"), "--frames", "2"]) == 0


def test_joined_streams_with_clocks_of_their_own(tmp_path):
    parts = []
    for seed in (0, 1):
        write_video(tmp_path / f"{seed}.ts", moving_scene(64, 64, 10, seed=seed), fps=10)
        parts.append((tmp_path / f"{seed}.ts").read_bytes())
    (tmp_path / "both.ts").write_bytes(b"".join(parts))
    reader = VideoReader(tmp_path / "both.ts")
    given = sum(len(chunk.frames) for chunk in reader.read())
    assert len(reader) == 20 and given + len(reader.lost) == 20 and given >= 18


def test_odd_arguments_get_one_line(clip, tmp_path):
    model = make()
    for call, message in [
        (lambda: model.prepare([]), "no prompt"),
        (lambda: model.ask(clip, "what?", return_dict_in_generate=True), "returns text"),
        (
            lambda: am.wrap(tiny_model()[0], am.AllSelector, processor=model.preprocessing),
            "expected a model id or folder",
        ),
        (lambda: VideoReader("x" * 5000), "no such file"),
    ]:
        with pytest.raises(am.InputError, match=message):
            call()
    save_file({"a": torch.zeros(1)}, tmp_path / "x.safetensors", {"gazed_video": "{}"})
    with pytest.raises(am.InputError, match="not a saved gazed video"):
        am.GazedVideo.load(tmp_path / "x.safetensors")


def test_a_gaze_model_that_cannot_serve_the_tower_is_refused_at_wrap():
    with pytest.raises(am.InputError, match=r"has 3 scales, the gaze model 2"):
        make(gaze=tiny_gaze(), scales="32+48+64")


def test_the_backend_is_the_machines_choice(tmp_path):
    make().save_pretrained(tmp_path)
    assert am.load(tmp_path, backend="eager").tower.backend == "eager"
    assert "backend" not in json.loads(Path(tmp_path / "autogaze_mllm.json").read_text())["tower"]


def test_what_is_saved_and_kept_is_for_whom_the_umask_lets(clip, tmp_path):
    """Somebody else's server reads it, or somebody else's question."""
    model = make(gaze=tiny_gaze(), cache=tmp_path / "cache")
    model.ask(clip, "what?", max_new_tokens=1)
    model.save_pretrained(tmp_path / "model")
    (tmp_path / "any").touch()
    usual = (tmp_path / "any").stat().st_mode
    written = list(tmp_path.rglob("*.safetensors"))
    assert len(written) == 4 and {path.stat().st_mode for path in written} == {usual}

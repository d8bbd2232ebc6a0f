"""The gazed SigLIP tower loaded and called as the published one, against what the published one gave."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoModel, SiglipModel

import autogaze_mllm as am
from autogaze_mllm import InputError
from autogaze_mllm.gaze.autogaze.bundled import BUNDLED_FOLDER
from autogaze_mllm.published import GazedSiglipVisionModel, SiglipVisionModel

from ..helpers.files.published_folders import write_siglip
from ..helpers.golden_data import assert_close, load, names, part, video, weights

GOLDEN = [(name, case) for name in names("siglip_") for case in load(name)[0]["cases"]]


@pytest.fixture(scope="module")
def siglip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of pictures and texts."""
    return write_siglip(tmp_path_factory.mktemp("siglip") / "model", 64, 16)


def write_published(folder: Path, name: str, case: dict[str, Any]) -> Path:
    """A golden tower, in the layout in which the published code stores it."""
    shape = {"attn_type": case["attn_type"], "frame_independent_encoding": case.get("indep", False)}
    config = {**load(name)[0]["config"], **shape, "model_type": "siglip_vision_model"}
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    save_file(
        {key: value.clone() for key, value in weights(name).items()}, folder / "model.safetensors", {"format": "pt"}
    )
    return folder


@pytest.mark.parametrize(("name", "case"), GOLDEN, ids=[f"{name}-{case['name']}" for name, case in GOLDEN])
def test_what_the_published_tower_gives(name: str, case: dict[str, Any], tmp_path: Path) -> None:
    backend = "eager" if case["impl"] == "eager" else "sdpa"
    folder = write_published(tmp_path / "tower", name, case)
    tower = SiglipVisionModel.from_pretrained(folder, attn_implementation=backend)
    golden = load(name)[1]
    info = part(golden, "inputs/") | {"gazing_pos": golden["inputs/gazing_pos"].long()}
    with torch.inference_mode():
        found = tower(video(name), gazing_info=info, output_hidden_states=True)
    expected, real = part(golden, f"{case['name']}/"), info["if_padded_gazing"] == 0
    assert_close(found.last_hidden_state[real], expected["last_hidden_state"][real])
    for state, wanted in zip(found.hidden_states, expected["hidden_states"], strict=True):
        assert_close(state[real], wanted[real])
    text = load(name)[0]["config"]["scales"]
    assert tower.scales == [int(side) for side in text.split("+")]


def test_the_tower_of_a_model_of_pictures_and_texts(siglip: Path, tmp_path: Path, capfd: Any) -> None:
    tower = GazedSiglipVisionModel.from_pretrained(
        siglip, scales=(32, 64), attn_implementation="eager", frame_independent_encoding=True, max_embed_batch_size=2
    )
    assert "text_model" not in "".join(capfd.readouterr())  # no warning about weights that nobody asked for
    whole = SiglipModel.from_pretrained(siglip).vision_model
    assert torch.equal(
        tower.vision_model.embeddings.position_embedding.weight, whole.embeddings.position_embedding.weight
    )
    assert tower.get_input_embeddings() is tower.vision_model.embeddings.patch_embedding
    assert not tower.training and tower.frame_independent and tower.backend == "eager"

    frames = torch.randn(2, 2, 3, 64, 64)
    tower.save_pretrained(tmp_path / "saved")
    again = am.GazedSiglipVisionModel.from_pretrained(tmp_path / "saved")  # scales and attention come from the folder
    with torch.inference_mode():
        assert_close(again(frames).last_hidden_state, tower(frames).last_hidden_state, 1e-6)
    assert again.grid == tower.grid and again.frame_independent


def test_without_gazing_info_every_patch_is_seen(siglip: Path) -> None:
    """At one scale, frame by frame, that is the dense tower."""
    tower = SiglipVisionModel.from_pretrained(siglip, scales="64", frame_independent_encoding=True)
    frames = torch.randn(2, 3, 3, 64, 64)
    with torch.inference_mode():
        dense = tower.base_tower(frames.flatten(0, 1), output_hidden_states=True)
        found = tower(frames, gazing_info=None, output_hidden_states=True)
    assert_close(found.last_hidden_state.flatten(0, 1), dense.last_hidden_state.flatten(0, 1)[None].flatten(0, 1))
    assert_close(found.hidden_states[1].flatten(0, 1), dense.hidden_states[1].flatten(0, 1))
    several = SiglipVisionModel.from_pretrained(siglip, scales="32+64")
    assert several(frames).last_hidden_state.shape == (2, 3 * (4 + 16), 32)


def test_precision_and_device_by_the_names_of_transformers(siglip: Path, tmp_path: Path) -> None:
    assert SiglipVisionModel.from_pretrained(siglip, torch_dtype=torch.bfloat16).dtype == torch.bfloat16
    assert SiglipVisionModel.from_pretrained(siglip, dtype="bfloat16", device_map={"": "cpu"}).dtype == torch.bfloat16
    SiglipModel.from_pretrained(siglip, dtype=torch.float16).save_pretrained(tmp_path)
    assert SiglipVisionModel.from_pretrained(tmp_path).dtype == torch.float32
    assert SiglipVisionModel.from_pretrained(tmp_path, dtype="auto").dtype == torch.float16


def test_what_has_no_meaning_is_refused_in_a_line(siglip: Path, tmp_path: Path) -> None:
    for kind in (SiglipVisionModel, am.GazedSiglipVisionModel):
        with pytest.raises(InputError, match=r"unknown argument 'scale' \(known: scales, attn_impl"):
            kind.from_pretrained(siglip, scale="32")
        with pytest.raises(InputError, match="no such folder"):
            kind.from_pretrained(tmp_path / "nowhere")
        with pytest.raises(InputError, match="attn_type 'sideways' is not one of"):
            kind.from_pretrained(siglip, attn_type="sideways")
    tower, frames = SiglipVisionModel.from_pretrained(siglip), torch.zeros(1, 1, 3, 64, 64)
    with pytest.raises(InputError, match="output_attentions"):
        tower(frames, output_attentions=True)
    with pytest.raises(InputError, match="interpolate_pos_encoding"):
        tower(frames, interpolate_pos_encoding=False)
    with pytest.raises(InputError, match=r"\(clips, frames, 3, height, width\), got \(1, 3, 64, 64\)"):
        tower(frames[0])
    with pytest.raises(InputError, match="model_type is 'autogaze', not one of siglip"):
        SiglipVisionModel.from_pretrained(BUNDLED_FOLDER)
    AutoModel.from_pretrained(siglip).text_model.save_pretrained(tmp_path / "text")
    with pytest.raises(InputError, match="'siglip_text_model'"):
        SiglipVisionModel.from_pretrained(tmp_path / "text")
    damaged = write_siglip(tmp_path / "damaged", 64, 16)
    (damaged / "model.safetensors").write_bytes(b"no weights")
    with pytest.raises(InputError, match="weights cannot be loaded"):
        SiglipVisionModel.from_pretrained(damaged)

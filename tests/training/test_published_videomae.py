"""The VideoMAE as it is published: what loads, what the numbers are, and how the rest is refused."""

from __future__ import annotations

import itertools
import json
import logging
import pickle
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from transformers import Dinov2WithRegistersModel, SiglipVisionModel, ViTMAEForPreTraining
from transformers.models.vivit.image_processing_vivit import VivitImageProcessor

from autogaze_mllm.common.errors import InputError
from autogaze_mllm.gaze.grid import PatchGrid
from autogaze_mllm.training.tasks.registry import load_task
from autogaze_mllm.training.tasks.videomae.model import VideoMAE
from autogaze_mllm.training.tasks.videomae.pixels import published_processor
from autogaze_mllm.training.tasks.videomae.published import KNOWN, read_published
from autogaze_mllm.training.tasks.videomae.task import VideoMAETask

from ..helpers.files.videomae_files import (
    LOSSES,
    cached,
    training_config,
    write_networks,
    write_published,
    write_vit_mae,
)
from ..helpers.golden_data import part
from ..helpers.paths import GOLDEN
from ..helpers.training_models import CONFIG

PUBLISHED = GOLDEN / "videomae_published"
INFO = {
    "gazing_pos": torch.tensor([[0, 7, 25]]),
    "if_padded_gazing": torch.zeros(1, 3, dtype=torch.bool),
    "num_gazing_each_frame": torch.tensor([2, 1]),
}


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Do not write there: `copied` is a folder of the test's own."""
    return write_published(tmp_path_factory.mktemp("written"))


@pytest.fixture
def copied(written: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(written.parent, tmp_path / "all")) / written.name


def frames() -> torch.Tensor:
    return torch.rand(1, 2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def losses(task: VideoMAETask) -> torch.Tensor:
    with torch.no_grad():
        return task(task.normalize(frames()), INFO).frame_losses


@pytest.mark.skipif(not PUBLISHED.is_dir(), reason="the published code's own folder is not there")
def test_numbers_are_those_of_the_published_code() -> None:
    """Pixels, reconstruction and the loss of each part's sum, from a folder that the published code wrote."""
    about, expected = (
        json.loads((PUBLISHED / "expected.json").read_text()),
        load_file(PUBLISHED / "expected.safetensors"),
    )
    task = VideoMAETask.from_pretrained(PUBLISHED / "VideoMAE_AutoGaze")
    pixels = expected["inputs/frames_u8"]
    picture = pixels[0, 0].permute(1, 2, 0).numpy()
    torch.testing.assert_close(task.processor([picture])[0], expected["pixel_values_0"], rtol=1e-6, atol=1e-6)
    video = task.normalize(pixels.float() / 255)
    torch.testing.assert_close(video[0, 0], expected["pixel_values_0"], rtol=1e-5, atol=1e-6)
    grey = task.normalize(torch.full((3, 1, 1), 128 / 255)).flatten().tolist()
    assert grey == pytest.approx(about["grey_128"], rel=1e-5)
    with torch.no_grad():
        result = task(video, part(expected, "inputs/"), about["frames"])
    torch.testing.assert_close(result.reconstruction, expected["reconstruction"], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(result.frame_losses, expected["loss_each_reconstruction_frame"], rtol=1e-5, atol=0)
    torch.testing.assert_close(result.loss, expected["reconstruction_loss"], rtol=1e-5, atol=0)


def test_weights_and_networks_come_from_one_file(written: Path, tmp_path: Path) -> None:
    task = VideoMAETask.from_pretrained(written)
    assert task.grid == PatchGrid.of("32+64", 16) and task.sample_rate == 0.5
    stored = torch.load(written / "videomae.pt", weights_only=True)
    for name, value in task.model.state_dict().items():
        assert torch.equal(value, stored[f"module.mae.{name}"])
    networks = write_networks(tmp_path)  # the same ones, with their weights
    elsewhere = VideoMAETask.from_pretrained(written, feature_models=networks)
    torch.testing.assert_close(losses(task), losses(elsewhere), rtol=1e-6, atol=0)
    alone = {"loss_type": "l1", "loss_weights": "1"}
    assert bool((losses(task) > losses(VideoMAETask.from_pretrained(written, changes=alone))).all())


def test_other_networks_than_those_of_the_file(written: Path, tmp_path: Path) -> None:
    """The given one measures, where both are there."""
    other = Path(write_networks(tmp_path)["siglip2"])
    weights = load_file(other / "model.safetensors")
    key = next(name for name in weights if name.startswith("vision_model.") and name.endswith("patch_embedding.weight"))
    save_file(weights | {key: 2 * weights[key]}, other / "model.safetensors")
    task = VideoMAETask.from_pretrained(written, feature_models={"siglip2": str(other)})
    assert not torch.allclose(losses(task), losses(VideoMAETask.from_pretrained(written)), rtol=1e-3)


def test_a_file_without_networks_takes_those_beside_it(copied: Path) -> None:
    weights = torch.load(copied / "videomae.pt", weights_only=True)
    expected = losses(VideoMAETask.from_pretrained(copied))
    torch.save({key: value for key, value in weights.items() if "siglip2" not in key}, copied / "videomae.pt")
    shutil.rmtree(copied.parent / "siglip2")
    write_networks(copied.parent / "whole")
    (copied.parent / "whole" / "siglip2").rename(copied.parent / "siglip2")
    torch.testing.assert_close(losses(VideoMAETask.from_pretrained(copied)), expected, rtol=1e-6, atol=0)


def test_a_stored_task_needs_nothing_else(copied: Path, tmp_path: Path) -> None:
    task = VideoMAETask.from_pretrained(copied)
    task.save_pretrained(tmp_path / "own")
    expected = losses(task)
    shutil.rmtree(copied.parent)
    again = VideoMAETask.from_pretrained(tmp_path / "own")
    assert torch.equal(losses(again), expected)
    assert again.model.config.loss_type == LOSSES["loss_type"]


def test_what_never_learns_keeps_still(written: Path) -> None:
    task = VideoMAETask.from_pretrained(written).requires_grad_(True)
    learning = {name for name, parameter in task.named_parameters() if parameter.requires_grad}
    assert learning and all(name.startswith("model.") for name in learning)
    assert not any(name.endswith(("position_embeddings", "decoder_pos_embed")) for name in learning)


def test_repositories_by_their_ids(copied: Path, tmp_path: Path) -> None:
    """Published, stored by us, and plain, from a cache of the hub without a connection; models that a repository names
    are repositories, too."""
    hub: dict[str, Any] = {"cache_dir": tmp_path / "cache", "local_files_only": True}
    expected = losses(VideoMAETask.from_pretrained(copied))
    VideoMAETask.from_pretrained(copied).save_pretrained(tmp_path / "own")
    changed(copied, "task", "recon_model", value="some/vit-mae")
    for loss in ("dinov2_reg", "siglip2"):
        changed(copied, *MODEL, f"{loss}_loss_config", value={"model": f"some/{loss}"})
        cached(tmp_path / "cache", f"some/{loss}", copied.parent / loss)
    cached(tmp_path / "cache", "some/vit-mae", copied.parent / "vit-mae")
    cached(tmp_path / "cache", "some/published", copied)
    cached(tmp_path / "cache", "some/own", tmp_path / "own")
    cached(tmp_path / "cache", "some/plain", write_vit_mae(tmp_path / "plain", pickled=True))
    assert torch.equal(losses(VideoMAETask.from_pretrained("some/published", **hub)), expected)
    assert torch.equal(losses(VideoMAETask.from_pretrained("some/own", **hub)), expected)
    assert VideoMAETask.from_pretrained("some/plain", **hub).grid.size == 265
    with pytest.raises(InputError, match=r"some/other: not a folder, and config\.json could not be fetched"):
        VideoMAETask.from_pretrained("some/other", **hub)


PIXEL_KEYS: list[list[dict[str, Any]]] = [
    [{}, {"do_rescale": True}, {"do_rescale": False}, {"rescale_factor": 1 / 255}],
    [{}, {"offset": True}, {"offset": False}, {"offset": None}],
    [
        {},
        {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]},
        {"image_mean": None, "image_std": 0.25},
        {"do_normalize": False},
    ],
    [{}, {"size": 40, "resample": 3}, {"do_center_crop": False}, {"crop_size": 30}, {"do_resize": False}],
]


def test_pixels_are_those_of_the_class_that_is_published() -> None:
    """For every combination of keys in the file; those that the class refuses are refused in one line. What is trained
    and measured on has its size already, and is never cropped."""
    picture = np.random.default_rng(0).integers(0, 256, (80, 100, 3), dtype=np.uint8)
    square = picture[:64, :64]
    for parts in itertools.product(*PIXEL_KEYS):
        keys = {name: value for part in parts for name, value in part.items()}
        if not keys.get("do_rescale", True) and keys.get("offset", True):
            with pytest.raises(InputError, match=r"^the file: .*'offset' needs 'do_rescale'"):
                published_processor(keys, 64, "the file")
            continue
        ours, reference = published_processor(keys, 64, "the file"), VivitImageProcessor(**keys | {"size": 64})
        wanted = torch.from_numpy(np.asarray(reference(picture)["pixel_values"][0][0], dtype=np.float32))
        torch.testing.assert_close(ours([picture])[0], wanted, rtol=1e-5, atol=1e-5, msg=str(keys))
        wanted = reference(square, do_resize=False, do_center_crop=False)["pixel_values"][0][0]
        values = ours.normalize(torch.from_numpy(square).permute(2, 0, 1).float() / 255)
        torch.testing.assert_close(values, torch.from_numpy(np.asarray(wanted, np.float32)), rtol=1e-5, atol=1e-5)


def test_pixels_come_from_the_file_of_its_start(copied: Path) -> None:
    """Grey, with the keys of a ViT-MAE, and where another class wrote all of them."""
    grey = torch.full((3, 1, 1), 128 / 255)
    file = copied.parent / "vit-mae" / "preprocessor_config.json"
    values = [-2.1008, -2.0182, -1.7870]  # (128 / 127.5 - 1 - mean) / std
    assert VideoMAETask.from_pretrained(copied).normalize(grey).flatten().tolist() == pytest.approx(values, abs=1e-4)
    halves = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "rescale_factor": 1 / 255, "offset": False}
    file.write_text(json.dumps(halves))
    task = VideoMAETask.from_pretrained(copied)
    assert task.normalize(grey).flatten().tolist() == pytest.approx([128 / 127.5 - 1] * 3, abs=1e-5)
    assert float(task.denormalize(task.normalize(grey)).mean()) == pytest.approx(128 / 255)


@pytest.mark.parametrize("pickled", [False, True])
def test_a_plain_vit_mae_is_a_start(pickled: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = write_vit_mae(tmp_path / "plain", pickled=pickled)
    grid = PatchGrid.of("16+32+64", 16)
    with caplog.at_level(logging.WARNING):
        task = load_task(str(folder), grid)
    assert "embeddings of scale and time start from random values" in caplog.text
    assert isinstance(task, VideoMAETask) and task.grid == grid
    model = ViTMAEForPreTraining.from_pretrained(write_vit_mae(tmp_path / "again"))
    ours = task.model.state_dict()
    for theirs, mine in (
        (model.vit.embeddings.cls_token, "vit.embeddings.cls_token"),
        (model.decoder.mask_token, "decoder.mask_token"),
        (model.decoder.decoder_layers[0].mlp.fc1.weight, "decoder.decoder_layers.0.intermediate.dense.weight"),
        (
            model.decoder.decoder_layers[0].attention.k_proj.bias,
            "decoder.decoder_layers.0.attention.attention.key.bias",
        ),
    ):
        assert torch.equal(theirs, ours[mine])
    added = [name for name in ours if "scale_embed" in name or "time_embed" in name]
    assert len(added) == 4 and all(float(ours[name].std()) > 0 for name in added)
    assert load_task(str(folder)).grid == PatchGrid.of("32+64+112+224", 16)  # the published one


def test_published_models_are_known_without_a_download(tmp_path: Path) -> None:
    """Ids that nobody can fetch here: the sizes are those of the published weights."""
    task = training_config(scales="32+64+112+224", max_num_frames=256)
    names = {"recon_model": "facebook/vit-mae-large"}
    model = task["task"]["recon_model_config"]
    model["dinov2_reg_loss_config"] = {"model": "facebook/dinov2-with-registers-base"}
    model["siglip2_loss_config"] = {"model": "google/siglip2-base-patch16-224"}
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(task | {"task": task["task"] | names}))
    found = read_published(path, tmp_path, {})
    with torch.device("meta"):
        counts = [sum(parameter.numel() for parameter in VideoMAE(found.config).parameters())]
        for loss, kind in (("dinov2_reg", Dinov2WithRegistersModel), ("siglip2", SiglipVisionModel)):
            network = kind(kind.config_class.from_dict(KNOWN[found.networks[loss]].config))
            counts.append(sum(parameter.numel() for parameter in network.parameters()))
    added = (4 + 256) * (1024 + 512)  # embeddings of scale and time
    assert counts == [329_541_888 + added, 86_583_552, 92_884_224]  # 2.04 GB in float32, as the published file has
    assert found.config.grid.size == 265 and set(found.networks.values()) < KNOWN.keys()


def changed(folder: Path, *keys: str, value: Any) -> None:
    """`config.yaml` with another value at a key."""
    stored = yaml.safe_load((folder / "config.yaml").read_text())
    node = stored
    for key in keys[:-1]:
        node = node[key]
    node[keys[-1]] = value
    (folder / "config.yaml").write_text(yaml.safe_dump(stored))


def weights_without(folder: Path, start: str, **more: torch.Tensor) -> None:
    stored = torch.load(folder / "videomae.pt", weights_only=True)
    kept = {key: value for key, value in stored.items() if not key.startswith(f"module.mae.{start}")}
    torch.save(kept | more, folder / "videomae.pt")


def infinite(name: str) -> dict[str, torch.Tensor]:
    return {f"module.mae.{name}": torch.full((CONFIG["decoder_hidden_size"],), float("inf"))}


class Runs:
    def __reduce__(self) -> Any:
        return (print, ("code of a checkpoint was run",))


def pickled(folder: Path) -> None:
    (folder / "videomae.pt").write_bytes(pickle.dumps({"module.mae.vit.layernorm.bias": Runs()}, protocol=2))


MODEL = ("task", "recon_model_config")
FAULTS = {
    "no config.yaml": (lambda f: (f / "config.yaml").unlink(), "there is no config.yaml in this folder"),
    "no videomae.pt": (lambda f: (f / "videomae.pt").unlink(), "has neither videomae.pt nor config.json"),
    "code": (pickled, "videomae.pt: damaged, or it holds objects that would run code"),
    "cut off": (
        lambda f: (f / "videomae.pt").write_bytes((f / "videomae.pt").read_bytes()[:5000]),
        "videomae.pt: damaged or not a file of torch.save",
    ),
    "no tensors": (lambda f: torch.save({"step": 3}, f / "videomae.pt"), "expected tensors by name"),
    "not finite": (
        lambda f: weights_without(f, "decoder.decoder_norm.bias", **infinite("decoder.decoder_norm.bias")),
        "decoder.decoder_norm.bias holds numbers that are not finite",
    ),
    "a network's pixels": (
        lambda f: (f.parent / "siglip2" / "preprocessor_config.json").write_text('{"image_std": [0.5, 0.0, 0.5]}'),
        "make no pixels",
    ),
    "a key missing": (
        lambda f: weights_without(f, "vit.embeddings.cls_token"),
        "the weights do not fit config.yaml: missing: vit.embeddings.cls_token",
    ),
    "an added key missing": (
        lambda f: weights_without(f, "decoder.time_embed"),
        "do not fit config.yaml: missing: decoder.time_embed",
    ),
    "a key too many": (
        lambda f: weights_without(f, "-", **{"module.mae.head.weight": torch.zeros(2)}),
        "do not fit config.yaml: left over: head.weight",
    ),
    "another start": (
        lambda f: write_vit_mae(f.parent / "vit-mae", hidden_size=64, num_hidden_layers=2),
        "of another shape: decoder.decoder_embed.weight (stored 32x32, expected 32x64)",
    ),
    "a network that is not whole": (
        lambda f: weights_without(f, "dinov2_reg.embeddings.cls_token"),
        "are not those of the model for the loss dinov2_reg: missing: embeddings.cls_token",
    ),
    "another network": (
        lambda f: changed(f, *MODEL, "siglip2_loss_config", value={"model": "dinov2_reg"}),
        "is a 'dinov2_with_registers', the loss siglip2 needs a siglip or siglip_vision_model",
    ),
    "no task": (lambda f: (f / "config.yaml").write_text("model: {}"), "config.yaml: has no 'task'"),
    "no yaml": (lambda f: (f / "config.yaml").write_text("task: [}"), "config.yaml: not readable as yaml"),
    "objects in yaml": (
        lambda f: (f / "config.yaml").write_text("task: !!python/object/apply:print [x]"),
        "config.yaml: not readable as yaml",
    ),
    "no start": (lambda f: changed(f, "task", "recon_model", value=None), "'recon_model' must be text, got None"),
    "a start that is not there": (
        lambda f: changed(f, "task", "recon_model", value="gone/vit/mae"),
        "its config.yaml names the model 'gone/vit/mae', whose files are needed",
    ),
    "eager": (lambda f: changed(f, "task", "attn_mode", value="eager"), "only 'sdpa' is supported"),
    "not causal": (lambda f: changed(f, *MODEL, "causal", value=False), "only hidden_act 'gelu' and causal attention"),
    "a reference to nothing": (
        lambda f: changed(f, "task", "scales", value="${model.size}"),
        "${model.size} refers to a key that is not there",
    ),
    "a circle": (lambda f: changed(f, "model", "scales", value="${task.scales}"), "refers to itself"),
    "losses without weights": (lambda f: changed(f, *MODEL, "loss_weights", value="1"), "need as many weights"),
    "another loss": (lambda f: changed(f, *MODEL, "loss_type", value="l1+lpips+l1"), "loss 'lpips' is not known"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_are_named_in_one_line(fault: str, copied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    damage, message = FAULTS[fault]
    damage(copied)
    with pytest.raises(InputError) as refused:
        VideoMAETask.from_pretrained(copied)
    told = str(refused.value)
    assert message in told
    assert "\n" not in told and str(copied.parent) in told
    assert "was run" not in capsys.readouterr().out


def test_weights_of_another_model_are_refused(tmp_path: Path) -> None:
    folder = write_vit_mae(tmp_path / "plain")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "autogaze"}))
    with pytest.raises(InputError, match="model_type is 'autogaze', not 'vit_mae'"):
        VideoMAETask.from_pretrained(folder)
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "model.safetensors").unlink()
    with pytest.raises(InputError, match=r"has neither model\.safetensors nor pytorch_model\.bin"):
        VideoMAETask.from_pretrained(folder)
    assert CONFIG["hidden_size"] == config["hidden_size"]

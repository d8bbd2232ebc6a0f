"""Every family is used in the same way: from a folder on the command line, with placeholders that no table has, from
outside the package."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import autogaze_mllm as am
from autogaze_mllm.cli import main
from autogaze_mllm.mllm import families
from autogaze_mllm.mllm.families import family_of_type
from autogaze_mllm.mllm.families.llava.llava import LlavaFamily

from ...helpers.families.conformance import (
    ALL,
    QUESTION,
    assert_close,
    each,
    frames_of,
    holds,
    keep,
    keep_all,
    prepared,
    third,
    wrapped,
    written,
)
from ...helpers.families.models import NAMES, build
from ...helpers.families.reference import greedy


@holds("ask")
@each(ALL, quick=["llava_clip", "qwen3_vl", "gemma4", "internvl"])
def test_a_folder_is_asked_from_the_command_line(
    name: str, short_clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As it is published, with the family's own settings, scales and attention."""
    written(name, tmp_path)
    options = ["--gaze", "random", "--frames", "4", "--ratio", "0.3", "--max-new-tokens", "3", "--json"]
    capsys.readouterr()  # notices of whoever wrote the folder
    assert main(["ask", str(short_clip), "what moves?", "--model", str(tmp_path), *options]) == 0
    told = json.loads(capsys.readouterr().out)
    assert isinstance(told["reply"], str)
    assert told["new_tokens"] > 0
    assert 0 < told["visual_tokens"] <= told["patches"] + told["frames"] < told["patches_total"]


@pytest.fixture
def far_away(name: str) -> Iterator[tuple[am.GazedModel, am.GazedModel]]:
    """A model, and the same whose placeholders lie beyond the embedding table."""
    plain = wrapped(name)[1]
    base, preprocessing = build(name)
    rows = base.get_input_embeddings().weight.shape[0]
    tokenizer = preprocessing.tokenizer
    tokenizer.add_tokens([f"<far{number}>" for number in range(rows - len(tokenizer) + 12)], special_tokens=True)
    alike = base.config.image_token_id == getattr(base.config, "video_token_id", base.config.image_token_id)
    base.config.image_token_id = rows + 3
    if getattr(base.config, "video_token_id", None) is not None:
        base.config.video_token_id = rows + (3 if alike else 4)
    scales = list(plain.tower.grid.scales)
    yield plain, am.wrap(base, "all", processor=preprocessing, scales=scales, frame_independent=True, cache=False)


@holds("far")
@each(NAMES)
def test_placeholders_may_lie_beyond_the_embedding_table(name: str, far_away: Any) -> None:
    """Also where generate looks at the prompt's ids."""
    plain, far = far_away
    rows = far.base.get_input_embeddings().weight.shape[0]
    found = []
    for model in (plain, far):
        video = keep(model, frames_of(name, count=4), third(name))
        inputs = prepared(name, model, QUESTION, [video])
        assert (int(inputs["input_ids"].max()) >= rows) is (model is far)
        with torch.no_grad():
            logits = model(**inputs).logits
        answer = model.generate(**inputs, **greedy(plain.preprocessing, 3), repetition_penalty=1.1)
        found.append((logits, answer.sequences))
    assert_close(name, found[1][0], found[0][0])
    assert torch.equal(found[1][1], found[0][1])


@each(["llava"])
def test_a_siglip_llava_keeps_the_first_patch_that_its_base_drops(name: str) -> None:
    """select_strategy "default" is meant for a class token, and SigLIP has none: the base drops the upper left patch of
    every picture. Of several scales there is no such patch, so that gaze keeps what was chosen."""
    base, model = wrapped(name)
    frames, before = frames_of(name), base.config.vision_feature_select_strategy
    base.config.vision_feature_select_strategy = "default"
    try:
        gazed = keep_all(model, frames)
        item = prepared(name, model, QUESTION, [gazed])["media"][0][0]
        assert item.tokens == len(gazed)
        with model.disabled():
            dense = prepared(name, model, QUESTION, [am.Video(frames, fps=2)])["media"][0][0]
        assert dense.tokens == len(gazed) - len(frames)
        with torch.no_grad():
            inputs = prepared(name, model, QUESTION, [gazed])
            kept = model.embed(inputs["input_ids"], inputs["media"])
            places = model.family.is_visual(inputs["input_ids"])
            tokens = kept[places].unflatten(0, (len(frames), -1))
            assert torch.allclose(tokens[:, 1:].flatten(0, 1), model.family.dense_features(dense.content), atol=1e-5)
    finally:
        base.config.vision_feature_select_strategy = before


@pytest.fixture
def known() -> Iterator[None]:
    """Families that a test makes known are forgotten."""
    before = dict(families.FAMILIES)
    yield
    families.FAMILIES.clear()
    families.FAMILIES.update(before)


def of_my_own() -> tuple[Any, Any]:
    """A LLaVA that says it is something else."""
    base, preprocessing = build("llava")
    base.config.model_type = "my_llava"
    return base, preprocessing


@pytest.mark.usefixtures("known")
def test_a_family_of_ones_own_is_registered() -> None:
    base, preprocessing = of_my_own()
    with pytest.raises(am.InputError, match="model_type my_llava"):
        am.wrap(base, "all", processor=preprocessing)

    @am.register_family
    class MyFamily(LlavaFamily):
        model_type, title, example = "my_llava", "My LLaVA", "me/my-llava"

    model = am.wrap(base, "all", processor=preprocessing, scales="64", frame_independent=True, cache=False)
    assert type(model.family) is MyFamily
    plain = wrapped("llava")[1]
    frames = frames_of("llava")
    logits = []
    for one in (model, plain):
        with torch.no_grad():
            logits.append(one(**prepared("llava", one, QUESTION, [keep_all(one, frames)])).logits)
    assert torch.equal(*logits)


@pytest.mark.usefixtures("known")
def test_a_family_of_ones_own_is_refused_where_it_does_not_fit() -> None:
    with pytest.raises(am.InputError, match="no family adapter"):
        am.register_family(int)
    with pytest.raises(am.InputError, match="model_type llava is already that of LlavaFamily"):
        am.register_family(type("Other", (LlavaFamily,), {}))
    assert am.register_family(LlavaFamily) is LlavaFamily


def test_a_family_of_ones_own_that_tells_its_llm_more_is_not_packed() -> None:
    told = type("Told", (LlavaFamily,), {"token_types": lambda self, input_ids, answers: {}})
    _, model = wrapped("llava")
    assert model.family.packing
    assert not told(model.base, model.preprocessing).packing


PACKAGE = """
from autogaze_mllm.mllm.families.llava.llava import LlavaFamily


class PackagedFamily(LlavaFamily):
    model_type, title, example = "packaged_llava", "Packaged LLaVA", "me/packaged-llava"
"""


@pytest.mark.usefixtures("known")
def test_an_installed_package_brings_its_family(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By its entry point, without an import of the user's."""
    (tmp_path / "packaged_llava.py").write_text(PACKAGE)
    told = tmp_path / "packaged_llava-1.0.dist-info"
    told.mkdir()
    (told / "METADATA").write_text("Metadata-Version: 2.1\nName: packaged-llava\nVersion: 1.0\n")
    (told / "entry_points.txt").write_text("[autogaze_mllm.families]\npackaged_llava = packaged_llava:PackagedFamily\n")
    with pytest.raises(am.InputError, match="not a supported family"):
        family_of_type("packaged_llava", "a folder")
    monkeypatch.syspath_prepend(tmp_path)
    assert family_of_type("packaged_llava", "a folder").title == "Packaged LLaVA"
    base, preprocessing = build("llava")
    base.config.model_type = "packaged_llava"
    model = am.wrap(base, "all", processor=preprocessing, scales="64", cache=False)
    inputs = prepared("llava", model, QUESTION, [keep_all(model, frames_of("llava"))])
    assert model.generate(**inputs, **greedy(model.preprocessing, 2)).sequences.shape == (1, 2)

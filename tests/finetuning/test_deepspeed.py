"""Real DeepSpeed: two processes on the CPU, ZeRO-2 and ZeRO-3, on samples of all kinds."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import autogaze_mllm as am
from autogaze_mllm.cli import main
from autogaze_mllm.finetuning.deepspeed import FOLDER, NAMES, deepspeed_config, offloads, zero_stage
from autogaze_mllm.finetuning.run import finetune

from ..helpers.families.models import write_folder
from ..helpers.files.checkpoints import write_nvila
from ..helpers.files.finetune_files import config, launch, mixed_data, save_base

needs_deepspeed = pytest.mark.skipif(importlib.util.find_spec("deepspeed") is None, reason="deepspeed is not installed")
RATES = ["--tower-lr", "1e-3", "--projector-lr", "1e-3", "--llm-lr", "1e-3"]
STEPS = 6


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A base model and the mixed samples."""
    folder = tmp_path_factory.mktemp("deepspeed")
    save_base(folder / "base")
    mixed_data(folder / "data")
    return folder


def arguments(place: Path, output: str, *more: str) -> list[str]:
    told = ["--data", place / "data" / "mixed.jsonl", "--model", place / "base", "--output", place / output]
    told += ["--gaze", "pixel-diff", "--frames", "4", "--ratio", "0.5", "--cache", place / "gazed"]
    told += ["--max-steps", STEPS, "--log-steps", "1", "--save-steps", "3", "--workers", "0", "--batch-size", "2"]
    return [*map(str, told), *RATES, *more]


@pytest.fixture(scope="module")
def plain(place):
    """One process, the same global batch, without DeepSpeed."""
    model = am.wrap(place / "base", "pixel-diff", frames=4, ratio=0.5, cache=False)
    return finetune(
        model, config(place / "data" / "mixed.jsonl", place / "plain", max_steps=STEPS), str(place / "base")
    )


@pytest.fixture(scope="module")
def zero3(place):
    return launch(arguments(place, "zero3", "--deepspeed", "zero3"))


@needs_deepspeed
@pytest.mark.slow
def test_zero2_learns_as_one_process_does(place, plain):
    found = launch(arguments(place, "zero2", "--deepspeed", "zero2"))
    assert found["losses"][-1] < found["losses"][0] - 0.2
    assert found["losses"] == pytest.approx(plain["losses"], abs=1e-3)


@needs_deepspeed
@pytest.mark.slow
def test_zero3_learns_as_one_process_does(zero3, plain):
    assert zero3["losses"][-1] < zero3["losses"][0] - 0.2
    assert zero3["losses"] == pytest.approx(plain["losses"], abs=1e-3)


@needs_deepspeed
@pytest.mark.slow
def test_a_zero3_checkpoint_resumes_with_the_identical_losses(place, zero3):
    shutil.copytree(place / "zero3" / "checkpoint-3", place / "resumed" / "checkpoint-3")
    found = launch(arguments(place, "resumed", "--deepspeed", "zero3", "--resume"))
    assert found["steps"] == STEPS
    assert found["losses"] == zero3["losses"]
    for path in (place / "zero3").glob("[!c]*/*.safetensors"):
        other = load_file(place / "resumed" / path.relative_to(place / "zero3"))
        assert all(torch.equal(tensor, other[name]) for name, tensor in load_file(path).items())


@needs_deepspeed
@pytest.mark.slow
def test_a_zero3_result_loads_in_one_process_with_the_gathered_weights(place, zero3, plain):
    """Without DeepSpeed, from what was written, against the float32 weights that DeepSpeed's own files hold."""
    checkpoint = place / "zero3" / "checkpoint-6"
    loaded = dict(am.load(checkpoint, cache=False).family.base.named_parameters())
    read = (
        "import sys, torch; from safetensors.torch import save_file;"
        "from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint as read;"
        "save_file({name: part.clone() for name, part in read(sys.argv[1]).items()}, sys.argv[2])"
    )
    command = [sys.executable, "-c", read, str(checkpoint), str(place / "gathered.safetensors")]
    subprocess.run(command, check=True, capture_output=True)
    gathered = sorted(load_file(place / "gathered.safetensors").values(), key=lambda part: part.flatten().tolist())
    own = sorted((part.detach() for part in loaded.values()), key=lambda part: part.flatten().tolist())
    assert len(own) == len(gathered)
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(own, gathered, strict=True))
    # And they are those of the plain training, up to rounding.
    alone = am.load(place / "plain", cache=False).family.base
    for name, parameter in alone.named_parameters():
        assert torch.allclose(loaded[name], parameter, atol=2e-3), name


@needs_deepspeed
@pytest.mark.slow
def test_zero3_with_lora_trains_and_its_result_answers(place):
    more = ["--deepspeed", str(FOLDER / "zero3.json"), "--train", "lora", "--tower", "lora", "--lora-rank", "4"]
    found = launch(arguments(place, "lora", *more))
    assert found["losses"][-1] < found["losses"][0]
    assert {path.name for path in (place / "lora").iterdir() if path.is_dir()} >= {"adapter", "projector"}
    am.load(place / "lora", cache=False).ask(place / "data" / "0.mp4", "what?", max_new_tokens=2)


@needs_deepspeed
@pytest.mark.slow
@pytest.mark.parametrize("more", [["--deepspeed", "zero3_offload"], ["--deepspeed", "zero2_offload"], []], ids=str)
def test_other_engines_learn_as_one_process_does(more, place, plain):
    """Offload, and plain data parallel training."""
    found = launch(arguments(place, "other" + "".join(more), *more))
    assert found["losses"] == pytest.approx(plain["losses"], abs=1e-3)


@needs_deepspeed
@pytest.mark.slow
def test_zero3_trains_a_natively_loaded_model_whose_head_is_its_embedding(place):
    """These weights are used before and after the LLM's layers, and only the former are gathered together."""
    write_nvila(place / "tied", tied=True)
    settings = {"frames": 4, "thumbnails": 2, "max_tiles": 2, "ratio": 0.5}
    model = am.wrap(place / "tied", "pixel-diff", cache=False, **settings)
    chosen = config(place / "data" / "mixed.jsonl", place / "tied alone", max_steps=STEPS)
    alone = finetune(model, chosen, str(place / "tied"))
    more = ["--model", str(place / "tied"), "--thumbnails", "2", "--max-tiles", "2", "--deepspeed", "zero3"]
    found = launch(arguments(place, "tied3", *more))
    assert found["losses"] == pytest.approx(alone["losses"], abs=1e-3)


@needs_deepspeed
def test_presets_do_what_their_names_say():
    assert {path.stem for path in FOLDER.glob("*.json")} == set(NAMES)
    for name in NAMES:
        preset = deepspeed_config(name)
        assert (zero_stage(preset), offloads(preset)) == (int(name[4]), name.endswith("_offload"))
        assert preset == deepspeed_config(FOLDER / f"{name}.json")


def test_deepspeed_is_asked_for_where_it_is_missing(place, monkeypatch, capsys):
    real = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *more: None if name == "deepspeed" else real(name, *more)
    )
    assert main(["finetune", *arguments(place, "none", "--deepspeed", "zero2")]) == 2
    assert "pip install 'autogaze_mllm[deepspeed]'" in capsys.readouterr().err
    assert main(["finetune", *arguments(place, "none", "--deepspeed", "zero9")]) == 2
    assert "zero9: neither a file nor one of zero2, zero3" in capsys.readouterr().err


@needs_deepspeed
@pytest.mark.slow
@pytest.mark.parametrize("name", ["qwen3_vl", "gemma3"])
def test_zero3_learns_with_deepstack_types_and_hooks(name, tmp_path):
    """Bases whose visual tokens are more than embeddings: those of Qwen3-VL reach three layers of the LLM, Gemma's are
    put in by a hook."""
    write_folder(name, tmp_path / "base")
    mixed_data(tmp_path / "data")
    model = am.wrap(tmp_path / "base", "pixel-diff", frames=4, ratio=0.5, cache=False)
    asked = config(tmp_path / "data" / "mixed.jsonl", tmp_path / "plain", max_steps=3)
    plain = finetune(model, asked, str(tmp_path / "base"))
    found = launch(arguments(tmp_path, "zero3", "--deepspeed", "zero3", "--max-steps", "3"))
    assert found["losses"] == pytest.approx(plain["losses"], abs=2e-3)  # the later ones are of weights that have learnt
    assert abs(found["losses"][-1] - found["losses"][0]) > 0.02

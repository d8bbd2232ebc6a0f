"""Two real processes on the CPU: FSDP, and the gaze model trained along with DDP and ZeRO-2."""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path

import pytest
import torch
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils.launch import prepare_multi_gpu_env
from safetensors.torch import load_file

import autogaze_mllm as am
from autogaze_mllm.cli import main
from autogaze_mllm.evaluation.benchmarks.synthetic import write_made_up
from autogaze_mllm.finetuning.run import finetune

from ..helpers.files.finetune_files import config, launch, mixed_data, save_base
from ..helpers.paths import ROOT
from ..helpers.tiny_models import tiny_gaze

SCRIPTS = ROOT / "scripts"
needs_deepspeed = pytest.mark.skipif(importlib.util.find_spec("deepspeed") is None, reason="deepspeed is not installed")
STEPS = 4


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("processes")
    save_base(folder / "base")
    mixed_data(folder / "data")
    tiny_gaze().save_pretrained(folder / "gaze")
    write_made_up("hlvid", folder / "hlvid", videos=2)
    return folder


def arguments(place: Path, output: str, gaze: str, *more: str) -> list[str]:
    told = ["--data", place / "data" / "mixed.jsonl", "--model", place / "base", "--output", place / output]
    told += ["--gaze", gaze, "--frames", "4", "--ratio", "0.5", "--loss", "0", "--cache", place / "gazed"]
    told += ["--max-steps", STEPS, "--log-steps", "1", "--workers", "0", "--batch-size", "2"]
    return [*map(str, told), *more]


# -- FSDP --------------------------------------------------------------------------------------------------------


@pytest.fixture
def fsdp(monkeypatch):
    """What `accelerate launch --config_file scripts/fsdp.yaml` tells its processes. (It starts none without GPUs.)"""
    told = ["--config_file", str(SCRIPTS / "fsdp.yaml"), "--num_processes", "2", "--module", "autogaze_mllm.cli"]
    chosen, _, _ = _validate_launch_command(launch_command_parser().parse_args(told))
    for name, value in prepare_multi_gpu_env(chosen).items():
        if "FSDP" in name:
            monkeypatch.setenv(name, value)


RATES = ["--tower-lr", "1e-3", "--projector-lr", "1e-3", "--llm-lr", "1e-3"]


@pytest.mark.slow
def test_fsdp_learns_as_one_process_does_and_resumes(place, fsdp):
    model = am.wrap(place / "base", "pixel-diff", frames=4, ratio=0.5, loss=0, cache=False)
    data = place / "data" / "mixed.jsonl"
    plain = finetune(model, config(data, place / "plain", max_steps=STEPS), str(place / "base"))
    options = [*RATES, "--save-steps", "2"]
    found = launch(arguments(place, "fsdp", "pixel-diff", *options))
    assert found["losses"] == pytest.approx(plain["losses"], abs=1e-3)
    loaded = dict(am.load(place / "fsdp", cache=False).family.base.named_parameters())
    for name, parameter in model.family.base.named_parameters():
        assert torch.allclose(loaded[name], parameter, atol=2e-3), name
    shutil.copytree(place / "fsdp" / "checkpoint-2", place / "resumed" / "checkpoint-2")
    again = launch(arguments(place, "resumed", "pixel-diff", *options, "--resume"))
    assert again["losses"] == found["losses"]
    for path in (place / "fsdp").glob("[!c]*/*.safetensors"):
        other = load_file(place / "resumed" / path.relative_to(place / "fsdp"))
        assert all(torch.equal(tensor, other[name]) for name, tensor in load_file(path).items())


# -- the gaze model, trained along -------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["ddp", pytest.param("zero2", marks=needs_deepspeed)])
def test_the_gaze_model_is_trained_by_two_processes(engine, place):
    more = ["--train", "gaze", "--gaze-lr", "1e-3", "--rollouts", "2", "--projector", "full", "--save-steps", "0"]
    more += ["--eval-data", str(place / "data" / "mixed.jsonl"), "--eval-steps", "2"]
    more += ["--eval-benchmark", f"hlvid={place / 'hlvid'}", "--eval-limit", "6"]
    more += [] if engine == "ddp" else ["--deepspeed", engine]
    found = launch(arguments(place, engine, str(place / "gaze"), *more))
    assert len(found["losses"]) == STEPS
    assert len(found["eval_losses"]) == len(found["eval_accuracies"]) == 2
    # Each process answered a share of the benchmark's questions.
    folder = place / engine / "benchmark" / f"hlvid-{STEPS}"
    shares = [len(path.read_text().splitlines()) for path in sorted(folder.glob("*.jsonl"))]
    assert len(shares) == 2 and all(shares) and sum(shares) == 6
    loaded, before = am.load(place / engine, cache=False), tiny_gaze().state_dict()
    moved = {name for name, tensor in loaded.gaze.state_dict().items() if not torch.equal(tensor, before[name])}
    assert len(moved) > len(before) // 2


def test_what_cannot_be_trained_so_is_refused(place, monkeypatch, capsys):
    train = ["--train", "gaze"]
    for told, message in {
        ("pixel-diff", *train): "pixel-diff has no weights to train",
        (str(place / "gaze"), *train, "--packing"): "packing does not go with training gaze",
        (str(place / "gaze"), *train, "--rollouts", "1"): "comparing at least 2 rollouts, got 1",
        (str(place / "gaze"), *train, "--deepspeed", "zero3"): "training gaze does not go with ZeRO-3",
    }.items():
        if "zero3" not in told or importlib.util.find_spec("deepspeed"):
            assert main(["finetune", *arguments(place, "none", *told), "--cpu"]) == 2
            assert message in capsys.readouterr().err
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    assert main(["finetune", *arguments(place, "none", str(place / "gaze"), *train), "--cpu"]) == 2
    assert "training gaze does not go with FSDP" in capsys.readouterr().err

"""The command: dry run, the launcher script, the memory that is told, and several trainings that gaze at once."""

from __future__ import annotations

import json
import os
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

import autogaze_mllm as am
from autogaze_mllm.cli import main
from autogaze_mllm.finetuning.config import PRESETS, AdapterConfig, FinetuneConfig, PartConfig
from autogaze_mllm.finetuning.data.dataset import ConversationDataset, collator
from autogaze_mllm.finetuning.data.media_store import MediaStore
from autogaze_mllm.finetuning.data.samples import load_samples
from autogaze_mllm.finetuning.memory_estimate import Load, ModelDims, estimate_memory
from autogaze_mllm.finetuning.parts import part_sizes, switch_on
from autogaze_mllm.finetuning.run import model_shape
from autogaze_mllm.finetuning.trained_model import TrainedModel
from autogaze_mllm.gaze.cache import VideoCache

from ..helpers.files.finetune_files import ALL, mixed_data, save_base, wrapped
from ..helpers.paths import ROOT


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return mixed_data(tmp_path_factory.mktemp("finetune") / "data")


def options(data: Path, *more: str) -> list[str]:
    told = ["finetune", "--data", str(data), "--gaze", "pixel-diff", "--frames", "4", "--cpu", "--json"]
    return [*told, "--cache", str(data.parent / "gazed"), *more]


def test_a_dry_run_tells_what_the_training_would_do(data, tmp_path, capsys):
    base = save_base(tmp_path / "base")
    capsys.readouterr()
    more = ["--model", str(base), "--train", "lora", "--lora-rank", "4", "--epochs", "2", "--batch-size", "4"]
    assert main(options(data, *more, "--dry-run")) == 0
    told = json.loads(capsys.readouterr().out)
    assert not (tmp_path / "out").exists()
    model = am.wrap(base, "pixel-diff", frames=4, cache=False)
    for part in ALL:
        own = [p for n, p in model.family.base.named_parameters() if model.family.part_of(n) == part]
        added = told["parts"][part]["trained"] if part == "llm" else 0
        assert told["parts"][part]["parameters"] - added == sum(p.numel() for p in own)
    assert told["parts"]["tower"]["trained"] == 0
    assert told["parts"]["projector"]["trained"] == told["parts"]["projector"]["parameters"]
    # Rank 4, on seven linear layers in each of two layers: 64 wide, 128 inside, 32 for keys and values.
    assert told["parts"]["llm"]["trained"] == 4 * 2 * (2 * 128 + 2 * 96 + 3 * 192)
    assert (told["samples"], told["videos"], told["steps"]) == (8, 3, 4)
    lengths = [len(model.prepare(f"<video>\n{'what is it?'}", [data.parent / "0.mp4"])["input_ids"][0])]
    assert told["tokens"]["min"] < lengths[0] < told["tokens"]["max"] < told["tokens"]["sum"]
    assert told["visual_tokens"]["min"] == 0
    assert main(options(data, *more, "--output", str(tmp_path / "out"), "--save-steps", "0")) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result["steps"] == told["steps"]
    assert result["gazed"] == 0  # the dry run had done it


def test_the_built_in_model_trains_and_answers(data, tmp_path, capsys, clip):
    output = str(tmp_path / "out")
    assert main(options(data, "--output", output, "--max-steps", "1", "--workers", "0")) == 0
    capsys.readouterr()
    assert main(["ask", str(clip), "what?", "--model", output, "--frames", "4", "--max-new-tokens", "2", "--json"]) == 0
    assert "reply" in json.loads(capsys.readouterr().out)
    assert main(options(data, "--model", output, "--output", str(tmp_path / "next"))) == 2
    assert "holds only what was trained of another model: `autogaze-mllm merge" in capsys.readouterr().err


@pytest.mark.slow
def test_the_launcher_script_trains_in_two_processes(data, tmp_path):
    base = save_base(tmp_path / "base")
    wanted = {"MODEL": str(base), "DATA": str(data), "OUTPUT": str(tmp_path / "out"), "PROCESSES": "2"}
    command = [str(ROOT / "scripts" / "finetune.sh"), *options(data)[3:], "--max-steps", "2", "--workers", "0"]
    path = f"{ROOT / '.venv' / 'bin'}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, **wanted, "PATH": path, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads(done.stdout.strip().splitlines()[-1])["steps"] == 2
    am.load(tmp_path / "out", cache=False)


BAD = [
    (["--epochs", "0"], "epochs must be above 0"),
    (["--projector", "lora"], "LoRA is for the tower and the LLM"),
    (["--llm-lr", "7"], "a learning rate must lie between 0 and 1"),
    (["--tower", "off", "--projector", "off", "--llm", "off"], "nothing is switched on"),
    (["--eval-steps", "5"], "eval_steps needs eval_data"),
    (["--lora-rank", "0"], "LoRA needs a rank of at least 1"),
    (["--max-length", "0"], "max_length must be a whole number of at least 1"),
]


@pytest.mark.parametrize(("more", "message"), BAD, ids=[message for _, message in BAD])
def test_bad_options_get_one_line(more, message, data, tmp_path, capsys):
    assert main(options(data, "--output", str(tmp_path / "out"), *more)) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error
    with pytest.raises(SystemExit):
        main(["finetune", "--train", "everything", "--data", str(data)])


def test_a_configuration_is_checked_where_it_is_made():
    for wrong in ({"batch_size": 0}, {"warmup": 1.0}, {"too_long": "drop"}, {"report": "mail"}, {"parts": {}}):
        with pytest.raises(am.InputError):
            FinetuneConfig(data=("a.json",), output="out", **wrong)


# -- gazing by several at once -----------------------------------------------------------------------------------


def test_trainings_side_by_side_never_gaze_the_same_video_twice(data, tmp_path):
    samples = load_samples([data])

    def prepare(_: int) -> int:
        model = wrapped()
        model.cache = VideoCache(tmp_path / "gazed")
        return MediaStore(model, model.cache).prepare(samples)["gazed"]

    with ThreadPoolExecutor(4) as threads:
        made = list(threads.map(prepare, range(4)))
    assert sum(made) == 3


# -- memory ------------------------------------------------------------------------------------------------------


def measured(data: Path, parts: dict[str, PartConfig]):
    """A training step of all samples: the estimate, and the bytes that were really there."""
    model = wrapped()
    model.cache = VideoCache(data.parent / "gazed")
    switch_on(model, parts, AdapterConfig(rank=4))
    samples = load_samples([data])
    store = MediaStore(model, model.cache)
    store.prepare(samples)
    dataset = ConversationDataset(samples, model, store, 4096)
    batch = collator(0, packing=False)([dataset[number] for number in range(8)])
    trained = TrainedModel(model)
    saved: dict[int, int] = {}
    weights = {part.untyped_storage().data_ptr() for part in model.parameters()}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    optimizer = torch.optim.AdamW([part for part in trained.parameters() if part.requires_grad])
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = trained(**batch)["loss"]
    loss.backward()
    optimizer.step()
    load = Load(
        batch["input_ids"].numel(),
        sum(store.patches(sample) for sample in samples),
        sum(dataset.learnt),
    )
    estimate = estimate_memory(model_shape(model), part_sizes(model), parts, load, bf16=False, checkpointing=False)
    actual = {
        "weights": sum(part.nbytes for part in model.parameters()),
        "gradients": sum(part.grad.nbytes for part in model.parameters() if part.grad is not None),
        "optimizer": sum(value.nbytes for state in optimizer.state.values() for value in state.values()),
        "activations": sum(saved.values()),
    }
    return estimate, actual


@pytest.mark.parametrize("preset", ["sft", "lora"])
def test_the_estimate_is_what_a_step_really_keeps(preset, data):
    estimate, actual = measured(data, PRESETS[preset])
    assert estimate.weights == actual["weights"]
    assert estimate.gradients == actual["gradients"]
    assert estimate.optimizer == pytest.approx(actual["optimizer"], rel=0.01)  # which also counts its steps
    print(preset, estimate.activations, actual["activations"])
    assert 0.6 < estimate.activations / actual["activations"] < 1.5


def test_zero_divides_what_it_says():
    shape = ModelDims.of(wrapped().config)
    sizes = {part: {"parameters": 10**9, "trained": 10**9} for part in ("tower", "projector", "llm")}

    def told(**more):
        return estimate_memory(shape, sizes, PRESETS["sft"], Load(1, 1, 1), bf16=True, processes=8, **more)

    two, three, off = told(zero=2), told(zero=3), told(zero=3, offload=True)
    assert two.weights == 6 * 10**9 and three.weights < two.weights
    assert two.optimizer == three.optimizer == 12 * 3 * 10**9 // 8
    assert off.optimizer == 0 and off.host > three.optimizer and off.device < three.device

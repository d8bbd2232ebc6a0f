"""Fine-tunings that meet damaged checkpoints, numbers that are none, a full disk and another training."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import autogaze_mllm as am
from autogaze_mllm.cli import main
from autogaze_mllm.common.errors import DivergenceError
from autogaze_mllm.finetuning.checkpoints import check_whole, latest_checkpoint
from autogaze_mllm.finetuning.config import PartConfig
from autogaze_mllm.finetuning.deepspeed import deepspeed_config
from autogaze_mllm.finetuning.run import finetune

from ..helpers.files.finetune_files import ALL, config, mixed_data, save_base, wrapped

OFF = {part: PartConfig() for part in ALL}
PROJECTOR = {**OFF, "projector": PartConfig("full", 1e-3)}


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return mixed_data(tmp_path_factory.mktemp("finetune") / "data")


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    return save_base(tmp_path_factory.mktemp("base") / "base")


def fresh(base: Path) -> am.GazedModel:
    return am.wrap(base, "pixel-diff", frames=4, ratio=0.5, cache=False)


def options(**changes: Any) -> dict[str, Any]:
    return {"parts": PROJECTOR, "max_steps": 3, "save_steps": 1, "save_total_limit": 5, **changes}


@pytest.fixture(scope="module")
def whole(data, base, tmp_path_factory) -> tuple[Path, list[float]]:
    """A training of three updates with a checkpoint of each, and its losses."""
    output = tmp_path_factory.mktemp("whole") / "out"
    return output, finetune(fresh(base), config(data, output, **options()), str(base))["losses"]


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def change(path: Path, **values: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


class Trap:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return Path.touch, (self.mark,)


STATE = "trainer_state.json"
DAMAGES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no state": (lambda f: (f / STATE).unlink(), STATE),
    "cut state": (lambda f: cut(f / STATE), "not readable as json"),
    "state without a step": (lambda f: (f / STATE).write_text("{}"), "'global_step' is missing"),
    "state of another step": (lambda f: change(f / STATE, global_step=1), "is of step 1"),
    "odd history": (lambda f: change(f / STATE, log_history=[1]), "'log_history' must be a list"),
    "no optimizer": (lambda f: (f / "optimizer.pt").unlink(), "has no optimizer.pt"),
    "cut optimizer": (lambda f: cut(f / "optimizer.pt"), "optimizer.pt: damaged"),
    "no scheduler": (lambda f: (f / "scheduler.pt").unlink(), "has no scheduler.pt"),
    "empty scheduler": (lambda f: (f / "scheduler.pt").write_bytes(b""), "scheduler.pt: damaged"),
    "no random state": (lambda f: (f / "rng_state.pth").unlink(), "has no rng_state.pth"),
    "cut random state": (lambda f: cut(f / "rng_state.pth"), "rng_state.pth: damaged"),
    "no weights": (lambda f: (f / "projector/model.safetensors").unlink(), "projector"),
    "cut weights": (lambda f: cut(f / "projector/model.safetensors"), "model.safetensors: damaged"),
    "no settings": (lambda f: (f / "autogaze_mllm.json").unlink(), "autogaze_mllm.json"),
    "odd settings": (lambda f: change(f / "autogaze_mllm.json", tuned=[]), "'tuned' must be an object"),
}


@pytest.mark.parametrize("what", DAMAGES)
def test_the_newest_whole_checkpoint_is_taken_and_the_others_are_told_of(what, whole, data, tmp_path, caplog):
    shutil.copytree(whole[0], tmp_path / "out")
    damage, told = DAMAGES[what]
    damage(tmp_path / "out/checkpoint-3")
    (tmp_path / "out/checkpoint-x").mkdir()
    found = latest_checkpoint(config(data, tmp_path / "out", **options(resume="auto")))
    assert found == str(tmp_path / "out/checkpoint-2")
    (line,) = [record.getMessage() for record in caplog.records if "passed over" in record.getMessage()]
    assert told in line and "going on from checkpoint-2" in line and "\n" not in line
    with pytest.raises(am.InputError, match="checkpoint"):
        latest_checkpoint(config(data, tmp_path / "out", **options(resume=str(tmp_path / "out/checkpoint-3"))))


def test_a_training_goes_on_from_the_last_whole_one_with_the_same_losses(whole, data, base, tmp_path):
    shutil.copytree(whole[0], tmp_path / "out")
    cut(tmp_path / "out/checkpoint-3/optimizer.pt")
    again = finetune(fresh(base), config(data, tmp_path / "out", **options(resume="auto")), str(base))
    assert again["losses"] == whole[1]
    for folder in (tmp_path / "out").glob("checkpoint-*"):
        check_whole(folder)  # the damaged one was written again
        (folder / "scheduler.pt").unlink()
    with pytest.raises(am.InputError, match=r"no checkpoint is whole: checkpoint-3 .*remove them to begin anew"):
        latest_checkpoint(config(data, tmp_path / "out", **options(resume="auto")))


@pytest.mark.parametrize("name", ["optimizer.pt", "scheduler.pt", "rng_state.pth"])
def test_what_is_unpickled_of_a_checkpoint_runs_nothing(name, whole, data, tmp_path):
    shutil.copytree(whole[0], tmp_path / "out")
    for write in (
        lambda p: p.write_bytes(pickle.dumps(Trap(tmp_path / "mark"))),
        lambda p: torch.save(Trap(tmp_path / "mark"), p),
    ):
        write(tmp_path / "out/checkpoint-3" / name)
        assert latest_checkpoint(config(data, tmp_path / "out", **options(resume="auto"))).endswith("checkpoint-2")
    assert not (tmp_path / "mark").exists()


def test_another_training_is_refused_with_the_differences(whole, data, base, tmp_path):
    shutil.copytree(whole[0], tmp_path / "out")
    other = tmp_path / "data" / data.name
    shutil.copytree(data.parent, other.parent, ignore=shutil.ignore_patterns("gazed"))
    same = config(other, tmp_path / "out", **options(resume="auto"), log_steps=2)  # elsewhere, and logged less often
    done = finetune(fresh(base), same, str(base))  # and since it has come to its end, nothing is trained any more
    assert (done["steps"], done["losses"]) == (3, whole[1])
    ends = [folder / "projector/model.safetensors" for folder in (whole[0], tmp_path / "out")]
    assert ends[0].read_bytes() == ends[1].read_bytes()
    other.write_text(other.read_text() + other.read_text().splitlines()[0] + "\n")
    rates = {**OFF, "projector": PartConfig("full", 2e-3)}
    cases = {
        "parts.projector.lr: 0.001 -> 0.002": config(data, tmp_path / "out", **options(resume="auto", parts=rates)),
        "seed: 42 -> 7": config(data, tmp_path / "out", **options(resume="auto", seed=7)),
        "data_files: ": config(other, tmp_path / "out", **options(resume="auto")),
        "batch_size: 4 -> 2": config(data, tmp_path / "out", **options(resume="auto", batch_size=2)),
    }
    for told, chosen in cases.items():
        with pytest.raises(am.InputError, match="begun with other settings") as error:
            finetune(fresh(base), chosen, str(base))
        assert told in str(error.value)
    with pytest.raises(am.InputError, match=r"settings\.ratio: 0\.5 -> 0\.25"):
        model = am.wrap(base, "pixel-diff", frames=4, ratio=0.25, cache=False)
        finetune(model, config(data, tmp_path / "out", **options(resume="auto")), str(base))


def test_a_loss_and_weights_that_are_not_finite_are_not_saved(data, tmp_path):
    model = wrapped()
    model.base.get_input_embeddings().weight.data.fill_(float("nan"))
    with pytest.raises(DivergenceError, match="the loss is not finite after 1 updates"):
        finetune(model, config(data, tmp_path / "loss", **options()))
    model = wrapped()  # a row that no sample has only decays: the loss knows nothing of it, and no other comes after
    model.base.get_input_embeddings().weight.data[-1] = 1e20
    parts = {**OFF, "llm": PartConfig("full", 0.9)}
    with pytest.raises(DivergenceError, match="is not finite after 1 updates, nothing was saved"):
        finetune(model, config(data, tmp_path / "last", parts=parts, weight_decay=1e30, warmup=0, max_steps=1))
    for output in ("loss", "last"):
        assert not [path for path in (tmp_path / output).rglob("*.safetensors") if "base" not in path.parts]
        assert not (tmp_path / output / "autogaze_mllm.json").exists()


@pytest.mark.parametrize(
    ("option", "told"),
    [
        ("--weight-decay=nan", "weight_decay"),
        ("--weight-decay=inf", "weight_decay"),
        ("--epochs=inf", "epochs"),
        ("--lora-alpha=inf", "LoRA needs an alpha"),
        ("--clip=nan", "clip"),
        ("--seed=-1", "seed must lie in"),
        ("--seed=99999999999", "seed must lie in"),
        ("--llm-lr=nan", "a learning rate must lie between"),
        ("--gaze-lr=inf", "a learning rate must lie between"),
        ("--max-steps=99999999999999999999", "max_steps"),
        ("--loss=inf", "loss"),
    ],
)
def test_numbers_that_are_none_are_refused_at_the_option(option, told, data, tmp_path, capsys):
    chosen = ["finetune", "--data", str(data), "--output", str(tmp_path / "out"), "--cpu", "--gaze", "pixel-diff"]
    assert main([*chosen, option]) == 2
    line = capsys.readouterr().err.strip()
    assert told in line and "\n" not in line and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "engine", [[], {"zero_optimization": 3}, {"zero_optimization": {"stage": "3"}}, {"zero_optimization": {"stage": 9}}]
)
def test_engines_of_wrong_types_are_named(engine, tmp_path):
    (tmp_path / "zero.json").write_text(json.dumps(engine))
    with pytest.raises(am.InputError, match=r"zero\.json"):
        deepspeed_config(tmp_path / "zero.json")

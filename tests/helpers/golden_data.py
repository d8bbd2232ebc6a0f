"""Golden data: what the published model computed, with random weights (see golden/README.md).

The full set is used where AUTOGAZE_TEST_DATA names it, else the part of it that is kept in `tests/golden`.
"""

from __future__ import annotations

import json
from functools import cache
from typing import Any

import torch
from safetensors.torch import load_file

from autogaze_mllm.gaze.autogaze.config import AutoGazeConfig
from autogaze_mllm.gaze.autogaze.model import AutoGaze

from .paths import GOLDEN

Tensors = dict[str, torch.Tensor]


def names(prefix: str = "") -> list[str]:
    """Files that are there, by the start of their name: `gaze_`, `siglip_`, ..."""
    return sorted(path.stem for path in GOLDEN.glob(f"{prefix}*.safetensors"))


@cache
def load(name: str) -> tuple[dict[str, Any], Tensors]:
    """Description and tensors of a file. Shared between callers: do not write to them."""
    return json.loads((GOLDEN / f"{name}.json").read_text()), load_file(GOLDEN / f"{name}.safetensors")


def weights(name: str) -> Tensors:
    return part(load(name)[1], "weights/")


def part(tensors: Tensors, prefix: str) -> Tensors:
    """The tensors whose name starts with `prefix`, without it."""
    return {key[len(prefix) :]: value for key, value in tensors.items() if key.startswith(prefix)}


def video(name: str, which: str = "video") -> torch.Tensor:
    """Preprocessed video (B, T, 3, H, W) float32."""
    about, tensors = load(name)
    entry = about["videos"][which]
    pixels = tensors[entry["tensor"]].float() / entry["divide_by"]
    repeat = entry.get("repeat_pixels", 1)
    return pixels.repeat_interleave(repeat, -1).repeat_interleave(repeat, -2)


def cases(prefix: str, *modes: str) -> list[tuple[str, dict[str, Any]]]:
    """(file, case) of every case in one of `modes`."""
    return [(name, case) for name in names(prefix) for case in load(name)[0]["cases"] if case["mode"] in modes]


def independent_rows(name: str, case: str) -> Tensors | None:
    """Selection with every row on its own, for the cases where rows of the published model influence each other."""
    return part(load("independent_rows")[1], f"{name}/{case}/") or None


def call_arguments(case: dict[str, Any]) -> dict[str, Any]:
    """Arguments of `AutoGaze.generate` for a case."""
    return {key: value for key, value in case["call"].items() if key != "generate_only"}


def assert_close(actual: torch.Tensor, expected: torch.Tensor, tolerance: float = 1e-5, what: str = "") -> None:
    """Within `tolerance` of the largest expected value, or of 1 if that is smaller."""
    assert actual.shape == expected.shape, f"{what}: {tuple(actual.shape)} != {tuple(expected.shape)}"
    if expected.numel():
        allowed = tolerance * max(1.0, float(expected.abs().max()))
        error = float((actual.detach().double() - expected.double()).abs().max())
        assert error <= allowed, f"{what}: off by {error:.2e}, allowed {allowed:.2e}"


def label(value: object) -> str:
    return value["name"] if isinstance(value, dict) else str(value)


def gaze_model(name: str) -> AutoGaze:
    model = AutoGaze(AutoGazeConfig.from_dict(load(name)[0]["config"])).eval()
    model.load_state_dict(weights(name))
    return model

"""What is optional is declared once, and its absence is one line that says what to install."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

import autogaze_mllm as am
from autogaze_mllm.common import extras
from autogaze_mllm.common.extras import EXTRAS, require_extra

ROOT = Path(am.__file__).resolve().parents[1]
FOR_DEVELOPERS = {"docs", "dev"}


def test_the_extras_are_those_that_pip_knows():
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    named = {
        extra: {re.split(r"[\[><=;]", package)[0] for package in packages}
        for extra, packages in declared.items()
        if extra not in FOR_DEVELOPERS
    }
    assert named == {extra: set(packages) for extra, packages in EXTRAS.items()}


def test_what_is_missing_is_named_with_what_to_install(monkeypatch):
    monkeypatch.setitem(extras.EXTRAS, "train", {"numpy": "numpy", "scikit-paint": "skpaint", "tea-board": "teaboard"})
    with pytest.raises(am.InputError) as error:
        require_extra("train", "--paint")
    assert str(error.value) == "--paint needs scikit-paint, tea-board: pip install 'autogaze_mllm[train]'"
    with pytest.raises(am.InputError, match="needs tea-board: pip"):
        require_extra("train", "--tea", "tea-board")
    require_extra("train", "--numbers", "numpy")

"""Shared fixtures: small clips and tiny random models, made once."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

if shutil.which("nvidia-smi") is None:
    os.environ["TRITON_INTERPRET"] = "1"  # before anything imports triton: our kernels run on the CPU, too

import pytest
import torch

from autogaze_mllm.evaluation.benchmarks import BENCHMARKS
from autogaze_mllm.evaluation.benchmarks.synthetic import ensure_made_up, write_made_up
from autogaze_mllm.video.synthetic import moving_scene
from autogaze_mllm.video.writer import write_video

# Everything here is tiny: threads would only wait for each other, for seconds on a busy machine.
torch.set_num_threads(1)


@pytest.fixture(scope="session")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """20 frames, 160x96, something moves and a sign turns up."""
    path = tmp_path_factory.mktemp("clips") / "scene.mp4"
    write_video(path, moving_scene(160, 96, 20), fps=10)
    return path


@pytest.fixture(scope="session")
def short_clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """5 frames of another scene."""
    path = tmp_path_factory.mktemp("clips") / "short.mkv"
    write_video(path, moving_scene(96, 128, 5, seed=3), fps=10)
    return path


@pytest.fixture(autouse=True, scope="session")
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The tests, and the processes they start, have a cache folder of their own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache home")))
        yield


@pytest.fixture(autouse=True, scope="module")
def no_accelerator_of_before() -> Iterator[None]:
    """accelerate keeps the precision of a process's first training, and refuses another one."""
    yield
    if "accelerate.state" in sys.modules:
        sys.modules["accelerate.state"].AcceleratorState._reset_state(True)


@pytest.fixture(scope="session")
def benchmark_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Made-up data of all benchmarks, each in a folder of its name."""
    folder = tmp_path_factory.mktemp("benchmarks")
    for name in BENCHMARKS:
        ensure_made_up(name, folder / name)
    return folder


@pytest.fixture(scope="session")
def two_videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Made-up HLVid data with seven questions on two videos: enough for a model."""
    return write_made_up("hlvid", tmp_path_factory.mktemp("two videos"), videos=2)

"""What this installation can do: versions, devices, attention back ends, extras."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import platform
import shutil
from typing import Any

import torch

from .errors import InputError
from .extras import EXTRAS, require_extra

PACKAGES = ("torch", "transformers", "accelerate", "peft", "av", "sentencepiece", "safetensors")


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _versions(packages: list[str]) -> str | None:
    """Of an extra: of its one package, or of each; None unless all are there."""
    found = {package: _version(package) for package in packages}
    if not all(found.values()):
        return None
    return found[packages[0]] if len(packages) == 1 else ", ".join(f"{name} {found[name]}" for name in packages)


def _usable(extra: str) -> bool | str:
    """True, or what to install."""
    try:
        require_extra(extra, "it")
    except InputError as error:
        return str(error)
    return True


def _compiles() -> bool:
    """flex_attention runs compiled, or it would build the full score matrix."""
    on_cuda = torch.cuda.is_available() and importlib.util.find_spec("triton") is not None
    return on_cuda or any(shutil.which(name) for name in ("c++", "g++", "clang++"))


def machine(device: torch.device | str = "cpu") -> str:
    """What decides how long something takes, in one line."""
    kind = torch.cuda.get_device_name(device) if torch.device(device).type == "cuda" else platform.machine()
    return f"{kind}, {torch.get_num_threads()} threads, torch {torch.__version__}"


def describe() -> dict[str, Any]:
    """Versions (None where a package is missing), devices, attention back ends (usable or why not) and extras."""
    devices = [
        {"device": "cpu", "name": platform.processor() or platform.machine(), "threads": torch.get_num_threads()}
    ]
    for number in range(torch.cuda.device_count()):
        memory = torch.cuda.get_device_properties(number).total_memory
        devices.append(
            {
                "device": f"cuda:{number}",
                "name": torch.cuda.get_device_name(number),
                "memory_gib": round(memory / 2**30, 1),
            }
        )
    if torch.backends.mps.is_available():
        devices.append({"device": "mps", "name": "Apple GPU"})
    return {
        "autogaze_mllm": _version("autogaze_mllm"),
        "python": platform.python_version(),
        "packages": {package: _version(package) for package in PACKAGES},
        "devices": devices,
        "attention": {
            "sdpa": True,
            "eager": True,
            "flex_attention": True if _compiles() else "needs a C++ compiler on the PATH, or CUDA with triton",
            "flash_attention_2": _usable("flash"),
        },
        "extras": {extra: _versions(list(packages)) for extra, packages in EXTRAS.items()},
    }

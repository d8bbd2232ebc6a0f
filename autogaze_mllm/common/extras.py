"""What is optional: the extras of the package, what each brings, and the line that says what to install."""

from __future__ import annotations

import importlib.util

from .errors import InputError

# Extra -> what it installs, each with the module that is imported.
EXTRAS: dict[str, dict[str, str]] = {
    "deepspeed": {"deepspeed": "deepspeed"},
    "flash": {"flash-attn": "flash_attn"},
    "lmms": {"lmms-eval": "lmms_eval"},
    "train": {"scikit-image": "skimage", "scikit-learn": "sklearn", "tensorboard": "tensorboard"},
    "torchcodec": {"torchcodec": "torchcodec"},
    "wandb": {"wandb": "wandb"},
    "trackio": {"trackio": "trackio"},
    "serve": {
        "fastapi": "fastapi",
        "starlette": "starlette",
        "uvicorn": "uvicorn",
        "prometheus-client": "prometheus_client",
    },
    "app": {"gradio": "gradio", "starlette": "starlette"},
    "ray": {"ray": "ray"},
}


def require_extra(extra: str, what: str, *packages: str) -> None:
    """Raises InputError, with what to install, unless the packages of an extra (default: all of it) are there. what:
    needs them."""
    wanted = {package: EXTRAS[extra][package] for package in packages} if packages else EXTRAS[extra]
    missing = [package for package, module in wanted.items() if importlib.util.find_spec(module) is None]
    if missing:
        raise InputError(f"{what} needs {', '.join(missing)}: pip install 'autogaze_mllm[{extra}]'")

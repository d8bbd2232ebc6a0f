"""DeepSpeed configurations by name: the files of `zero/`.

zero2: gradients and optimiser state are divided among the processes; zero3: the weights, too. _offload: what is divided
rests in the host's memory, where torch's AdamW does the updates, for which nothing need be compiled
(zero_force_ds_cpu_optimizer). "auto" values are filled in by transformers from the training's own options.
"""

from __future__ import annotations

import os
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

from ..common.errors import InputError
from ..common.extras import require_extra
from ..common.storage.files import read_json
from ..common.storage.json_text import Fields
from .config import FinetuneConfig

NAMES = ("zero2", "zero3", "zero2_offload", "zero3_offload")
FOLDER = Path(str(files("autogaze_mllm") / "finetuning" / "zero"))


def deepspeed_config(chosen: str | Path) -> dict[str, Any]:
    """A preset's name or a json file -> the configuration. Raises InputError where DeepSpeed is not installed."""
    if str(chosen) in NAMES:
        config = read_json(FOLDER / f"{chosen}.json")
    elif Path(chosen).is_file():
        config = read_json(Path(chosen))
        zero = Fields(config, chosen).object("zero_optimization")  # the keys that are looked at here
        zero.get("stage", Literal[0, 1, 2, 3], 0)
        zero.object("offload_optimizer")
    else:
        raise InputError(f"--deepspeed {chosen}: neither a file nor one of {', '.join(NAMES)}")
    require_extra("deepspeed", "--deepspeed")
    return config


def chosen_engine(config: FinetuneConfig) -> dict[str, Any] | None:
    """The configuration that a training wants, if any. Raises InputError where the training cannot run with it."""
    engine = None if config.deepspeed is None else deepspeed_config(config.deepspeed)
    divided = "ZeRO-3" if zero_stage(engine) == 3 else "FSDP" if uses_fsdp() else None
    if divided is not None:
        advice = f"does not go with {divided}, whose processes hold only shares of the weights: take zero2"
        if config.trains_gaze:
            raise InputError(f"training gaze {advice}")
        if config.eval_benchmark is not None:
            raise InputError(f"eval_benchmark {advice}")
    return engine


def uses_fsdp() -> bool:
    """Whether `accelerate launch` asked for FSDP (see scripts/fsdp.yaml)."""
    return os.environ.get("ACCELERATE_USE_FSDP", "").lower() in ("1", "true")


def zero_stage(config: dict[str, Any] | None) -> int:
    """0 without DeepSpeed."""
    return 0 if config is None else int((config.get("zero_optimization") or {}).get("stage", 0))


def offloads(config: dict[str, Any] | None) -> bool:
    """Whether optimiser state rests in the host's memory."""
    zero = (config or {}).get("zero_optimization") or {}
    return (zero.get("offload_optimizer") or {}).get("device") == "cpu"

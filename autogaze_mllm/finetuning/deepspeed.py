"""DeepSpeed configurations by name. `scripts/<name>.json` holds the same ones for launchers that want a file."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from typing import Any

from ..common.errors import InputError
from ..common.files import read_json
from .config import FinetuneConfig

NAMES = ("zero2", "zero3", "zero2_offload", "zero3_offload")


def deepspeed_preset(name: str) -> dict[str, Any]:
    """zero2: gradients and optimiser state are divided among the processes; zero3: the weights, too. _offload: what is
    divided rests in the host's memory. "auto" values are filled in by transformers from the training's own options."""
    stage, offload = int(name[4]), name.endswith("_offload")
    zero: dict[str, Any] = {"stage": stage, "overlap_comm": True, "contiguous_gradients": True}
    if stage == 2:
        zero |= {"allgather_bucket_size": 5e8, "reduce_bucket_size": 5e8}
    else:
        zero |= {
            "reduce_bucket_size": "auto",
            "stage3_prefetch_bucket_size": "auto",
            "stage3_param_persistence_threshold": "auto",
            "stage3_max_live_parameters": 1e9,
            "stage3_max_reuse_distance": 1e9,
            "stage3_gather_16bit_weights_on_model_save": True,
        }
    more: dict[str, Any] = {}
    if offload:
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": True}
        if stage == 3:
            zero["offload_param"] = {"device": "cpu", "pin_memory": True}
        more["zero_force_ds_cpu_optimizer"] = False  # torch's AdamW runs on the host without anything being compiled
    return {
        "bf16": {"enabled": "auto"},
        "zero_optimization": zero,
        "gradient_accumulation_steps": "auto",
        "gradient_clipping": "auto",
        "train_batch_size": "auto",
        "train_micro_batch_size_per_gpu": "auto",
        "steps_per_print": 1e9,
        **more,
    }


def deepspeed_config(chosen: str | Path) -> dict[str, Any]:
    """A preset's name or a json file -> the configuration. Raises InputError where DeepSpeed is not installed."""
    if str(chosen) in NAMES:
        config = deepspeed_preset(str(chosen))
    elif Path(chosen).is_file():
        config = read_json(Path(chosen))
    else:
        raise InputError(f"--deepspeed {chosen}: neither a file nor one of {', '.join(NAMES)}")
    if importlib.util.find_spec("deepspeed") is None:
        raise InputError("--deepspeed needs the package deepspeed: pip install 'autogaze_mllm[deepspeed]'")
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
    return 0 if config is None else int(config.get("zero_optimization", {}).get("stage", 0))


def offloads(config: dict[str, Any] | None) -> bool:
    """Whether optimiser state rests in the host's memory."""
    return bool(config and config.get("zero_optimization", {}).get("offload_optimizer", {}).get("device") == "cpu")

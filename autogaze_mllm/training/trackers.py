"""Where the curves of a run go, besides `metrics.jsonl`: tensorboard, wandb, or nowhere else."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..common.errors import InputError


class Tracker:
    """kind: `tensorboard`, `wandb` or `none`. Raises InputError when the package is not installed."""

    def __init__(self, kind: str, run: Path, settings: Mapping[str, Any]) -> None:
        self.kind = kind
        self._writer: Any = None
        if kind == "tensorboard":
            try:
                from torch.utils.tensorboard import SummaryWriter
            except ImportError as error:
                raise InputError("tensorboard is not installed: pip install tensorboard, or --tracker none") from error
            self._writer = SummaryWriter(str(run / "tensorboard"))
        elif kind == "wandb":
            try:
                import wandb
            except ImportError as error:
                raise InputError("wandb is not installed: pip install wandb, or --tracker none") from error
            self._writer = wandb.init(project="autogaze_mllm", dir=str(run), name=run.name, config=dict(settings))
        elif kind != "none":
            raise InputError(f"tracker {kind!r} is not known; known: tensorboard, wandb, none")

    def log(self, step: int, values: Mapping[str, float]) -> None:
        if self.kind == "tensorboard":
            for name, value in values.items():
                self._writer.add_scalar(name, value, step)
        elif self.kind == "wandb":
            self._writer.log(dict(values), step=step)

    def close(self) -> None:
        if self.kind == "tensorboard":
            self._writer.close()
        elif self.kind == "wandb":
            self._writer.finish()

"""Where numbers, pictures and films of a run go besides its folder: tensorboard, wandb (also offline) or trackio."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import Accelerator
from PIL import Image

from ...common.errors import InputError, first_line
from ...common.extras import require_extra
from ...common.storage.files import atomic_write, output_folder
from .pictures import ShownClip, moving_picture, sheet, stacked

PROJECT = "autogaze_mllm"  # of wandb and trackio
NONE = "none"


def check_tracker(name: str) -> None:
    """Raises InputError where it is not installed."""
    if name != NONE:
        require_extra("train" if name == "tensorboard" else name, f"--tracker {name}", name)


class Trackers:
    """What `accelerator` was made with (`log_with`), one tracker or none. Only the main process writes."""

    def __init__(self, accelerator: Accelerator, name: str, run: Path) -> None:
        self.accelerator, self.name, self.run = accelerator, name, run

    def start(self, settings: Mapping[str, Any]) -> None:
        """tensorboard writes into the run's folder of that name, wandb beside it, trackio where it keeps all runs."""
        kept = {"name": self.run.name, "config": dict(settings)}
        options = {"wandb": {"dir": str(self.run), **kept}, "trackio": {"embed": False, "resume": "allow", **kept}}
        with redirect_stdout(sys.stderr):  # where the banner of a library does no harm
            project = self.name if self.name == "tensorboard" else PROJECT
            try:
                self.accelerator.init_trackers(project, init_kwargs=options)
            except Exception as error:  # no account, no server: each has its own
                offline = " (WANDB_MODE=offline needs no account)" if self.name == "wandb" else ""
                raise InputError(f"{self.name} cannot be started: {first_line(error)}{offline}") from error

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self.accelerator.log(dict(values), step)

    def show(self, step: int, clips: Sequence[ShownClip]) -> None:
        """The sheets of a validation as `pictures/step-NNNNNNNN.png`; the tracker gets one for each clip, and the first
        clip as a film."""
        if not clips:
            return
        sheets = [sheet(clip) for clip in clips]
        folder = output_folder(self.run / "pictures")
        with atomic_write(folder / f"step-{step:08}.png") as temporary:
            stacked(sheets).save(temporary, format="png")
        for tracker in self.accelerator.trackers:
            moving = moving_picture(clips[0])
            if tracker.name == "tensorboard":
                _to_tensorboard(tracker, step, sheets, moving)
                continue
            path = folder / f"step-{step:08}.gif"
            with atomic_write(path) as temporary:
                temporary.write_bytes(moving)
            module = importlib.import_module(tracker.name)
            titles = [clip.title for clip in clips]
            shown = [module.Image(one, caption=title) for one, title in zip(sheets, titles, strict=True)]
            values = {f"validation/clip-{number}": one for number, one in enumerate(shown)}
            values["validation/film"] = module.Video(str(path), caption=titles[0], **_kind(module))
            tracker.tracker.log(values, step=step)

    def finish(self) -> None:
        """Of the trackers alone: `end_training` would end the process group as well, which is needed further on."""
        with redirect_stdout(sys.stderr):
            for tracker in self.accelerator.trackers:
                if tracker.name == "trackio" and self.accelerator.is_main_process:
                    importlib.import_module("trackio").finish()  # else it finishes again at the exit, with a word
                else:
                    tracker.finish()
        self.accelerator.trackers.clear()


def _kind(module: Any) -> dict[str, str]:
    """wandb wants to be told what a file's name says already."""
    return {"format": "gif"} if module.__name__ == "wandb" else {}


def _to_tensorboard(tracker: Any, step: int, sheets: Sequence[Image.Image], moving: bytes) -> None:
    """A film is an image there, whose bytes are those of a gif."""
    from tensorboard.compat.proto.summary_pb2 import Summary

    for number, one in enumerate(sheets):
        tracker.log_images({f"validation/clip-{number}": np.asarray(one)[None]}, step, dataformats="NHWC")
    image = Summary.Image(encoded_image_string=moving, colorspace=3)
    summary = Summary(value=[Summary.Value(tag="validation/film", image=image)])
    tracker.tracker.file_writer.add_summary(summary, step)  # its `add_video` would need another package
    tracker.tracker.flush()

"""Videos to try the page with, made by the package itself, and questions about them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ..signvid.conversations import BY_COLOUR, BY_TIME, plainly
from ..signvid.dataset import CODEC, FPS
from ..signvid.plan import VideoShape, plan_video
from ..signvid.render import render_video
from ..video.synthetic import moving_scene
from ..video.writer import write_video

SIGNS = VideoShape(1344, 1344, frames=16, signs=5)
SEED = 7
SCENE_FPS = 12


@dataclass(frozen=True)
class Example:
    """questions: about it, for a model that can read it."""

    path: Path
    questions: tuple[str, ...] = ()


def write_examples(folder: Path) -> list[Example]:
    """The first is what the bundled model reads."""
    plan = plan_video(SIGNS, "test", SEED, 0)
    signs = Example(folder / "five small signs.mp4", (*(ask for ask, _ in plainly(plan)[:3]), BY_TIME, BY_COLOUR))
    write_video(signs.path, render_video(plan), FPS, options=CODEC)
    scene = Example(folder / "a moving scene.mp4")
    write_video(scene.path, moving_scene(1280, 720, 48), fps=SCENE_FPS)
    return [signs, scene]

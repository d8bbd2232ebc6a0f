"""Where the gaze model lies that comes with this package."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

BUNDLED = "bundled"
BUNDLED_FOLDER = Path(str(files("autogaze_mllm") / "bundled" / "gaze"))


def gaze_folder(source: str | Path) -> str | Path:
    """The folder of "bundled"; any other folder or hub id as it is."""
    return BUNDLED_FOLDER if str(source) == BUNDLED else source

"""Where the repository is, and the shared data: a folder with golden/ and videos/, named by AUTOGAZE_TEST_DATA.

Without it the tests take the part of the golden data that is kept in tests/golden, and skip the real videos.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
DATA = Path(os.environ["AUTOGAZE_TEST_DATA"]) if os.environ.get("AUTOGAZE_TEST_DATA") else None
GOLDEN = ROOT / "tests" / "golden" if DATA is None else DATA / "golden"
if not GOLDEN.is_dir():  # a wrong name would otherwise pass with fewer tests
    raise FileNotFoundError(f"AUTOGAZE_TEST_DATA: there is no folder {GOLDEN}")


def shared_video(name: str) -> Path:
    """A real video of the shared data; the test is skipped where there are none."""
    if DATA is None:
        pytest.skip("AUTOGAZE_TEST_DATA names no folder with videos/")
    return DATA / "videos" / name

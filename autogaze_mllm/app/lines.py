"""What is told of an error in the page."""

from __future__ import annotations

import logging
import os

from ..common.compute.cancelling import CancelledCall
from ..common.errors import InputError
from ..common.machine_faults import of_the_machine

logger = logging.getLogger(__name__)


def one_line(error: Exception, video: str) -> str:
    """Without the folder that the video was put into. A fault of this program is told of in the terminal."""
    if isinstance(error, CancelledCall):
        return "stopped"
    line = str(error) if isinstance(error, InputError) else of_the_machine(error)
    if line is None:
        logger.error("a fault of autogaze-mllm, please report it", exc_info=error)
        return f"{type(error).__name__}: a fault of autogaze-mllm, not of your video; the terminal says more"
    return line.replace(os.path.dirname(video) + os.sep, "")

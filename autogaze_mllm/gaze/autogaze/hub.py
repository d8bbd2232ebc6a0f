"""A gaze model to the hub: what it is loaded with, and a card that says what it is."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelHubMixin

from ...common.errors import InputError, first_line
from .config import PUBLISHED_TASK, AutoGazeConfig

CARD = """---
library_name: autogaze_mllm
tags:
- autogaze
- video
- token-reduction
---

# A gaze model: the few patches of a video that are worth looking at

AutoGaze reads a video frame by frame and names patches of several scales, those first that say most, until the picture
that could be rebuilt from them is good enough or the frame's budget is spent. A vision tower, and the multimodal LLM
behind it, then see these patches alone.

| | |
|---|---|
| parameters | {parameters:,} |
| frames | {side} x {side} pixels, {frames} |
| patches of a frame | {grid} |
| patches named at a step | {step} |
| predicted loss | that of `{task}`; a frame stops at {requirement:g} where nothing else is said |

## How to use it

```python
import autogaze_mllm as am

gazed = am.gaze_video("clip.mp4", "{repo_id}", am.VideoSettings(frames=16, ratio=0.75, loss={requirement:g}))
print(gazed.positions, gazed.frame_counts)
```

In front of a multimodal LLM: `am.wrap(MODEL, "{repo_id}")`. {others}

## Limits

Gaze knows nothing of the question that will be asked of the video. The predicted loss means something on videos like
those that the model was trained on; on others, compare it with the real one.
"""
READABLE = "The files are in the layout of the published AutoGaze code, which reads them, too."
NOT_READABLE = (
    "The files are in the layout of the published AutoGaze code, but not its decoding: there, steps of a frame repeat "
    "their positions."
)


class _Upload(ModelHubMixin):
    """huggingface_hub's own uploading, for something that is no subclass of its mixin. write: writes the files."""

    def __init__(self, write: Callable[[Path], None], card: str) -> None:
        self.write, self.card = write, card

    def _save_pretrained(self, save_directory: Path) -> None:
        self.write(save_directory)

    def generate_model_card(self, *_: Any, **__: Any) -> ModelCard:
        return ModelCard(self.card)


def model_card(config: AutoGazeConfig, parameters: int, repo_id: str) -> str:
    """The README.md of a repository that holds a model of this configuration."""
    frames = "any number" if config.max_num_frames is None else f"trained on {config.max_num_frames} at a time"
    return CARD.format(
        parameters=parameters,
        side=config.input_img_size,
        frames=frames,
        grid=config.grid,
        step=config.heads_per_step,
        task="VideoMAE" if config.reconstruction_task == PUBLISHED_TASK else config.reconstruction_task,
        requirement=config.budget.requirement,
        repo_id=repo_id,
        others=READABLE if config.repeat_step_positions else NOT_READABLE,
    )


def upload(write: Callable[[Path], None], card: str, repo_id: str, **options: Any) -> str:
    """Files and card into a repository, which is made where there is none. -> the address of the commit.

    options: as `push_to_hub` of huggingface_hub has them. Raises InputError where the hub refuses or is not reached.
    """
    try:
        return _Upload(write, card).push_to_hub(repo_id, **options)
    except InputError:
        raise
    except Exception as error:  # of the hub, its client, the network: of many types
        raise InputError(f"{repo_id}: cannot be uploaded: {first_line(error)}") from error

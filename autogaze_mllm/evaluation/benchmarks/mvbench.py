"""MVBench: twenty tasks of 200 questions on short videos. The score is the mean of the twenty accuracies.

Videos are those of the data set's `video` branch, where the parts that some tasks ask about are cut out already.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from ...common.errors import InputError
from ..data.tables import Row, read_rows
from ..extraction import first_word
from .base import Benchmark, Published, Question, lettered

VIDEOS = {
    "action_antonym": "ssv2_video_mp4",
    "action_count": "perception/videos",
    "action_localization": "sta/sta_video_segment",
    "action_prediction": "star/Charades_segment",
    "action_sequence": "star/Charades_segment",
    "character_order": "perception/videos",
    "counterfactual_inference": "clevrer/video_validation",
    "egocentric_navigation": "vlnqa",
    "episodic_reasoning": "tvqa/video_fps3_hq_segment",
    "fine_grained_action": "Moments_in_Time_Raw/videos",
    "fine_grained_pose": "nturgbd_convert",
    "moving_attribute": "clevrer/video_validation",
    "moving_count": "clevrer/video_validation",
    "moving_direction": "clevrer/video_validation",
    "object_existence": "clevrer/video_validation",
    "object_interaction": "star/Charades_segment",
    "object_shuffle": "perception/videos",
    "scene_transition": "scene_qa/video",
    "state_change": "perception/videos",
    "unexpected_action": "FunQA_test/test",
}
_OPTION = re.compile(r"([A-E])\.\s*.+", re.IGNORECASE)


class MVBench(Benchmark):
    name = "mvbench"
    title = "MVBench"
    repo = "OpenGVLab/MVBench"
    revision = "video"
    splits = ("train",)
    sizes = (4000,)
    mean_over = "task"
    video_folders = ("", "video", "data0613")

    @property
    def tables(self) -> tuple[str, ...]:
        return ("json/*.json", "*.json")

    @property
    def published(self) -> Published:
        return Published(68.1, 69.7, "mean of the twenty tasks")

    def rows(self, paths: Sequence[Path]) -> Iterator[tuple[Row, Question]]:
        for path in paths:
            task = path.stem
            if task not in VIDEOS:
                raise InputError(f"{path}: {task!r} is not one of MVBench's tasks: {', '.join(VIDEOS)}")
            for row in read_rows(path, ("video", "question", "candidates", "answer")):
                options, answer = row.texts("candidates"), row.text("answer")
                if answer not in options:
                    raise row.error(f"answer {answer!r} is not one of the options {', '.join(options)}")
                letters = row.letters(options)
                choices = lettered(options, "({letter}) {option}")
                yield (
                    row,
                    Question(
                        f"{task}/{row.number}",
                        f"{VIDEOS[task]}/{row.text('video')}",
                        f"Question: {row.text('question')}\nOption:\n{choices}\nOnly give the best option.\n",
                        letters,
                        letters[options.index(answer)],
                        options,
                        {"task": task},
                    ),
                )

    def official(self, reply: str, question: Question) -> str | None:
        option = _OPTION.fullmatch(reply.strip())
        return option[1].upper() if option else first_word(reply.replace("_", " "), "ABCDE")

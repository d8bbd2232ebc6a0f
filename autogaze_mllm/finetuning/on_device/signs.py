"""SignVid's train split as an LLM learns from it on a device: made by processes of their own while it learns.

A video is drawn, stored by the codec and read again, as the benchmark's are; its frames come as a file of numbers,
which whoever reads it deletes.
"""

from __future__ import annotations

import os
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer

from ...mllm.model import GazedModel
from ...mllm.prompts.prompt import render_chat
from ...signvid.dataset import CODEC, FPS
from ...signvid.exercises import ask, in_words, plan_exercise, some_turns, turns_of, verdicts
from ...signvid.plan import VideoShape, plan_video
from ...signvid.render import render_video
from ...video.reader import VideoReader
from ...video.writer import write_video
from .packs import Pack, Turns

READ_AT_ONCE = 16  # frames


@dataclass(frozen=True)
class Speech:
    """How a conversation with a model is written, and the file of its tokenizer."""

    tokenizer: str
    before: str
    join: str
    after: str
    end: str

    def turns(self) -> Turns:
        tokenizer = Tokenizer.from_file(self.tokenizer)
        return Turns(
            lambda text: tokenizer.encode(text, add_special_tokens=False).ids,
            *(self.before, self.join, self.after, self.end),
        )


def speech_of(model: GazedModel, tokenizer: Path) -> Speech:
    """How the model's conversations are written, from its own chat format."""
    mark = "QUESTION"
    before, _, after = render_chat(f"<video>{mark}", model.preprocessing, model.family).partition(f"<video>{mark}")
    end = model.family.answer("")
    return Speech(str(tokenizer), before, model.family.after_media, after, end)


@dataclass(frozen=True)
class VideoJob:
    """A video of the train split and `packs` times `questions` questions about it; only those of the benchmark where
    they are to be counted (`measured`). verdicts: codes, besides, of which is told whether they are shown."""

    shape: VideoShape
    seed: int
    number: int
    packs: int
    questions: int
    measured: bool = False
    verdicts: int = 0


@dataclass(frozen=True)
class Film:
    """frames: file of (T, height, width, 3) uint8."""

    job: VideoJob
    frames: Path
    packs: list[Pack]


@dataclass(frozen=True)
class Text:
    """A video in words: what stands before its questions, and these."""

    prefix: np.ndarray
    pack: Pack


class SignSource:
    """Videos and texts from so many processes, in the order in which they were asked for. A context: the processes end
    with it."""

    def __init__(self, folder: Path, speech: Speech, workers: int) -> None:
        self.folder, self.speech = folder, speech
        self._asked: list[Future[Any]] = []
        self.pool = ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=_begin)

    def __enter__(self) -> SignSource:
        return self

    def __exit__(self, *_: object) -> None:
        self.pool.shutdown(wait=True, cancel_futures=True)  # what is being made is written to the folder to its end

    def film(self, job: VideoJob) -> Future[Film]:
        future = self.pool.submit(film, self.folder, self.speech, job)
        self._asked.append(future)
        return future

    def cancel(self) -> None:
        """What is not begun yet is not made any more."""
        for future in self._asked:
            future.cancel()

    def texts(self, seed: int, numbers: range, questions: int) -> Future[list[Text]]:
        return self.pool.submit(texts, self.speech, seed, numbers, questions)


def _begin() -> None:
    """The device's own process goes first."""
    torch.set_num_threads(1)
    os.nice(5)


def film(folder: Path, speech: Speech, job: VideoJob) -> Film:
    plan = plan_video(job.shape, "train", job.seed, job.number)
    name = f"{job.shape.width}x{job.shape.frames}-{job.seed}-{job.number}"
    video, stored = folder / f"{name}.mp4", folder / f"{name}.npy"
    write_video(video, render_video(plan), FPS, options=CODEC)
    frames = [part.frames for part in VideoReader(video).read(range(job.shape.frames), chunk=READ_AT_ONCE)]
    video.unlink()
    np.save(stored, np.concatenate(frames))
    turns = speech.turns()
    packs = []
    for number in range(job.packs):
        rng = np.random.default_rng([job.seed, job.number, number, 8])
        if job.measured:
            asked = ask(plan, job.questions, rng)
            packs.append(turns.pack(turns_of(asked), [one.kind for one in asked]))
        else:
            pack = turns.pack(some_turns(plan, job.questions, rng))
            if job.verdicts:
                pack = pack.and_then(turns.deciding(verdicts(plan, job.verdicts, rng)))
            packs.append(pack)
    return Film(job, stored, packs)


def texts(speech: Speech, seed: int, numbers: range, questions: int) -> list[Text]:
    turns = speech.turns()
    found = []
    for number in numbers:
        plan = plan_exercise(seed, number)
        rng = np.random.default_rng([seed, number, 9])
        prefix = np.array(turns.prefix(in_words(plan, rng)), dtype=np.int32)
        found.append(Text(prefix, turns.pack(some_turns(plan, questions, rng))))
    return found

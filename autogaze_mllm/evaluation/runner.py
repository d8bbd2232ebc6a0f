"""The runner: asks every question once, video by video, and can be killed at any moment.

Notable design decisions:
- all questions about a video follow one another, so that it is decoded, gazed and encoded once;
- which process asks what follows from the questions alone, so that runs continue with any number of processes;
- processes meet in the folder only: the first one waits until every question has an answer, and reports.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from itertools import chain

import torch
from tqdm.auto import tqdm

from ..common.compute.distributed import Shard
from ..common.errors import InputError
from ..video.reader import FrameReader
from ..video.sources import Video
from .answers import Answer, AnswerLog
from .benchmarks import Benchmark, Question
from .responders import EncodedVideo, Responder, Variant
from .run_folder import Run

logger = logging.getLogger(__name__)
POLL_SECONDS = 0.5


@dataclass(frozen=True)
class Job:
    """A run and the way of gazing that it is about."""

    run: Run
    variant: Variant


def by_video(questions: Sequence[Question]) -> dict[str, list[Question]]:
    """Questions of each video; videos in the order in which they turn up."""
    groups: dict[str, list[Question]] = {}
    for question in questions:
        groups.setdefault(question.video, []).append(question)
    return groups


class Runner:
    """Answers `questions` of a benchmark in every job's way. retry_failed: also those whose video failed before."""

    def __init__(
        self,
        benchmark: Benchmark,
        questions: Sequence[Question],
        answerer: Responder,
        jobs: Sequence[Job],
        *,
        max_new_tokens: int,
        shard: Shard | None = None,
        retry_failed: bool = False,
        progress: bool = False,
    ) -> None:
        self.benchmark, self.questions, self.answerer, self.jobs = benchmark, questions, answerer, jobs
        self.max_new_tokens, self.shard, self.retry_failed = max_new_tokens, shard or Shard(), retry_failed
        self.progress = progress and self.shard.rank == 0

    def run(self) -> None:
        """Returns when this process's questions have answers; in the first process, when all have."""
        mine = self.shard.part(by_video(self.questions))
        with ExitStack() as files:
            rank, world = self.shard.rank, self.shard.world
            logs = [files.enter_context(AnswerLog(job.run.folder, rank, world)) for job in self.jobs]
            self._answer(mine, logs)
        self._wait()

    def _answer(self, mine: Mapping[str, Sequence[Question]], logs: Sequence[AnswerLog]) -> None:
        known = [self._answered(job) for job in self.jobs]
        self._bar = tqdm(
            total=sum(map(len, mine.values())) * len(self.jobs),
            unit="question",
            desc=self.benchmark.name,
            disable=not self.progress,
            smoothing=0.05,
        )
        self._right = self._scored = 0
        with self._bar:
            for video, questions in mine.items():
                waiting = [[question for question in questions if question.id not in done] for done in known]
                for done in known:
                    self._show([done[question.id] for question in questions if question.id in done])
                try:
                    self._video(video, waiting, logs)
                except torch.OutOfMemoryError as error:
                    raise InputError(
                        f"{video}: out of memory; take fewer frames or tiles, or a lower ratio, in a new run"
                    ) from error

    def _answered(self, job: Job) -> Mapping[str, Answer]:
        found = job.run.answers()
        strange = found.keys() - {question.id for question in self.questions}
        if strange:
            raise InputError(f"{job.run.folder}: holds answers to other questions, such as {min(strange)!r}")
        return {name: answer for name, answer in found.items() if not (self.retry_failed and answer.error)}

    def _video(self, video: str, waiting: Sequence[Sequence[Question]], logs: Sequence[AnswerLog]) -> None:
        """Asks what is waiting in each job about one video."""
        todo = [
            (job, questions, log) for job, questions, log in zip(self.jobs, waiting, logs, strict=True) if questions
        ]
        if not todo:
            return
        path = self.benchmark.video_path(video)
        try:
            reader = Video(path).open()
            watched = self.answerer.watch(path, [job.variant for job, _, _ in todo])
            first = next(watched)
        except InputError as error:
            logger.warning("%s", error)
            for _, questions, log in todo:
                for question in questions:
                    failed = Answer(
                        question.id, video, question.answer, error=str(error), categories=question.categories
                    )
                    log.add(failed)
                    self._show([failed])
            return
        for (job, questions, log), seen in zip(todo, chain([first], watched), strict=True):
            self._ask(reader, job, seen, questions, log)

    def _ask(
        self, reader: FrameReader, job: Job, watched: EncodedVideo, questions: Sequence[Question], log: AnswerLog
    ) -> None:
        indices = reader.sample(job.variant.settings.frames, job.variant.settings.fps)
        times = [float(reader.seconds[number]) for number in indices]
        stats = watched.stats
        answer = Answer(
            "",
            "",
            None,
            frames={
                "sampled": len(indices),
                "lost": stats.get("frames_lost", 0),
                "fps": round(len(indices) / reader.duration, 4),
            },
            patches={"kept": stats["patches"], "total": stats["patches_total"]} if "patches" in stats else {},
        )
        seconds = dict(stats["seconds"])
        dense = {"dense": stats["dense_tokens"]} if "dense_tokens" in stats else {}
        for question in questions:
            prompt = self.benchmark.prompt(question, times)
            try:
                reply = watched.ask(question, prompt, self.max_new_tokens)
            except InputError as error:
                raise InputError(f"question {question.id!r}: {error}") from error
            for stage, spent in reply.seconds.items():
                seconds[stage] = seconds.get(stage, 0.0) + spent
            answered = replace(
                answer,
                id=question.id,
                video=question.video,
                answer=question.answer,
                raw=reply.text,
                official=self.benchmark.official(reply.text, question),
                strict=self.benchmark.strict(reply.text, question),
                categories=question.categories,
                tokens={**reply.tokens, **dense},
                seconds={stage: round(spent, 4) for stage, spent in seconds.items()},
            )
            log.add(answered)
            self._show([answered])
            seconds = {}

    def _show(self, answers: Sequence[Answer]) -> None:
        """Counts answers in the progress bar; the running accuracy is the official one."""
        scored = [answer for answer in answers if answer.answer is not None]
        self._scored += len(scored)
        self._right += sum(answer.official == answer.answer for answer in scored)
        if self._scored:
            self._bar.set_postfix_str(f"accuracy {100 * self._right / self._scored:.1f} %", refresh=False)
        self._bar.update(len(answers))

    def _wait(self) -> None:
        """Until the other processes are done. A launcher ends all processes when one of them fails."""
        wanted = {question.id for question in self.questions}
        while (
            self.shard.world > 1
            and self.shard.rank == 0
            and any(wanted - job.run.answers().keys() for job in self.jobs)
        ):
            time.sleep(POLL_SECONDS)

"""A benchmark along the way: the share of its questions that the model, as it is then, answers right.

The processes share out the videos and meet in the output folder, as runs of `autogaze-mllm eval` do. The answers stay
there, one folder for each evaluation.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from ..common.compute import distributed
from ..common.compute.distributed import Shard
from ..common.errors import InputError
from ..common.storage.files import output_folder
from ..evaluation.benchmarks import BENCHMARKS, Benchmark, Question
from ..evaluation.responders import EncodedVideo, ModelAnswerer, Variant
from ..evaluation.run_folder import Run
from ..evaluation.runner import Job, Runner
from ..evaluation.scoring import score
from ..mllm.model import GazedModel
from .config import FinetuneConfig
from .data.media_store import GazedCache


def chosen_benchmark(config: FinetuneConfig) -> tuple[Benchmark, list[Question]] | None:
    """The benchmark that is asked along the way, and its questions. Raises InputError for what cannot be asked."""
    if config.eval_benchmark is None:
        return None
    name, _, folder = config.eval_benchmark.partition("=")
    if name not in BENCHMARKS or not folder:
        known = ", ".join(BENCHMARKS)
        raise InputError(f"eval_benchmark is NAME=FOLDER, NAME one of {known}; got {config.eval_benchmark!r}")
    benchmark = BENCHMARKS[name](Path(folder))
    questions = benchmark.questions()[: config.eval_limit or None]
    if all(question.answer is None for question in questions):
        raise InputError(f"{folder}: the answers of {name} are withheld, so nothing can be scored along the way")
    missing = [str(path) for path in map(benchmark.video_path, _videos(questions)) if not path.is_file()]
    if missing:
        raise InputError(f"{folder}: {len(missing)} of the videos are missing, such as {missing[0]}")
    return benchmark, questions


def _videos(questions: Sequence[Question]) -> list[str]:
    return list(dict.fromkeys(question.video for question in questions))


class _AsGazed(ModelAnswerer):
    """Gazes as for every other answer, whatever precision the training computes in."""

    def watch(self, path: Path, variants: Sequence[Variant]) -> Iterator[EncodedVideo]:
        with torch.autocast(self.model.device.type, enabled=False):
            self.model.gaze_video(path)  # into the cache, where it is looked for next
        yield from super().watch(path, variants)


class BenchmarkEval:
    """Asks the questions of a benchmark; the answers are kept in the output folder, below `benchmark`."""

    def __init__(
        self, model: GazedModel, config: FinetuneConfig, benchmark: Benchmark, questions: Sequence[Question]
    ) -> None:
        self.model, self.config, self.benchmark, self.questions = model, config, benchmark, questions

    @torch.no_grad()
    def accuracy(self, step: int) -> float:
        """By the benchmark's own rule and mean, in [0, 1]. Everyone must call it; step: updates made until now."""
        model = self.model
        folder = Path(self.config.output) / "benchmark" / f"{self.benchmark.name}-{step}"
        if distributed.rank() == 0:
            shutil.rmtree(folder, ignore_errors=True)  # of a training that was resumed from before
            output_folder(folder)
        distributed.wait()
        run = Run(folder, {}, [question.id for question in self.questions], {})
        shard = Shard(distributed.rank(), distributed.count(), distributed.local_rank())
        kept = model.cache
        with tempfile.TemporaryDirectory() as passing:
            if self.config.trains_gaze:  # what is seen of the videos now will not be seen so again
                model.cache = GazedCache(passing)
            try:
                Runner(
                    self.benchmark,
                    self.questions,
                    _AsGazed(model, None),
                    [Job(run, Variant(model.gaze, model.settings))],
                    max_new_tokens=self.benchmark.max_new_tokens,
                    shard=shard,
                    progress=self.config.progress,
                ).run()
            finally:
                model.cache = kept
        distributed.wait()
        answers = list(run.answers().values())
        return float(score(answers, self.benchmark.mean_over)["official"]["score"]["value"])

"""One small file for each benchmark."""

from .base import Benchmark, Published, Question
from .egoschema import EgoSchema
from .hlvid import HLVid
from .longvideobench import LongVideoBench
from .mlvu import MLVU
from .mvbench import MVBench
from .nextqa import NExTQA
from .videomme import VideoMME

BENCHMARKS: dict[str, type[Benchmark]] = {
    benchmark.name: benchmark for benchmark in (HLVid, VideoMME, MVBench, NExTQA, LongVideoBench, EgoSchema, MLVU)
}

__all__ = ["BENCHMARKS", "Benchmark", "Published", "Question"]

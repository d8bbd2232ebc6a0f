"""SignVid: what gaze brings in small, with nothing to download.

Generates the test split where it is missing, asks a model the same questions while it looks at the videos in five ways
(gaze, pixel-diff, random at the tokens of gaze, every patch of every tile, and the whole frame shrunk until its shorter
side is 448 pixels), each in a process of its own, and writes table, plot and json. An interrupted run goes on with the
same command; what was measured with other settings or weights is refused. Settings are chosen with --dev.

    python benchmarks/signvid.py --shuffled                      # 51 videos of 16 frames at 1344x1344, 510 questions
    python benchmarks/signvid.py --large --looks pixel-diff      # 3840x2160, 256 frames, without `all`
    python benchmarks/signvid.py --small                         # 672x672
    python benchmarks/signvid.py --dev --model MODEL             # the train split, for choosing
    python benchmarks/signvid.py --quick --out runs/signvid      # two small videos
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import math
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from autogaze_mllm.cli import program_parser, run_program
from autogaze_mllm.common.compute.distributed import Shard
from autogaze_mllm.common.compute.memory import PeakMemory
from autogaze_mllm.common.environment import machine
from autogaze_mllm.common.errors import InputError
from autogaze_mllm.common.storage.files import read_json, write_json
from autogaze_mllm.common.storage.hashing import fingerprint
from autogaze_mllm.common.storage.json_text import to_json
from autogaze_mllm.evaluation.benchmarks import Question
from autogaze_mllm.evaluation.benchmarks.hlvid import HLVid
from autogaze_mllm.evaluation.reports.curve import CurvePoint, curve_point, table, write_curve
from autogaze_mllm.evaluation.reports.report import make_report
from autogaze_mllm.evaluation.responders import EncodedVideo, ModelAnswerer, Variant
from autogaze_mllm.evaluation.run_folder import Run, check_same
from autogaze_mllm.evaluation.runner import Job, Runner
from autogaze_mllm.gaze.autogaze.pretrained import BUNDLED
from autogaze_mllm.gaze.cache import VideoCache
from autogaze_mllm.gaze.gazed_video import GazedVideo
from autogaze_mllm.gaze.selector_registry import load_selector
from autogaze_mllm.gaze.settings import VideoSettings
from autogaze_mllm.mllm.model import GazedModel
from autogaze_mllm.signvid import SignVidConfig, VideoShape, ensure_signvid
from autogaze_mllm.signvid.dataset import DEVELOPMENT_SEED
from autogaze_mllm.signvid.legible import check_legible
from autogaze_mllm.signvid.plan import GAIN, TILE, TILES_4K, shape_4k
from autogaze_mllm.video.tiles import choose_tiles

SHRUNK = 448  # pixels of the shorter side of `whole-448`, or a little more where the tiles do not fit the frame
LOOKS = ("gaze", "pixel-diff", "all", "whole-448", "random")  # in this order: random gets the share that gaze kept
KNOWN = (*LOOKS, "pixel-diff-raw")
SHUFFLED = "shuffled"
COST, PEAK = "cost.json", "peak.json"
MAX_NEW_TOKENS = 24
LARGE_EVERY = 4  # signs stay for 12 of 256 frames at least, so none is missed
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclasses.dataclass(frozen=True)
class Setup:
    """recipe: of the data. tiles: a frame is cut into. ratio: share that gaze and pixel-diff may keep of a frame.
    looks: what is measured. every: of so many frames one is looked at. gain: what a patch must bring behind gaze (None:
    gaze takes all that it may).

    A small sign in a noisy frame moves the frame's loss less than the noise does, so no loss at which to stop tells a
    frame with a sign from one without; what single patches bring does."""

    recipe: SignVidConfig
    tiles: int
    ratio: float
    looks: tuple[str, ...] = LOOKS
    every: int = 1
    gain: float | None = None

    def settings(self, look: str) -> VideoSettings:
        shape = self.recipe.shape
        tiles = fewest_tiles(shape.width, shape.height, SHRUNK) if look == "whole-448" else self.tiles
        own = {"loss": 0.0, "gain": self.gain} if look == "gaze" else {}
        return VideoSettings().changed(frames=shape.frames // self.every, max_tiles=tiles, ratio=self.ratio, **own)

    def seen(self, look: str) -> tuple[int, int]:
        """(width, height) in pixels that a frame is resized to."""
        shape = self.recipe.shape
        columns, rows = choose_tiles(shape.width, shape.height, self.settings(look).max_tiles, TILE)
        return columns * TILE, rows * TILE


def fewest_tiles(width: int, height: int, side: int) -> int:
    """The lowest `max_tiles` at which a frame's shorter side keeps `side` pixels."""
    tiles = 1
    while min(choose_tiles(width, height, tiles, TILE)) * TILE < side:
        tiles += 1
    return tiles


def chosen_setup(arguments: argparse.Namespace) -> Setup:
    if arguments.quick:
        setup = Setup(SignVidConfig(VideoShape(448, 448, 6, signs=3), videos=2, questions=3), tiles=4, ratio=0.15)
    elif arguments.large:
        recipe = SignVidConfig(shape_4k(256, signs=6), videos=6, questions=10, seed=1)
        setup = Setup(recipe, tiles=TILES_4K, ratio=0.06, looks=("gaze", "pixel-diff", "whole-448"), every=LARGE_EVERY)
    elif arguments.small:
        setup = Setup(SignVidConfig(VideoShape(672, 672)), tiles=9, ratio=0.15)
    else:
        setup = Setup(SignVidConfig(), tiles=36, ratio=0.15)
    changes: dict[str, Any] = {"gain": arguments.gain}
    if arguments.gain is None and arguments.gaze == BUNDLED:
        changes["gain"] = GAIN
    if arguments.ratio is not None:
        changes["ratio"] = arguments.ratio
    if arguments.looks is not None:
        changes["looks"] = chosen_looks(arguments.looks)
    if arguments.shuffled and "gaze" not in changes.get("looks", setup.looks):
        raise InputError("--shuffled asks gaze: add gaze to --looks")
    recipe = setup.recipe
    if arguments.videos is not None:
        recipe = dataclasses.replace(recipe, videos=arguments.videos)
    if arguments.dev:
        recipe = dataclasses.replace(recipe, split="train", seed=DEVELOPMENT_SEED)
    return dataclasses.replace(setup, recipe=recipe, **changes)


def chosen_looks(asked: str) -> tuple[str, ...]:
    names = asked.split(",")
    unknown = set(names) - set(KNOWN)
    if unknown:
        raise InputError(f"--looks: no {min(unknown)!r}; known: {', '.join(KNOWN)}")
    if "random" in names and "gaze" not in names:
        raise InputError("--looks: random takes as many patches as gaze keeps: add gaze")
    return tuple(name for name in KNOWN if name in names)


def shuffled(questions: Sequence[Question]) -> list[Question]:
    """Every question about the next video; the last ones about the first."""
    videos = list(dict.fromkeys(question.video for question in questions))
    if len(videos) < 2:
        raise InputError("--shuffled needs two videos at least")
    following = dict(zip(videos, videos[1:] + videos[:1], strict=True))
    return [dataclasses.replace(question, video=following[question.video]) for question in questions]


def load_base(model: str, device: str | None, dtype: torch.dtype | None, settings: VideoSettings) -> GazedModel:
    """The model with a selector that nothing is decided by: each look brings its own."""
    from autogaze_mllm.mllm.loading import load_or_wrap

    return load_or_wrap(model, "all", settings=settings, device=device, dtype=dtype, cache=False)


def equal_ratio(kept: float, size: int, settings: VideoSettings) -> tuple[float, ...]:
    """A ratio for each frame of a chunk, under which a selector that fills its budget keeps `kept` of the patches or
    hardly more. size: patches of a picture. Budgets are truncated, so whole patches are dealt out to the frames."""
    frames = min(settings.frames, settings.chunk_frames)
    patches = math.ceil(round(kept * size * frames, 6))  # the share is a quotient of whole numbers
    ends = [patches * number // frames for number in range(settings.chunk_frames + 1)]
    return tuple(min((max(end - start, 1) + 0.5) / size, 1.0) for start, end in itertools.pairwise(ends))


class SeenBefore(VideoCache):
    """Visual tokens alone: what gaze saw is asked about once more, shuffled, and need not be gazed again for that."""

    def get_gazed(self, key: str) -> None:
        return None

    def put_gazed(self, key: str, gazed: GazedVideo) -> None:
        return None


class RecordingAnswerer(ModelAnswerer):
    """Notes the highest memory use after each video: an interrupted run has several processes, and so several peaks."""

    def __init__(self, model: GazedModel, name: str | None, path: Path) -> None:
        super().__init__(model, name)
        self._path, self._memory = path, PeakMemory(model.device)

    def watch(self, path: Path, variants: Sequence[Variant]) -> Iterator[EncodedVideo]:
        yield from super().watch(path, variants)
        self.note()

    def note(self) -> float:
        """GiB of all processes of this run so far."""
        before = read_json(self._path)["peak"] if self._path.is_file() else 0.0
        peak = max(self._memory.total / 2**30, before)
        write_json(self._path, {"peak": peak})
        return peak


def measure(look: str, setup: Setup, arguments: argparse.Namespace, shuffle: bool) -> None:
    """Asks all questions in one way. In a process of its own, so that its peak memory is its own. What is measured
    already stays; InputError where it was measured with something else."""
    settings = setup.settings(look)
    model = load_base(arguments.model, arguments.device, DTYPES.get(arguments.dtype), settings)
    place: dict[str, Any] = {"device": model.device, "dtype": model.dtype}
    name = {"gaze": arguments.gaze, "whole-448": "all"}.get(look, look)
    if look == "random":
        kept = read_json(arguments.out / "gaze" / COST)["look"]["kept"]
        settings = settings.changed(ratio=equal_ratio(kept, model.tower.grid.size, settings))
    selector = load_selector(name, **place)
    model.gaze, model.settings = selector, settings
    if look == "gaze" and arguments.shuffled:
        model.cache = SeenBefore(arguments.out / "seen")
    benchmark = HLVid(arguments.data)
    questions = benchmark.questions()
    if shuffle:
        questions = shuffled(questions)
    folder = arguments.out / (f"{look}-{SHUFFLED}" if shuffle else look)
    answerer = RecordingAnswerer(model, arguments.model, folder / PEAK)
    variant = Variant(selector, settings, name, look)
    facts = {
        "benchmark": benchmark.name,
        "split": benchmark.split,
        "subtitles": False,
        "made_up": True,
        "data": benchmark.data_version(),
        "limit": None,
        "max_new_tokens": MAX_NEW_TOKENS,
        "model": {**answerer.facts(), "weights": fingerprint(model.base.state_dict())},
        "seen": answerer.variant_facts(variant),
        "shuffled": shuffle,
        "machine": machine(model.device),
    }
    ids = [question.id for question in questions]
    run = Run.open(folder, facts, ids, {}, resume=True, shard=Shard())
    if (folder / COST).is_file():
        check_same(folder / COST, read_json(folder / COST)["facts"], facts)
        return
    job = Job(run, variant)
    Runner(benchmark, questions, answerer, [job], max_new_tokens=MAX_NEW_TOKENS, progress=True).run()
    answers = [run.answers()[name] for name in ids]
    found = curve_point(look, make_report(run), answers, answerer.note())
    write_json(folder / COST, {"facts": facts, "look": dataclasses.asdict(found)})


def gather(setup: Setup, out: Path, shuffle: bool) -> dict[str, CurvePoint]:
    looks = {name: CurvePoint(**read_json(out / name / COST)["look"]) for name in setup.looks}
    if shuffle:
        other = read_json(out / f"gaze-{SHUFFLED}" / COST)["look"]
        looks["gaze"] = dataclasses.replace(looks["gaze"], shuffled=other["accuracy"])
    return looks


def main() -> int:
    parser = program_parser(__doc__)
    parser.add_argument("--model", default=BUNDLED, help="folder of the model (default: the bundled one)")
    parser.add_argument("--gaze", default=BUNDLED, help="gaze model, or a selector (default: the bundled gaze model)")
    parser.add_argument(
        "--gain", type=float, help=f"what a patch must bring behind gaze (default: {GAIN} behind the bundled model)"
    )
    parser.add_argument("--data", type=Path, help="folder of the videos (default: below benchmarks/data)")
    parser.add_argument("--out", type=Path, help="folder of answers and reports (default: below runs)")
    parser.add_argument("--ratio", type=float, help="share of a frame's patches that gaze may keep (default 0.15)")
    parser.add_argument("--videos", type=int, help="of the test split (default 51, of 10 questions each)")
    parser.add_argument("--looks", help=f"some of {','.join(KNOWN)}")
    parser.add_argument("--device", help="cpu, cuda, ... (default: cpu)")
    parser.add_argument("--dtype", choices=list(DTYPES), help="of gaze model and MLLM (default: the model's own)")
    parser.add_argument("--shuffled", action="store_true", help="also ask every question about another video, gazed")
    parser.add_argument("--dev", action="store_true", help="the train split, to choose settings on")
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--large", action="store_true", help="3840x2160 and 256 frames, which `all` cannot run")
    size.add_argument("--small", action="store_true", help="672x672: `all` takes a quarter of the tokens")
    size.add_argument("--quick", action="store_true", help="two small videos")
    parser.add_argument("--workers", type=int, default=2, help="processes that generate videos")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    return run_program(parser, run)


def run(arguments: argparse.Namespace) -> int:
    setup = chosen_setup(arguments)
    size = "quick" if arguments.quick else "large" if arguments.large else "small" if arguments.small else "proof"
    size += "-dev" if arguments.dev else ""
    arguments.data = arguments.data or Path("benchmarks/data", f"signvid-{size}")
    arguments.out = arguments.out or Path("runs", f"signvid-{size}")
    if arguments.measure:
        look, _, shuffle = arguments.measure.partition(":")
        measure(look, setup, arguments, bool(shuffle))
        return 0
    ensure_signvid(arguments.data, setup.recipe, workers=arguments.workers, progress=True)
    for task in [*setup.looks, *([f"gaze:{SHUFFLED}"] if arguments.shuffled else [])]:
        own = [__file__, *sys.argv[1:], "--data", str(arguments.data), "--out", str(arguments.out)]
        done = subprocess.run([sys.executable, *own, "--measure", task], check=False)
        if done.returncode:
            return done.returncode
    looks = gather(setup, arguments.out, arguments.shuffled)
    shape, measured = setup.recipe.shape, read_json(arguments.out / setup.looks[0] / COST)["facts"]
    legible = check_legible(arguments.data, setup.recipe, factor=3, signs=60)
    facts = {
        "command": " ".join(["python benchmarks/signvid.py", *sys.argv[1:]]),
        "videos": f"{setup.recipe.videos} of {shape.frames} frames at {shape.width}x{shape.height}",
        "split": f"{setup.recipe.split}, seed {setup.recipe.seed}",
        "signs that a template reader reads": f"{100 * legible.full:.0f} % at full size, "
        f"{100 * legible.shrunk:.0f} % at a third of it (n = {legible.n})",
        **({"frames looked at": f"every {setup.every}th"} if setup.every > 1 else {}),
        "frames are resized to": "{}x{}".format(*setup.seen("gaze")),
        **({"whole-448 to": "{}x{}".format(*setup.seen("whole-448"))} if "whole-448" in setup.looks else {}),
        "ratio": setup.ratio,
        "gaze": Path(arguments.gaze).name,
        "model": Path(arguments.model).name,
        "dtype": measured["model"]["dtype"],
        "machine": measured["machine"],
    }
    result = write_curve(arguments.out, looks, facts)
    print(to_json(result["targets"], indent=1))
    for row in (table(looks).header, *table(looks).rows):
        print("  ".join(row))
    print(f"reports: {arguments.out / 'report.html'}, .md, .json, curve.png")
    return 0


if __name__ == "__main__":
    sys.exit(main())

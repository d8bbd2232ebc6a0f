"""Damaged files: a result or one line, never another exception, a hang or a heap of memory.

    python tests/fuzz.py --videos 1000 --pictures 1000

A kind of file is a function of `KINDS`: it makes sound files, and says what is to be done with a damaged one. All
follows from the seed. Files are tried in a process of their own, which is started anew when it dies, hangs for more
than --seconds or takes more than --memory. Faults are printed, and the files that caused them are kept.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import multiprocessing
import random
import resource
import shutil
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.helpers import fuzz_kinds

RESULT, REFUSED = "result", "refused"
SECONDS, MEMORY_GIB = 20.0, 2.0
LINE = 600  # characters of a line that somebody still reads


@dataclass(frozen=True)
class Kind:
    """make: writes sound files into a folder and returns them. use: what a user would do with one; its InputErrors are
    answers."""

    make: Callable[[Path], list[Path]]
    use: Callable[[Path], None]
    damage: Callable[[bytes, random.Random], bytes] | None = None
    """Of meaning, for every second file; None: of bytes alone."""


# -- kinds of files ----------------------------------------------------------------------------------------------------


def videos() -> Kind:
    def make(folder: Path) -> list[Path]:
        from autogaze_mllm.video.synthetic import moving_scene
        from autogaze_mllm.video.writer import write_video

        made = []
        for name, codec in [
            ("h264.mp4", "libx264"),
            ("h264.mkv", "libx264"),
            ("h264.ts", "libx264"),
            ("h264.avi", "libx264"),
            ("mpeg4.mp4", "mpeg4"),
            ("mpeg4.avi", "mpeg4"),
            ("vp9.webm", "libvpx-vp9"),
            ("mpeg2.ts", "mpeg2video"),
            ("ffv1.mkv", "ffv1"),
        ]:
            write_video(folder / name, moving_scene(96, 64, 12), 25, codec=codec)
            made.append(folder / name)
        return [*made, *_animations(folder)]

    def use(path: Path) -> None:
        import autogaze_mllm as am

        gazed = am.gaze_video(path, "pixel-diff", am.VideoSettings(frames=4, max_tiles=4))
        assert len(gazed) and gazed.num_pictures <= 4
        am.Video(path.read_bytes(), start=0.1, fps=5).sampled(4)

    return Kind(make, use)


def pictures() -> Kind:
    def make(folder: Path) -> list[Path]:
        import numpy as np
        from PIL import Image

        grey = np.tile(np.linspace(0, 65535, 64).astype(np.uint16), (48, 1))
        image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (48, 64, 3), dtype=np.uint8))
        made = [
            folder / f"plain.{suffix}" for suffix in ("png", "jpg", "gif", "webp", "tif", "bmp", "ppm", "tga", "ico")
        ]
        for path in made:
            image.save(path)
        for name, other in [
            ("deep.png", Image.fromarray(grey)),
            ("deep.tif", Image.fromarray(grey)),
            ("clear.png", image.convert("RGBA")),
            ("clear.webp", image.convert("RGBA")),
            ("print.jpg", image.convert("CMYK")),
            ("palette.png", image.quantize(16)),
        ]:
            other.save(folder / name)
            made.append(folder / name)
        exif = image.getexif()
        exif[0x0112] = 6
        image.save(folder / "phone.jpg", exif=exif)
        return [*made, folder / "phone.jpg", *_animations(folder)]

    def use(path: Path) -> None:
        from autogaze_mllm.common.pixels import open_picture

        assert open_picture(path).mode == "RGB"
        open_picture(path.read_bytes())

    return Kind(make, use)


def _animations(folder: Path) -> list[Path]:
    from PIL import Image

    from autogaze_mllm.video.synthetic import moving_scene

    first, *rest = [Image.fromarray(frame) for frame in moving_scene(96, 64, 4)]
    made = [folder / f"animation.{suffix}" for suffix in ("webp", "gif", "png")]
    for path in made:
        first.save(path, save_all=True, append_images=rest, duration=100)
    return made


def models() -> Kind:
    return Kind(fuzz_kinds.make_models, fuzz_kinds.use_model, fuzz_kinds.damaged_json)


def tensors() -> Kind:
    return Kind(fuzz_kinds.make_tensors, fuzz_kinds.use_model)


def videomaes() -> Kind:
    return Kind(fuzz_kinds.make_videomaes, fuzz_kinds.use_videomae, fuzz_kinds.damaged_settings)


def rows() -> Kind:
    return Kind(fuzz_kinds.make_rows, fuzz_kinds.use_rows, fuzz_kinds.damaged_json)


def commands() -> Kind:
    return Kind(fuzz_kinds.make_commands, fuzz_kinds.use_command, fuzz_kinds.damaged_words)


KINDS: dict[str, Callable[[], Kind]] = {
    "videos": videos,
    "pictures": pictures,
    "models": models,
    "tensors": tensors,
    "videomaes": videomaes,
    "rows": rows,
    "commands": commands,
}


# -- damage ------------------------------------------------------------------------------------------------------------


def damaged(data: bytes, chance: random.Random) -> bytes:
    """The bytes with one to three kinds of damage."""
    changed = bytearray(data)
    for _ in range(chance.randint(1, 3)):
        if changed:
            chance.choice((_flip, _cut, _wipe, _repeat, _extreme, _swap))(changed, chance)
    return bytes(changed)


def _region(data: bytearray, chance: random.Random) -> tuple[int, int]:
    """The head or the tail, where the index is and which decide most, or all."""
    size = min(len(data), 2048)
    return chance.choice(((0, size), (len(data) - size, len(data)), (0, len(data))))


def _flip(data: bytearray, chance: random.Random) -> None:
    start, end = _region(data, chance)
    for _ in range(chance.choice((1, 4, 32, 256))):
        data[chance.randrange(start, end)] ^= 1 << chance.randrange(8)


def _cut(data: bytearray, chance: random.Random) -> None:
    del data[chance.randrange(len(data)) :]


def _wipe(data: bytearray, chance: random.Random) -> None:
    start = chance.randrange(len(data))
    size = min(chance.choice((4, 64, 1024)), len(data) - start)
    data[start : start + size] = bytes([chance.choice((0, 255, chance.randrange(256)))]) * size


def _repeat(data: bytearray, chance: random.Random) -> None:
    start = chance.randrange(len(data))
    data[start:start] = data[start : start + chance.choice((1, 16, 512))]


def _extreme(data: bytearray, chance: random.Random) -> None:
    """A number becomes as large, or as negative, as it can be."""
    start = chance.randrange(*_region(data, chance))
    number = chance.choice((b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\x80\0\0\0", b"\0\0\0\0", b"\xff\xff\xff\x7f"))
    data[start : start + 4] = number[: len(data) - start]


def _swap(data: bytearray, chance: random.Random) -> None:
    one, other = (chance.randrange(len(data)) for _ in range(2))
    size = chance.choice((8, 256))
    first, second = bytes(data[one : one + size]), bytes(data[other : other + size])
    data[one : one + len(second)], data[other : other + len(first)] = second, first


# -- trying ------------------------------------------------------------------------------------------------------------


def _tried(kind: Kind, path: Path) -> str:
    """ "result", "refused", or what was wrong."""
    from autogaze_mllm.common.errors import InputError

    try:
        kind.use(path)
    except InputError as error:
        message = str(error)
        fits = message and "\n" not in message and len(message) < LINE + len(str(path))
        return REFUSED if fits else f"an error that is no line: {message[:LINE]!r}"
    except BaseException:
        return traceback.format_exc()
    return RESULT


def _worker(name: str, memory: float, link: Connection) -> None:
    import logging
    import os
    import warnings

    os.environ["HF_HUB_OFFLINE"] = "1"  # a name that is no folder is refused at once

    import torch

    torch.set_num_threads(1)
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    import autogaze_mllm.gaze.pipeline  # noqa: F401  # what the first file would wait for
    from autogaze_mllm.common.compute.memory import PeakMemory

    kind = KINDS[name]()
    limit = int((memory + 8) * 2**30)  # of addresses, which are many more than what is used
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    used = PeakMemory()  # not getrusage, whose peak goes on from the process that started this one
    link.send(None)
    while (path := link.recv()) is not None:
        with contextlib.redirect_stderr(io.StringIO()):
            told = _tried(kind, path)
        link.send((told, used.total / 2**30))


@dataclass
class _Helper:
    """A process that tries files, started anew when it is lost. slowest: seconds of a file; peak: GiB of a process."""

    name: str
    seconds: float
    memory: float
    slowest: float = 0.0
    peak: float = 0.0

    def __post_init__(self) -> None:
        self._start()

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self.link, far = context.Pipe()
        self.process = context.Process(target=_worker, args=(self.name, self.memory, far), daemon=True)
        self.process.start()
        far.close()
        self.link.recv()  # when everything is imported

    def tried(self, path: Path) -> str:
        started = time.perf_counter()
        self.link.send(path)
        try:
            told, used = (
                self.link.recv() if self.link.poll(self.seconds) else (f"hangs for more than {self.seconds:g} s", 0.0)
            )
        except EOFError:
            told, used = f"the process died (exit code {self.process.exitcode})", 0.0
        self.slowest, self.peak = max(self.slowest, time.perf_counter() - started), max(self.peak, used)
        if used > self.memory:
            told = f"takes {used:.1f} GiB"
        if told not in (RESULT, REFUSED):
            self.stop()
            self._start()
        return told

    def stop(self) -> None:
        with contextlib.suppress(OSError):
            self.link.send(None)
        self.process.join(1)
        self.process.kill()
        self.process.join()


@dataclass(frozen=True)
class Report:
    """outcomes: how often each came. faults: each in words. slowest: seconds of a file. peak: GiB of a process."""

    outcomes: Counter[str]
    faults: list[str]
    slowest: float
    peak: float


def fuzz(
    name: str,
    count: int,
    *,
    seed: int = 0,
    seconds: float = SECONDS,
    memory: float = MEMORY_GIB,
    keep: Path | None = None,
) -> Report:
    """Tries the sound files of a kind, then damaged ones. keep: where files that show a fault go."""
    chance, outcomes, faults = random.Random(f"{name} {seed}"), Counter[str](), []
    with tempfile.TemporaryDirectory() as folder:
        kind = KINDS[name]()
        sound = kind.make(Path(folder))
        helper = _Helper(name, seconds, memory)
        try:
            for number in range(count):
                original = sound[number] if number < len(sound) else chance.choice(sound)
                data = original.read_bytes()
                path = Path(folder) / f"{number}-{original.name}"
                by_meaning = kind.damage if kind.damage and (number % 2 or name == "commands") else damaged
                path.write_bytes(data if number < len(sound) else by_meaning(data, chance))
                told = helper.tried(path)
                outcomes[told if told in (RESULT, REFUSED) else "fault"] += 1
                if number < len(sound) and told != RESULT:
                    faults.append(f"{original.name} is sound, but: {told}")
                elif told not in (RESULT, REFUSED):
                    faults.append(f"{path.name} (seed {seed}): {told}")
                    if keep is not None:
                        keep.mkdir(parents=True, exist_ok=True)
                        shutil.copy(path, keep)
                path.unlink()
        finally:
            helper.stop()
    return Report(outcomes, faults, helper.slowest, helper.peak)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name in KINDS:
        parser.add_argument(f"--{name}", type=int, default=0, metavar="N", help=f"how many damaged {name} to try")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=SECONDS, help="for one file (default %(default)s)")
    parser.add_argument("--memory", type=float, default=MEMORY_GIB, help="GiB for one file (default %(default)s)")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="where files that show a fault are kept")
    arguments = parser.parse_args()
    told: dict[str, Any] = {}
    failed = False
    for name in KINDS:
        if count := getattr(arguments, name):
            report = fuzz(
                name,
                count,
                seed=arguments.seed,
                seconds=arguments.seconds,
                memory=arguments.memory,
                keep=arguments.keep,
            )
            told[name] = {**report.outcomes, "slowest_s": round(report.slowest, 2), "peak_gib": round(report.peak, 2)}
            failed = failed or bool(report.faults)
            for fault in report.faults:
                print(f"{name}: {fault}", file=sys.stderr)
    print(json.dumps(told))
    return int(failed)


if __name__ == "__main__":
    raise SystemExit(main())

"""Videos an hour that `autogaze-mllm index` does, with one worker and with two, and what its back ends cost.

Videos are generated once (640x360, 48 frames, a moving scene each) and indexed from nothing in every way: by processes,
by two launched processes with one worker each (RANK and WORLD_SIZE), and by Ray's actors on this machine. Reported for
each: seconds of the whole command, of the indexing alone, and the start, which is what they differ by; videos an hour
of the indexing; on Linux the seconds that cores spent on it, all processes together, which say most where other work
runs beside it, and how much that was (load average). Results are compared: every way must leave the same bytes.

    python benchmarks/index.py --videos 16 --out benchmarks/results/index_cpu.json
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from pathlib import Path
from typing import Any

from autogaze_mllm.cli import program_parser, run_program
from autogaze_mllm.common.environment import machine
from autogaze_mllm.common.storage.json_text import to_json
from autogaze_mllm.video.synthetic import moving_scene
from autogaze_mllm.video.writer import write_video

WAYS = {
    "1 process": (1, ["--workers", "1"]),
    "2 processes": (1, ["--workers", "2"]),
    "2 launched, 1 process each": (2, ["--workers", "1"]),
    "Ray, 1 actor": (1, ["--ray", "local", "--workers", "1"]),
    "Ray, 2 actors": (1, ["--ray", "local", "--workers", "2"]),
}


def make_videos(folder: Path, count: int) -> None:
    for number in range(count):
        path = folder / f"{number:03}.mp4"
        if not path.exists():
            folder.mkdir(parents=True, exist_ok=True)
            write_video(path, moving_scene(640, 360, 48, seed=number), fps=12)


class CoreSeconds:
    """Of all processes whose environment holds the tag, their own of a back end included, sampled from /proc. A context
    manager."""

    def __init__(self, tag: str) -> None:
        self.tag, self.spent = tag.encode(), dict[str, float]()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    @property
    def total(self) -> float | None:
        return sum(self.spent.values()) if self.spent else None

    def _watch(self) -> None:
        while not self._ended.wait(0.25):
            self.sample()

    def sample(self) -> None:
        for process in Path("/proc").glob("[0-9]*"):
            try:
                if self.tag in (process / "environ").read_bytes():
                    user, system = (process / "stat").read_text().rpartition(")")[2].split()[11:13]
                    self.spent[process.name] = (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")
            except OSError:  # it has ended
                continue

    def __enter__(self) -> CoreSeconds:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()


def run(videos: Path, out: Path, launched: int, options: list[str]) -> dict[str, Any]:
    command = [sys.executable, "-m", "autogaze_mllm", "index", str(videos), "--out", str(out), "--json", *options]
    start, tag = time.perf_counter(), uuid.uuid4().hex
    processes = []
    with CoreSeconds(tag) as cores:
        for rank in range(launched):
            ranks = {"RANK": str(rank), "WORLD_SIZE": str(launched), "LOCAL_WORLD_SIZE": str(launched)}
            environment = {**os.environ, "INDEX_BENCHMARK": tag, **(ranks if launched > 1 else {})}
            processes.append(subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True))
        printed = [process.communicate()[0] for process in processes]
    wall = time.perf_counter() - start
    if any(process.returncode for process in processes):
        raise SystemExit(f"{' '.join(command)} failed")
    results = [json.loads(text) for text in printed]
    seconds, tried = max(result["seconds"] for result in results), sum(result["tried"] for result in results)
    return {
        "videos": tried,
        "wall_seconds": wall,
        "seconds": seconds,
        "start_seconds": wall - seconds,
        "videos_per_hour": 3600 * tried / seconds,
        "core_seconds": cores.total,
        "load_average": os.getloadavg()[0],
    }


def contents(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in out.glob("*.safetensors")}


def main() -> int:
    parser = program_parser(__doc__)
    parser.add_argument("--videos", type=int, default=24)
    parser.add_argument("--gaze", default="bundled", help="as of `index` (default: the bundled gaze model)")
    parser.add_argument("--frames", type=int, default=16)
    parser.add_argument("--video-folder", type=Path, default=Path("benchmarks/data/index"))
    parser.add_argument("--out", type=Path, help="json file")
    return run_program(parser, measure_all)


def measure_all(arguments: argparse.Namespace) -> None:
    videos = arguments.video_folder / str(arguments.videos)
    make_videos(videos, arguments.videos)
    options = ["--gaze", arguments.gaze, "--frames", str(arguments.frames)]
    rows: list[dict[str, Any]] = []
    first: dict[str, bytes] = {}
    with tempfile.TemporaryDirectory() as folder:
        for number, (name, (launched, more)) in enumerate(WAYS.items()):
            out = Path(folder) / str(number)
            row = {"workers": name, **run(videos, out, launched, [*options, *more])}
            first = first or contents(out)
            rows.append({**row, "same_bytes": contents(out) == first})
            print(to_json(rows[-1]), file=sys.stderr)
    result = {
        "command": "python " + " ".join(sys.argv),
        "machine": machine(),
        "cores": os.cpu_count(),
        "gaze": arguments.gaze,
        "frames": arguments.frames,
        "rows": rows,
    }
    print(to_json(result, indent=2))
    if arguments.out:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(to_json(result, indent=2) + "\n")


if __name__ == "__main__":
    sys.exit(main())

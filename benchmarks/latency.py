"""The two latency figures of the AutoGaze paper: one second of video, dense against gazed, stage by stage.

For each frame rate x resolution, with the paper's kept ratio there (or, with --required, the measured one): the dense
tower against gaze + gather + gazed tower, and the dense model against gaze + gazed model up to the first token. Frames
are cut into tiles of 224 pixels.
Weights are random: latency does not depend on them. Values are medians; what would take longer than --limit seconds is
measured on part of the tiles and scaled (marked ~), an LLM prefill that would is left out, and what does not fit in
memory is printed as such. --ask adds one question on videos of 16, 128 and 1024 frames, once each, end to end, with a
model small enough for it on a CPU (12 layers of 384 channels in its tower, 2 layers in its LLM), 7 % of the patches
kept and no stop rule, whose predictions would mean nothing with random weights.

    python benchmarks/latency.py --size base --out benchmarks/results/latency_base_cpu.json
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import Qwen2Config, Qwen2ForCausalLM, SiglipVisionConfig, SiglipVisionModel

import autogaze_mllm as am
from autogaze_mllm.cli import program_parser, run_program
from autogaze_mllm.common.drawing.plots import legend, panels, save_png
from autogaze_mllm.common.environment import machine
from autogaze_mllm.common.storage.json_text import to_json
from autogaze_mllm.gaze.gazed_video import GazedVideo
from operating_points import CLIP, PAPER, TILE, measured_points

# Frames that are gazed and pictures that a dense tower encodes at a time, where nobody says.
PROBE = {"cpu": 512, "cuda": 4096}  # tokens of the prefill that says how long a longer one would take
TOGETHER = {"cpu": (64, 64), "cuda": (4096, 512)}


@dataclass(frozen=True)
class Size:
    """hidden, inner, layers, heads of tower and LLM; patch of the tower; merge: patches that become one token."""

    vision: tuple[int, int, int, int]
    text: tuple[int, int, int, int, int]  # and key/value heads
    merge: int
    patch: int = 16
    vocabulary: int = 32000


SIZES = {
    "tiny": Size((64, 128, 3, 4), (64, 128, 2, 4, 2), 1, vocabulary=1000),
    "base": Size((768, 3072, 12, 12), (896, 4864, 24, 14, 2), 1),
    "so400m": Size((1152, 4304, 27, 16), (896, 4864, 24, 14, 2), 1),
    "nvila-8b": Size((1152, 4304, 27, 16), (3584, 18944, 28, 28, 4), 9, vocabulary=151648),
}

# --ask: arguments of the built-in model that answers.
ASKED: dict[str, dict[str, int]] = {"tiny": {}, "base": {"hidden": 384, "layers": 12}}


class Models:
    """Random tower, gazed tower, projector, LLM and gaze model of a size."""

    def __init__(self, size: Size, device: torch.device, dtype: torch.dtype) -> None:
        self.device, self.dtype, self.merge = device, dtype, size.merge
        torch.manual_seed(0)
        hidden, inner, layers, heads = size.vision
        vision = SiglipVisionConfig(
            hidden_size=hidden,
            intermediate_size=inner,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            image_size=TILE,
            patch_size=size.patch,
            vision_use_head=False,
        )
        width, text_inner, text_layers, text_heads, kv_heads = size.text
        text = Qwen2Config(
            vocab_size=size.vocabulary,
            hidden_size=width,
            intermediate_size=text_inner,
            num_hidden_layers=text_layers,
            num_attention_heads=text_heads,
            num_key_value_heads=kv_heads,
            max_position_embeddings=1 << 21,
        )
        with torch.device(device):
            default = torch.get_default_dtype()
            torch.set_default_dtype(dtype)
            try:
                self.tower = SiglipVisionModel(vision).eval()
                self.llm = Qwen2ForCausalLM(text).eval()
                joined = hidden * size.merge
                self.projector = nn.Sequential(nn.Linear(joined, width), nn.GELU(), nn.Linear(width, width)).eval()
            finally:
                torch.set_default_dtype(default)
        self.gaze = am.AutoGaze().eval().to(device, dtype)
        self.gazed_tower = am.GazedSiglipVisionModel(self.tower, scales="32+64+112+224")

    def project(self, features: torch.Tensor) -> torch.Tensor:
        """(n, C) -> tokens (n / merge, width)."""
        whole = features[: len(features) // self.merge * self.merge]
        return self.projector(whole.reshape(-1, features.shape[-1] * self.merge))

    def first_token(self, tokens: torch.Tensor) -> None:
        self.llm(inputs_embeds=tokens[None], logits_to_keep=1, use_cache=True).logits.argmax()


@dataclass
class Timing:
    """Median seconds; scaled: part was measured and scaled up; None: not run, `why` says so."""

    seconds: float | None
    scaled: bool = False
    why: str = ""

    def __str__(self) -> str:
        if self.seconds is None:
            return self.why
        return f"{'~' if self.scaled else ''}{1000 * self.seconds:.0f}"


class Clock:
    def __init__(self, device: torch.device, repeats: int, limit: float) -> None:
        self.device, self.repeats, self.limit = device, repeats, limit

    def once(self, call: Callable[[], Any]) -> float:
        self._wait()
        start = time.perf_counter()
        call()
        self._wait()
        return time.perf_counter() - start

    def _wait(self) -> None:
        if self.device.type != "cpu":
            torch.accelerator.synchronize(self.device)

    def batches(self, call: Callable[[int], Any], count: int, warm_up: bool = True) -> Timing:
        """call(n) for n in range(count), all of them or as many as the limit lets."""
        try:
            for _ in range(1 if self.device.type == "cpu" else 3):  # steps are captured when they come again
                if warm_up:
                    call(0)
            runs: list[float] = []
            part = count
            while len(runs) < self.repeats and (not runs or sum(runs) + runs[0] < self.limit):
                total, done = 0.0, 0
                while done < part and (total < self.limit or not done):
                    total += self.once(lambda n=done: call(n))  # type: ignore[misc]
                    done += 1
                part = done
                runs.append(total)
            return Timing(sorted(runs)[len(runs) // 2] * count / part, scaled=part < count)
        except (torch.OutOfMemoryError, MemoryError):
            return Timing(None, why="out of memory")
        except RuntimeError as error:  # the CPU allocator's way of saying so
            if "memory" not in str(error):
                raise
            return Timing(None, why="out of memory")


def measure_point(
    models: Models, clock: Clock, fps: int, side: int, ratio: float, together: tuple[int, int]
) -> dict[str, Any]:
    """together: frames that are gazed, and pictures that the dense tower encodes, at a time."""
    device, dtype = models.device, models.dtype
    tiles = (side // TILE) ** 2
    frame = torch.rand(3, side, side, device=device, dtype=dtype)
    grid_of_tiles = frame.unflatten(2, (-1, TILE)).unflatten(1, (-1, TILE))  # (3, rows, TILE, columns, TILE)
    whole = grid_of_tiles.permute(1, 3, 0, 2, 4).flatten(0, 1).contiguous()

    def cut(first: int, last: int) -> torch.Tensor:
        """Tiles [first, last), all of the same frame: what they show does not matter."""
        return whole[torch.arange(first, last, device=device) % tiles]

    result: dict[str, Any] = {"fps": fps, "side": side, "ratio": ratio, "tiles": tiles}
    stages: dict[str, Timing] = {}
    images, batch = fps * tiles, together[1]
    groups = -(-images // batch)
    stages["dense tower"] = clock.batches(
        lambda n: models.tower(cut(n * batch, min(images, (n + 1) * batch))).last_hidden_state, groups
    )
    # Gaze sees a second of each tile as one clip (of at most 16 frames; longer seconds are two).
    lengths = [min(CLIP, fps - start) for start in range(0, fps, CLIP)]
    per_call = max(together[0] // CLIP, 1)
    calls = [(length, min(per_call, tiles - first)) for length in lengths for first in range(0, tiles, per_call)]
    grid = models.gazed_tower.grid
    gazed: dict[tuple[int, int], tuple[torch.Tensor, am.GazingInfo]] = {}  # one call of each shape

    def gaze(number: int) -> None:
        length, rows = calls[number]
        pixels = cut(0, rows * length).unflatten(0, (rows, length))
        gazed[calls[number]] = pixels, models.gaze.generate(pixels, ratio)

    stages["gaze"] = clock.batches(gaze, len(calls))
    for number in range(len(calls)):
        if calls[number] not in gazed:
            gaze(number)
    stages["gather"] = clock.batches(lambda n: GazedVideo.from_info(*gazed[calls[n]], grid), len(calls))
    parts = {shape: GazedVideo.from_info(*found, grid) for shape, found in gazed.items()}
    patches = sum(len(parts[shape]) for shape in calls)
    packs: list[list[GazedVideo]] = [[]]  # what the tower encodes at a time
    for shape in calls:
        if sum(map(len, packs[-1])) > (1 << 15 if device.type == "cuda" else 1 << 11):
            packs.append([])
        packs[-1].append(parts[shape])
    videos = [GazedVideo.concatenate(pack) for pack in packs]
    stages["gazed tower"] = clock.batches(lambda n: models.gazed_tower.encode(videos[n]), len(videos))
    dense_patches = images * (TILE // models.tower.config.patch_size) ** 2
    for name, count in (("dense", dense_patches), ("gazed", patches)):
        tokens = max(count // models.merge, 1)
        stages[f"{name} projector"] = _projection(models, clock, count)
        stages[f"{name} prefill"] = _prefill(models, clock, tokens)
        result[f"{name}_patches"], result[f"{name}_tokens"] = count, tokens
    return result | _sums(stages)


def _sums(stages: dict[str, Timing]) -> dict[str, Any]:
    """What the stages of one point come to: milliseconds of each, of the tower and of the MLLM, dense and gazed."""
    result: dict[str, Any] = {}
    result["milliseconds"] = {name: None if t.seconds is None else 1000 * t.seconds for name, t in stages.items()}
    result["notes"] = {name: t.why or "scaled" for name, t in stages.items() if t.why or t.scaled}

    def total(*names: str) -> float | None:
        parts = [stages[name].seconds for name in names]
        return None if None in parts else 1000 * sum(parts)  # type: ignore[arg-type]

    gazing = ("gaze", "gather", "gazed tower")
    result["tower"] = {"dense": total("dense tower"), "gazed": total(*gazing)}
    result["mllm"] = {
        "dense": total("dense tower", "dense projector", "dense prefill"),
        "gazed": total(*gazing, "gazed projector", "gazed prefill"),
    }
    for name in ("tower", "mllm"):
        pair = result[name]
        pair["speedup"] = None if None in pair.values() else pair["dense"] / pair["gazed"]
    return result


def _projection(models: Models, clock: Clock, count: int) -> Timing:
    """The projector on this many patches; on part of them, and scaled, where they are very many."""
    features = torch.randn(
        min(count, 1 << 16), models.tower.config.hidden_size, device=models.device, dtype=models.dtype
    )
    projected = clock.batches(lambda n: models.project(features), 1)
    projected.seconds = None if projected.seconds is None else projected.seconds * count / len(features)
    return projected


def _prefill(models: Models, clock: Clock, tokens: int) -> Timing:
    """Time of the prefill, left out where a short one says that it would take too long."""
    config = models.llm.config
    few = min(tokens, PROBE.get(models.device.type, PROBE["cpu"]))
    weights = sum(p.numel() for p in models.llm.model.layers.parameters())
    work = [2 * n * weights + 2 * config.num_hidden_layers * config.hidden_size * n**2 for n in (few, tokens)]

    def run(count: int) -> Callable[[int], None]:
        embedded = torch.randn(count, config.hidden_size, device=models.device, dtype=models.dtype)
        return lambda _: models.first_token(embedded)

    short = clock.batches(run(few), 1)
    if tokens == few or short.seconds is None:
        return short
    expected = short.seconds * work[1] / work[0]
    if expected > 4 * clock.limit:
        return Timing(None, why=f"not run ({expected:.0f} s)")
    return clock.batches(run(tokens), 1, warm_up=expected < clock.limit / 4)  # the short one loaded the kernels


def ask(device: torch.device, counts: list[int], size: str) -> list[dict[str, Any]]:
    """One question on a made video, dense against gazed, with a built-in model, from the file to the first token."""
    from autogaze_mllm.mllm.tiny import tiny_model
    from autogaze_mllm.video.synthetic import moving_scene
    from autogaze_mllm.video.writer import write_video

    rows: list[dict[str, Any]] = []
    base, processor = tiny_model(**ASKED.get(size, ASKED["base"]))
    gazes = {"pixel-diff": "pixel-diff", "gaze model": am.AutoGaze().eval().to(device)}
    settings: dict[str, Any] = {"processor": processor, "cache": False, "ratio": 0.07, "loss": 0}
    with tempfile.TemporaryDirectory() as folder:

        def answer(model: Any, path: Path) -> tuple[float, int]:
            start = time.perf_counter()
            model.ask(path, "What moves?", max_new_tokens=1)
            return time.perf_counter() - start, model.stats["visual_tokens"]

        for frames in counts:
            path = Path(folder) / f"{frames}.mp4"
            write_video(path, moving_scene(448, 448, frames), fps=30)
            row: dict[str, Any] = {"frames": frames}
            for name, gaze in gazes.items():
                model = am.wrap(base.to(device), gaze, frames=frames, **settings)
                if not rows:
                    answer(model, path)  # warm-up
                row[name] = dict(zip(("seconds", "tokens"), answer(model, path), strict=True))
                if "dense" not in row:
                    with model.disabled():
                        row["dense"] = dict(zip(("seconds", "tokens"), answer(model, path), strict=True))
                model.unwrap()
            rows.append(row)
            parts = (f"{name} {row[name]['seconds']:.1f} s, {row[name]['tokens']} tokens" for name in ("dense", *gazes))
            print(f"{frames:>5} frames: " + "; ".join(parts), flush=True)
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    def cell(value: float | None, pattern: str) -> str:
        return "-" if value is None else pattern.format(value)

    lines = ["fps x side   kept   tower dense  gazed (gaze)      ratio   mllm dense    gazed      ratio   [ms]"]
    for row in rows:
        mark = "~" if "scaled" in row["notes"].values() else " "
        tower, mllm, gaze = row["tower"], row["mllm"], row["milliseconds"]["gaze"]
        lines.append(
            f"{row['fps']:>3} x {row['side']:<5}  {row['ratio']:.3f} {mark}{cell(tower['dense'], '{:>10.0f}'):>10} "
            f"{cell(tower['gazed'], '{:>8.0f}'):>8} ({cell(gaze, '{:.0f}')}) {cell(tower['speedup'], '{:>6.1f}x'):>9} "
            f"{cell(mllm['dense'], '{:>11.0f}'):>11} {cell(mllm['gazed'], '{:>9.0f}'):>9} "
            f"{cell(mllm['speedup'], '{:>6.1f}x'):>9}"
            + "".join(f"  {name}: {why}" for name, why in row["notes"].items() if why != "scaled")
        )
    return "\n".join(lines)


def plot(rows: list[dict[str, Any]], path: Path, title: str) -> None:
    figure, axes = panels(2)
    labels = [f"{row['fps']} x {row['side']}" for row in rows]
    for axis, part, name in zip(axes, ("tower", "mllm"), ("tower", "model up to the first token"), strict=True):
        for kind, style in (("dense", "o--"), ("gazed", "o-")):
            axis.plot(labels, [row[part][kind] or float("nan") for row in rows], style, label=kind)
        axis.set(yscale="log", ylabel="milliseconds", title=name, xlabel="frames per second x pixels")
        axis.tick_params(axis="x", rotation=45)
        legend(axis)
    figure.suptitle(title)
    save_png(figure, path)


@torch.no_grad()
def main() -> int:
    parser = program_parser(__doc__)
    parser.add_argument("--size", choices=SIZES, default="base")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", choices=["fp32", "bf16"], help="default: bf16 on a GPU, fp32 on the CPU")
    parser.add_argument("--points", type=int, metavar="N", help="only the first N points")
    parser.add_argument(
        "--required", type=Path, metavar="FILE", help="ratios from what required_ratio.py wrote (default: the paper's)"
    )
    parser.add_argument("--selector", default="bundled", help="whose ratios, with --required (default bundled)")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--limit", type=float, default=10, help="seconds for one measurement")
    parser.add_argument(
        "--batch",
        type=int,
        help="images of a dense batch and frames of a gazed one (default: 64 on a CPU, more on a GPU)",
    )
    parser.add_argument("--ask", nargs="?", const="16,128,1024", help="also one question on videos of so many frames")
    parser.add_argument("--out", type=Path, help="json file; a plot is written beside it")
    return run_program(parser, run)


def run(arguments: argparse.Namespace) -> None:
    points = PAPER if arguments.required is None else measured_points(arguments.required, arguments.selector)
    device = torch.device(arguments.device)
    kind = arguments.dtype or ("bf16" if device.type == "cuda" else "fp32")
    models = Models(SIZES[arguments.size], device, torch.bfloat16 if kind == "bf16" else torch.float32)
    clock = Clock(device, arguments.repeats, arguments.limit)
    rows: list[dict[str, Any]] = []
    result: dict[str, Any] = {
        "command": "python " + " ".join(sys.argv),
        "machine": f"{machine(device)}, {kind}",
        "size": arguments.size,
        "rows": rows,
    }
    for point in points[: arguments.points]:
        together = (arguments.batch,) * 2 if arguments.batch else TOGETHER.get(device.type, TOGETHER["cpu"])
        rows.append(measure_point(models, clock, *point, together))
        print("\n".join(table(rows).splitlines()[0 if len(rows) == 1 else len(rows) :]), flush=True)
        write(result, arguments.out)
    if arguments.ask:
        result["ask"] = ask(device, [int(count) for count in arguments.ask.split(",")], arguments.size)
        write(result, arguments.out)


def write(result: dict[str, Any], path: Path | None) -> None:
    """After every row, so that nothing is lost when a long run is ended."""
    if path is None:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(to_json(result, indent=2) + "\n")
    if result["rows"]:
        plot(result["rows"], path.with_suffix(".png"), f"One second of video, {result['size']}: {result['machine']}")


if __name__ == "__main__":
    sys.exit(main())

"""Are the published numbers reproduced? For whoever has the weights; says equal or not, line by line.

example: the official example, patches of each frame and features of SigLIP. table: the reconstruction fork's table of
the same video. golden: results of the published code with random weights, which needs no download. Counts must be
equal where no loss decides; other numbers may be off by what scripts/published_numbers.json allows.

    python scripts/check_published.py example_input.mp4
    python scripts/check_published.py --parts golden

Exit code 0: all equal, 1: something is not, 2: bad input.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
from safetensors.torch import save_file

from autogaze_mllm.cli import program_parser, run_program
from autogaze_mllm.commands.arguments.options import quiet, usable_device
from autogaze_mllm.commands.arguments.revisions import HELP, read_revisions, revision_option
from autogaze_mllm.common.errors import InputError
from autogaze_mllm.common.pixels import resize_bicubic
from autogaze_mllm.common.storage.files import read_fields, read_json, write_json
from autogaze_mllm.common.storage.json_text import Fields, to_json
from autogaze_mllm.common.storage.pinned import check_named
from autogaze_mllm.common.storage.weights import read_weights
from autogaze_mllm.published import (
    AutoGaze,
    AutoGazeImageProcessor,
    SiglipVisionModel,
    process_video_frames,
    read_video_pyav,
    transform_video_for_pytorch,
)
from autogaze_mllm.training.tasks.videomae.task import VideoMAETask

ROOT = Path(__file__).resolve().parents[1]
PARTS = ("example", "table", "golden")
LOG_PROBS, EXACT = 5e-5, 1e-5  # by which results of another machine may be off, of the largest value or of 1
LIMITS = ("gazing_ratio", "task_loss_requirement")  # what a setting says
COLUMNS = ("non_padded_gazes", "reconstruction_loss", "pixel_mae", "psnr", "ssim")


@dataclass(frozen=True)
class Line:
    """One comparison. allowed: by which the number may be off; 0: it must be the same."""

    part: str
    what: str
    expected: Any
    found: Any
    equal: bool
    allowed: float = 0.0

    def __str__(self) -> str:
        verdict = "equal    " if self.equal else "NOT EQUAL"
        found = "" if self.equal and not self.allowed else f", found {_short(self.found)}"
        allowed = f" (may be off by {self.allowed:.3g})" if self.allowed else ""
        return f"{verdict}  {self.part}: {self.what}: {_short(self.expected)}{found}{allowed}"


def _short(value: Any) -> str:
    return f"{value:.5g}" if isinstance(value, float) else str(value)


def same(part: str, what: str, expected: Any, found: Any) -> Line:
    return Line(part, what, expected, found, expected == found)


def close(part: str, what: str, expected: float, found: float, allowed: float) -> Line:
    return Line(part, what, expected, found, abs(found - expected) <= allowed, allowed)


# -- the official example, and the fork's table ------------------------------------------------------------------


@dataclass
class Released:
    """The released models, each loaded where a part first needs it."""

    arguments: argparse.Namespace
    device: torch.device
    revisions: Mapping[str, str]

    @functools.cached_property
    def gaze(self) -> tuple[AutoGaze, AutoGazeImageProcessor]:
        source, hub = self.arguments.gaze, self.hub(self.arguments.gaze)
        return AutoGaze.from_pretrained(source, device=self.device, **hub), AutoGazeImageProcessor.from_pretrained(
            source, **hub
        )

    def hub(self, source: str) -> dict[str, str]:
        return {"revision": self.revisions[source]} if source in self.revisions else {}

    def frames(self, start: int, count: int) -> np.ndarray:
        """(n, height, width, 3), the last one repeated where the video ends."""
        path = self.arguments.video
        if path is None:
            raise InputError("example and table need the video: assets/example_input.mp4 of the published repository")
        if not path.is_file():
            raise InputError(f"{path}: there is no such video")
        try:
            with av.open(str(path)) as container:
                return process_video_frames(read_video_pyav(container, range(start, start + count)), count)
        except (av.error.FFmpegError, IndexError) as error:
            raise InputError(f"{path}: cannot be read as a video") from error


def check_example(released: Released, expected: Fields) -> Iterator[Line]:
    model, processor = released.gaze
    frames = released.frames(0, expected.get("frames", int))
    pixels = transform_video_for_pytorch(frames, processor)[None].to(released.device)
    call = {name: expected.get(name, float) for name in LIMITS}
    with torch.inference_mode():
        found = model({"video": pixels}, **call)
        yield same("example", "entries", expected.get("entries", int), found["gazing_pos"].shape[1])
        yield same("example", "kept patches", expected.get("kept", int), int((~found["if_padded_gazing"]).sum()))
        wanted = expected.get("entries_of_frames", list[int])
        yield same("example", "entries of each frame", wanted, found["num_gazing_each_frame"].tolist())
        if released.arguments.siglip == "none":
            return
        tower, look = _siglip(released, model)
        features = tower(transform_video_for_pytorch(frames, look)[None].to(released.device), gazing_info=found)
    shape = [1, expected.get("entries", int), expected.get("tower_channels", int)]
    yield same("example", "features of the tower", shape, list(features.last_hidden_state.shape))


def _siglip(released: Released, model: AutoGaze) -> tuple[SiglipVisionModel, Any]:
    from transformers import AutoImageProcessor

    source, hub = released.arguments.siglip, released.hub(released.arguments.siglip)
    tower = SiglipVisionModel.from_pretrained(source, scales=model.config.scales, device=released.device, **hub)
    try:
        return tower, AutoImageProcessor.from_pretrained(source, trust_remote_code=False, **hub)
    except Exception as error:  # of many types
        raise InputError(f"{source}: the image processor cannot be loaded: {error}") from error


def check_table(released: Released, expected: Fields) -> Iterator[Line]:
    model, processor = released.gaze
    source = released.arguments.task
    task = VideoMAETask.from_pretrained(source, device=released.device, grid=model.grid, **released.hub(source))
    model.grid.check_same(task.grid, "the gaze model", source)
    settings, allowed = expected.object("settings"), expected.object("allowed")
    starts, length = expected.get("clip_starts", list[int]), expected.get("clip_len", int)
    rows: dict[str, list[dict[str, float]]] = {name: [] for name in settings.values}
    for start in starts:
        frames = released.frames(start, length)
        pixels = transform_video_for_pytorch(frames, processor)[None].to(released.device)
        target = resize_bicubic(task.processor(list(frames))[None].to(released.device), *task.grid.scales[-1])
        for name in rows:
            call = {limit: settings.object(name).get(limit, float | None) for limit in LIMITS}
            rows[name].append(measure(model, task, call, pixels, target))
    for name, clips in rows.items():
        wanted = settings.object(name)
        by_loss = wanted.get("task_loss_requirement", float | None) is not None
        for column in COLUMNS:
            number = float(wanted.get(column, float))
            share = allowed.get(column, float) if by_loss or column != "non_padded_gazes" else 0.0
            mean = float(np.mean([clip[column] for clip in clips]))
            rounding = 0.05 if column == "non_padded_gazes" else 0.5 * 10.0 ** -len(str(number).partition(".")[2])
            yield close("table", f"{name} {column}", number, mean, share * abs(number) + rounding)


@torch.inference_mode()
def measure(
    model: AutoGaze, task: Any, call: dict[str, Any], pixels: torch.Tensor, target: torch.Tensor
) -> dict[str, float]:
    """One clip under one setting, as the fork measures it: PSNR and SSIM are means over frames."""
    try:
        from skimage.metrics import peak_signal_noise_ratio, structural_similarity
    except ImportError as error:
        raise InputError("the table needs scikit-image: pip install 'autogaze_mllm[train]'") from error
    info = model({"video": pixels}, **call, generate_only=True)
    result = task(target, info, list(range(target.shape[1])))
    shown, rebuilt = (task.denormalize(x)[0].float().cpu().numpy() for x in (target, result.reconstruction))
    pairs = list(zip(shown, rebuilt, strict=True))
    return {
        "non_padded_gazes": float((~info["if_padded_gazing"]).sum()),
        "reconstruction_loss": float(result.loss.mean()),
        "pixel_mae": float(np.mean([np.abs(a - b).mean() for a, b in pairs])),
        "psnr": float(np.mean([peak_signal_noise_ratio(a, b, data_range=1.0) for a, b in pairs])),
        "ssim": float(np.mean([structural_similarity(a, b, channel_axis=0, data_range=1.0) for a, b in pairs])),
    }


# -- golden data -------------------------------------------------------------------------------------------------


def check_golden(folder: Path) -> Iterator[Line]:
    if not any(folder.glob("gaze_*.safetensors")):
        raise InputError(f"{folder}: there is no golden data (gaze_*.safetensors) here")
    for path in sorted(folder.glob("*.safetensors")):
        kind = path.stem.partition("_")[0]
        if kind not in ("gaze", "siglip"):
            continue
        about, tensors = read_json(path.with_suffix(".json")), read_weights(path)
        weights = {name.removeprefix("weights/"): one for name, one in tensors.items() if name.startswith("weights/")}
        with tempfile.TemporaryDirectory() as folder:
            config = about["config"] | ({} if kind == "gaze" else {"model_type": "siglip_vision_model"})
            write_json(Path(folder) / "config.json", config)
            save_file(weights, Path(folder) / "model.safetensors", metadata={"format": "pt"})
            check = _gaze_cases if kind == "gaze" else _siglip_cases
            yield from check(path, about, tensors, folder)


def _gaze_cases(
    path: Path, about: Mapping[str, Any], tensors: Mapping[str, torch.Tensor], folder: str
) -> Iterator[Line]:
    model, rows = AutoGaze.from_pretrained(folder), path.with_name("independent_rows.safetensors")
    alone = read_weights(rows) if rows.is_file() else {}
    for case in about["cases"]:
        if case["mode"] not in ("call", "default", "labels"):
            continue
        expected = _below(tensors, case["name"])
        given = _below(tensors, f"inputs/{case['name']}") if case["mode"] == "labels" else None
        with torch.inference_mode():
            found = model({"video": _video(about, tensors, case["video"])}, gazing_info=given, **case.get("call", {}))
        chosen, what = _below(alone, f"{path.stem}/{case['name']}"), f"{path.stem} {case['name']}"
        if given is None:
            names = ("gazing_pos", "if_padded_gazing", "num_gazing_each_frame")
            wrong = [name for name in names if found[name].tolist() != _as_type(chosen or expected, name, found)]
            yield same("golden", f"{what}, what differs of the choices", [], wrong)
        if "log_action_probs" in expected and not chosen:
            yield _near(f"{what} log_action_probs", expected["log_action_probs"], found["log_action_probs"], LOG_PROBS)
            yield _near(f"{what} losses", expected["task_loss_prediction"], found["task_loss_prediction"], EXACT)


def _siglip_cases(
    path: Path, about: Mapping[str, Any], tensors: Mapping[str, torch.Tensor], folder: str
) -> Iterator[Line]:
    info = _below(tensors, "inputs")
    info["gazing_pos"] = info["gazing_pos"].long()
    real = info["if_padded_gazing"] == 0
    for case in about["cases"]:
        tower = SiglipVisionModel.from_pretrained(
            folder,
            attn_implementation="eager" if case["impl"] == "eager" else "sdpa",
            attn_type=case["attn_type"],
            frame_independent_encoding=case.get("indep", False),
        )
        with torch.inference_mode():
            found = tower(_video(about, tensors, "video"), gazing_info=info).last_hidden_state[real]
        wanted = tensors[f"{case['name']}/last_hidden_state"][real]
        yield _near(f"{path.stem} {case['name']} features", wanted, found, EXACT)


def _as_type(expected: Mapping[str, torch.Tensor], name: str, found: Mapping[str, torch.Tensor]) -> list[Any]:
    return expected[name].to(found[name].dtype).tolist()


def _below(tensors: Mapping[str, torch.Tensor], name: str) -> dict[str, torch.Tensor]:
    return {key[len(name) + 1 :]: one for key, one in tensors.items() if key.startswith(f"{name}/")}


def _video(about: Mapping[str, Any], tensors: Mapping[str, torch.Tensor], name: str) -> torch.Tensor:
    entry = about["videos"][name]
    repeat = entry.get("repeat_pixels", 1)
    pixels = tensors[entry["tensor"]].float() / entry["divide_by"]
    return pixels.repeat_interleave(repeat, -1).repeat_interleave(repeat, -2)


def _near(what: str, expected: torch.Tensor, found: torch.Tensor, share: float) -> Line:
    allowed = share * max(1.0, float(expected.abs().max()))
    off = float((found.double() - expected.double()).abs().max()) if found.shape == expected.shape else float("inf")
    return close("golden", f"{what}, largest difference", 0.0, off, allowed)


# -- the command -------------------------------------------------------------------------------------------------


def run(arguments: argparse.Namespace) -> list[Line]:
    parts = [name.strip() for name in arguments.parts.split(",")]
    if wrong := [name for name in parts if name not in PARTS]:
        raise InputError(f"--parts: {wrong[0]!r} is not one of {', '.join(PARTS)}")
    expected = read_fields(arguments.expected)
    models = (arguments.gaze, arguments.siglip, arguments.task)
    asked = read_revisions(arguments.revision)
    check_named(asked, models)
    pinned = {**expected.get("revisions", dict[str, str], {}), **asked}
    released = Released(arguments, torch.device(usable_device(arguments.device)), pinned)
    checks = {
        "example": lambda: check_example(released, expected.object("example")),
        "table": lambda: check_table(released, expected.object("table")),
        "golden": lambda: check_golden(arguments.golden),
    }
    lines = []
    for name in parts:
        for line in checks[name]():
            lines.append(line)
            if not arguments.json:
                print(line, flush=True)
    return lines


def main() -> int:
    parser = program_parser(__doc__)
    parser.add_argument("video", type=Path, nargs="?", help="assets/example_input.mp4 of the published repository")
    parser.add_argument("--parts", default=",".join(PARTS), help="those that are wanted (default: all)")
    parser.add_argument("--gaze", default="nvidia/AutoGaze", help="id or folder (default nvidia/AutoGaze)")
    revision_option(parser, f"{HELP} (default: those that the numbers were made with)")
    parser.add_argument("--siglip", default="google/siglip2-base-patch16-224", help="id or folder, or none")
    parser.add_argument("--task", default="bfshi/VideoMAE_AutoGaze", help="id or folder of the VideoMAE")
    parser.add_argument("--golden", type=Path, default=ROOT / "tests" / "golden", help="folder of golden data")
    parser.add_argument("--expected", type=Path, default=ROOT / "scripts" / "published_numbers.json")
    parser.add_argument("--device", help="default: a GPU where there is one")
    parser.add_argument("--json", action="store_true", help="one json object in place of lines")
    quiet()
    return run_program(parser, report)


def report(arguments: argparse.Namespace) -> int:
    """-> 0 where everything is equal."""
    lines = run(arguments)
    equal = sum(line.equal for line in lines)
    if arguments.json:
        print(to_json({"equal": equal, "lines": [dataclasses.asdict(line) for line in lines]}, indent=1))
    else:
        print(f"{equal} of {len(lines)} equal")
    return int(equal < len(lines))


if __name__ == "__main__":
    sys.exit(main())

"""The demo: a generated 4K video with signs in fine print, questions about it, with gaze and without.

Everything comes with the package: the gaze model, and an MLLM that reads these signs and nothing else.

    python scripts/demo.py demo_out
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import autogaze_mllm as am
from autogaze_mllm.cli import program_parser, run_program
from autogaze_mllm.gaze.gazed_video import GazedVideo
from autogaze_mllm.gaze.pictures.overlay import Overlay
from autogaze_mllm.gaze.pipeline import gaze_video
from autogaze_mllm.gaze.selector_registry import load_selector
from autogaze_mllm.mllm.model import GazedModel
from autogaze_mllm.signvid import SignVidConfig, ensure_signvid
from autogaze_mllm.signvid.conversations import plainly
from autogaze_mllm.signvid.dataset import video_name
from autogaze_mllm.signvid.plan import shape_4k
from autogaze_mllm.video.writer import video_writer

FRAMES, SIGNS, SEED = 6, 3, 7


def look(model: GazedModel, clip: Path, overlay: Path | None) -> GazedVideo:
    """The kept patches; overlay: the video that shows them."""
    options = model.video_form
    if overlay is None:
        return gaze_video(clip, model.gaze, model.settings, **options, progress=True)
    with video_writer(overlay, fps=1) as write:
        listener = Overlay(model.tower.grid, write)
        return gaze_video(clip, model.gaze, model.settings, **options, listener=listener, progress=True)


def show(title: str, model: GazedModel, gazed: GazedVideo, seconds: float, asked: list[tuple[str, str]]) -> int:
    """Asks and prints. -> how many answers were right."""
    start = time.perf_counter()
    seen = model.encode_video(gazed, share_prompt=True)
    replies = [model.ask(seen, question, max_new_tokens=12) for question, _ in asked]
    seconds += time.perf_counter() - start
    print(f"\n--- {title}: {len(gazed)} of {gazed.total_patches} patches, {seen.tokens} visual tokens, {seconds:.1f} s")
    for (question, truth), reply in zip(asked, replies, strict=True):
        print(f"{question:40} answer: {reply:10} truth: {truth}")
    return sum(reply == truth for (_, truth), reply in zip(asked, replies, strict=True))


def run(folder: Path, dense: bool) -> None:
    recipe = SignVidConfig(shape_4k(FRAMES, SIGNS), videos=1, seed=SEED)
    data = ensure_signvid(folder / "signvid", recipe)
    clip, overlay = data / "videos" / video_name(0), folder / "overlay.mp4"
    questions = plainly(recipe.plan(0))
    print(f"{clip}: {FRAMES} frames at 3840x2160, {SIGNS} small signs in it")
    model = am.load(cache=False)
    start = time.perf_counter()
    gazed = look(model, clip, overlay)
    right = show("with gaze", model, gazed, time.perf_counter() - start, questions)
    if dense:
        print("\nthe same model looks at every patch now: minutes, and far more tokens than it was trained on ...")
        model.gaze = load_selector("all")
        start = time.perf_counter()
        everything = look(model, clip, None)
        show("without gaze", model, everything, time.perf_counter() - start, questions)
    print(f"\nwith gaze {right} of {SIGNS} answers are right; {overlay} shows where it looked")


def main() -> int:
    parser = program_parser(__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--no-dense", action="store_true", help="only with gaze")
    return run_program(parser, lambda given: run(given.folder, not given.no_dense))


if __name__ == "__main__":
    sys.exit(main())

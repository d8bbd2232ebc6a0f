"""Several questions about one video, which is gazed and encoded once.

    python examples/ask.py clip.mp4 "What moves?" "Where?" --model llava-hf/llava-onevision-qwen2-7b-ov-hf

Without --model the bundled one answers. It reads the signs of videos that scripts/make_signvid.py makes, and nothing
else.
"""

from __future__ import annotations

import argparse
import time

import autogaze_mllm as am


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("video")
    parser.add_argument("questions", nargs="+")
    parser.add_argument("--model", help="hub id or folder of the base model")
    parser.add_argument("--frames", type=int, default=16)
    parser.add_argument("--max-tiles", type=int, default=4, help="tiles that a frame is cut into")
    arguments = parser.parse_args()

    settings = {"frames": arguments.frames, "max_tiles": arguments.max_tiles}
    model = am.wrap(arguments.model, **settings) if arguments.model else am.load(**settings)
    start = time.perf_counter()
    seen = model.encode_video(arguments.video, share_prompt=True)
    print(f"{seen.tokens} visual tokens after {time.perf_counter() - start:.1f} s")
    for question in arguments.questions:
        start = time.perf_counter()
        answer = model.ask(seen, question)
        print(f"{question}\n  {answer}  ({time.perf_counter() - start:.1f} s)")


if __name__ == "__main__":
    main()

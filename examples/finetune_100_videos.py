"""From a file of samples to a fine-tuned model that answers: check, look at the costs, train, merge, ask.

    python examples/finetune_100_videos.py videos.jsonl mine --model nvidia/NVILA-8B-HD-Video --epochs 3 --accumulate 8

videos.jsonl holds a sample in each line, with paths that start from its folder:

    {"video": "a.mp4", "conversations": [{"from": "human", "value": "<video>\\nWhat happens?"},
                                         {"from": "gpt", "value": "A ball rolls."}]}

The dry run tells what memory to expect before anything is trained; `python benchmarks/finetune_memory.py` tells it for
an 8B model. Without --model a tiny random model is trained, to see it work. Other options go to `autogaze-mllm
finetune`. An interrupted training goes on when the same command is given again.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from autogaze_mllm.cli import main as autogaze


def run(*arguments: str | Path) -> None:
    """One command of autogaze-mllm; ends here if it fails."""
    print("\n$ autogaze-mllm", *arguments, flush=True)
    code = autogaze([str(part) for part in arguments])
    if code:
        sys.exit(code)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="json or jsonl file of samples")
    parser.add_argument("output", type=Path, help="folder for checkpoints, the result and, in it, the merged model")
    arguments, options = parser.parse_known_args()

    training = ["--data", arguments.data, "--output", arguments.output, "--train", "lora", *options]
    run("finetune", "--check", "--data", arguments.data)  # every fault of the data, with file and row
    run("finetune", "--dry-run", *training)  # parameters, tokens, expected memory, steps; videos are gazed here
    run("finetune", *training, "--resume")
    run("merge", arguments.output, arguments.output / "merged")

    first = json.loads(arguments.data.read_text(encoding="utf-8").splitlines()[0])
    question = first["conversations"][0]["value"].replace("<video>", "").strip()
    run("ask", arguments.data.parent / first["video"], question, "--model", arguments.output / "merged")


if __name__ == "__main__":
    main()

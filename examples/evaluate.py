"""Scores a model twice on the same questions, behind two selectors, and compares the two.

    python examples/evaluate.py --out runs/example             # two generated SignVid videos, the bundled model
    python examples/evaluate.py --out runs/hlvid --data HLVid --model MODEL --gaze nvidia/AutoGaze,random

The generated videos are few: the intervals that the report gives are wide. `benchmarks/signvid.py` asks 510 questions.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

from autogaze_mllm.cli import main as autogaze

GENERATOR = Path(__file__).resolve().parents[1] / "scripts" / "make_signvid.py"
SMALL = ["--size", "672x672", "--frames", "8", "--signs", "3", "--videos", "2", "--questions", "3", "--workers", "1"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder in HLVid's layout (default: generated, below --out)")
    parser.add_argument("--out", type=Path, required=True, help="folder of the runs")
    parser.add_argument("--model", help="hub id or folder (default: the bundled model)")
    parser.add_argument("--gaze", default="pixel-diff,random", help="two selectors with a comma between them")
    arguments = parser.parse_args()

    data = arguments.data or arguments.out / "signvid"
    shown = [] if arguments.data else ["--frames", "8", "--max-tiles", "9"]
    if not arguments.data and not (data / "signvid.json").is_file():
        subprocess.run([sys.executable, str(GENERATOR), str(data), *SMALL], check=True)
    model = ["--model", arguments.model] if arguments.model else []
    runs = []
    for gaze in arguments.gaze.split(","):
        runs.append(str(arguments.out / Path(gaze).name))
        command = ["eval", "hlvid", "--data", str(data), "--out", runs[-1], "--gaze", gaze, "--resume", *shown, *model]
        code = autogaze(command)
        if code == 2:
            sys.exit(code)
    sys.exit(autogaze(["eval", "compare", *runs]))


if __name__ == "__main__":
    main()

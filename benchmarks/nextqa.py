"""Scores a model on NExT-QA and sets it beside the published numbers.

    python benchmarks/nextqa.py --made-up benchmarks/data/nextqa --out runs/try   # without the data
    python benchmarks/nextqa.py --model nvidia/NVILA-8B-HD-Video --data NExT-QA --out runs/nextqa

The same as `autogaze-mllm eval nextqa`; --help shows all options.
"""

import sys

from autogaze_mllm.cli import main

if __name__ == "__main__":
    sys.exit(main(["eval", "nextqa", *sys.argv[1:]]))

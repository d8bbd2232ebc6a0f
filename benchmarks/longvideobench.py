"""Scores a model on LongVideoBench and sets it beside the published numbers.

    python benchmarks/longvideobench.py --made-up benchmarks/data/longvideobench --out runs/try   # without the data
    python benchmarks/longvideobench.py --model nvidia/NVILA-8B-HD-Video --data LongVideoBench --out runs/longvideobench

The same as `autogaze-mllm eval longvideobench`; --help shows all options.
"""

import sys

from autogaze_mllm.cli import main

if __name__ == "__main__":
    sys.exit(main(["eval", "longvideobench", *sys.argv[1:]]))

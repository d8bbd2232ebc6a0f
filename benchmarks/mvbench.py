"""Scores a model on MVBench and sets it beside the published numbers.

    python benchmarks/mvbench.py --made-up benchmarks/data/mvbench --out runs/try   # without the data
    python benchmarks/mvbench.py --model nvidia/NVILA-8B-HD-Video --data MVBench --out runs/mvbench

The same as `autogaze-mllm eval mvbench`; --help shows all options.
"""

import sys

from autogaze_mllm.cli import main

if __name__ == "__main__":
    sys.exit(main(["eval", "mvbench", *sys.argv[1:]]))

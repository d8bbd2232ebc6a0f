"""Scores a model on MLVU and sets it beside the published numbers.

    python benchmarks/mlvu.py --made-up benchmarks/data/mlvu --out runs/try   # without the data
    python benchmarks/mlvu.py --model nvidia/NVILA-8B-HD-Video --data MLVU --out runs/mlvu

The same as `autogaze-mllm eval mlvu`; --help shows all options.
"""

import sys

from autogaze_mllm.cli import main

if __name__ == "__main__":
    sys.exit(main(["eval", "mlvu", *sys.argv[1:]]))

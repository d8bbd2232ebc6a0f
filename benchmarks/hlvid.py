"""Scores a model on HLVid and sets it beside the published numbers.

    python benchmarks/hlvid.py --made-up benchmarks/data/hlvid --out runs/try   # without the data
    python benchmarks/hlvid.py --model nvidia/NVILA-8B-HD-Video --data HLVid --out runs/hlvid

The same as `autogaze-mllm eval hlvid`; --help shows all options.
"""

import sys

from autogaze_mllm.cli import main

if __name__ == "__main__":
    sys.exit(main(["eval", "hlvid", *sys.argv[1:]]))

"""Scores a model on Video-MME and sets it beside the published numbers.

    python benchmarks/videomme.py --made-up benchmarks/data/videomme --out runs/try   # without the data
    python benchmarks/videomme.py --model nvidia/NVILA-8B-HD-Video --data Video-MME --out runs/videomme

The same as `autogaze-mllm eval videomme`; --help shows all options.
"""

import sys

from autogaze_mllm.cli import main

if __name__ == "__main__":
    sys.exit(main(["eval", "videomme", *sys.argv[1:]]))

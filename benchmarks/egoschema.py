"""Scores a model on EgoSchema and sets it beside the published numbers.

    python benchmarks/egoschema.py --made-up benchmarks/data/egoschema --out runs/try   # without the data
    python benchmarks/egoschema.py --model nvidia/NVILA-8B-HD-Video --data EgoSchema --out runs/egoschema

The same as `autogaze-mllm eval egoschema`; --help shows all options.
"""

import sys

from autogaze_mllm.cli import main

if __name__ == "__main__":
    sys.exit(main(["eval", "egoschema", *sys.argv[1:]]))

#!/usr/bin/env bash
# What this package does on this machine's GPU, in one command: correctness, speed, memory, a long question. Prints a
# table and writes json, plots and logs to OUT; docs/gpu.md says what each step answers.
#
#   scripts/gpu_check.sh OUT [--minutes 9] [--only machine,tests] [--small] [--train COMMAND]
#
# Wheels that scripts/gpu_pack.sh gathered in .gpu_pack/ are put on the path first, for machines without a package index.
set -euo pipefail

HERE=$(cd "$(dirname "$0")/.." && pwd)
PYTHON=${PYTHON:-python3}
PACK="$HERE/.gpu_pack"
if compgen -G "$PACK/wheels/*.whl" >/dev/null; then
    SITE=$(mktemp -d)
    $PYTHON -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --target "$SITE" "$PACK"/wheels/*.whl
    export PYTHONPATH="$SITE${PYTHONPATH:+:$PYTHONPATH}"
fi
cd "$HERE"
exec "$PYTHON" benchmarks/gpu.py "$@"

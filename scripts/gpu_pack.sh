#!/usr/bin/env bash
# Gathers in .gpu_pack/ (not under version control) what a bare GPU machine without a package index lacks: the wheels of
# av, which reads videos, and of pydantic, which checks settings, for its Python and platform. With CLIPS=FOLDER also the videos of that folder as small clips,
# for the script's training step (--train .gpu_pack/clips). Prints the size of what has to travel: the tree and the pack.
#
#   [CLIPS=FOLDER] scripts/gpu_pack.sh [PACKAGE==VERSION ...]        PYTHON_VERSION=3.12 by default
set -euo pipefail

HERE=$(cd "$(dirname "$0")/.." && pwd)
PYTHON=${PYTHON:-python3}
PACK="$HERE/.gpu_pack"
mapfile -t LACKING < <(grep -E '^(av|pydantic|pydantic_core|annotated-types|typing-inspection)==' "$HERE/constraints.txt")
mkdir -p "$PACK/wheels"
platforms=()
for tag in manylinux_2_34 manylinux_2_31 manylinux_2_28 manylinux_2_27 manylinux_2_24 manylinux_2_17 manylinux2014 manylinux1; do
    platforms+=(--platform "${tag}_x86_64")
done
$PYTHON -m pip download -q --no-deps --only-binary=:all: --python-version "${PYTHON_VERSION:-3.12}" --implementation cp \
    "${platforms[@]}" -d "$PACK/wheels" "${@:-${LACKING[@]}}"
if [ -n "${CLIPS:-}" ]; then
    $PYTHON "$HERE/scripts/pack_clips.py" "$CLIPS" "$PACK/clips" --generated 48
fi
tree=$(cd "$HERE" && git ls-files -z | xargs -0 du -cb | tail -n 1 | cut -f1)
pack=$(du -sb "$PACK" | cut -f1)
echo "tree $((tree >> 20)) MiB + .gpu_pack $((pack >> 20)) MiB = $(((tree + pack) >> 20)) MiB"
du -sh "$PACK"/*

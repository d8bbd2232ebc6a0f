#!/usr/bin/env bash
# Trains a tiny MLLM to read signs, from nothing: generated videos (SignVid's train split), an untrained model, and
# fine-tuning with this project's own code.
#
# This recipe has not yet produced a model that is bundled: nothing that it makes comes with the package. Its order
# follows short trials: single signs on the raster (jitter 0) came to be read while the tower rested, three signs after
# them; jitter at once was not learnt, so it grows by a pixel at a time here. That, clips and whole videos are untried.
#
#   one     one sign in a still, jitter 0; the tower rests, or its starting values are lost while the LLM learns to speak
#   few-0   three signs, jitter 0; from here on the tower learns slowly
#   few-1   three signs, up to 1 pixel off the raster
#   few-2   three signs, up to 2 pixels off it, as in the benchmark
#   clips   8 frames of 2 x 2 tiles, with multiple choice
#   whole   16 frames of 6 x 6 tiles, as in the benchmark; the tower rests
#
#   scripts/train_bundled_mllm.sh [--quick] [FOLDER]
#
# FOLDER (default: mllm_training) takes data, runs and results; FOLDER/model is the result, in bf16. --quick is the same
# recipe in small, a few minutes on one core, in FOLDER/quick. Stages that are done are left as they are, interrupted ones
# go on. Stills are gazed by pixel-diff, clips and whole videos by GAZE (default: pixel-diff): one selector for a stage.
# DEVICE: --cpu, or nothing where there is a GPU. What is tuned is tuned on `make_signvid.py --dev`, never on the test
# split.
set -euo pipefail

QUICK=0
if [ "${1:-}" = "--quick" ]; then QUICK=1; shift; fi
FOLDER=${1:-mllm_training}
PYTHON=${PYTHON:-python}
GAZE=${GAZE:-pixel-diff}
DEVICE=${DEVICE---cpu}
PRECISION=${PRECISION:-bf16}
WORKERS=${WORKERS:-2}
HERE=$(cd "$(dirname "$0")" && pwd)
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}

if [ $QUICK = 1 ]; then
    FOLDER=$FOLDER/quick
    ONE=64; FEW=64; CLIPS=16; WHOLE=2; EPOCHS="1 1 1 1"; BATCH=8
else
    ONE=15000; FEW=12000; CLIPS=3000; WHOLE=120; EPOCHS="2 2 3 2"; BATCH=32
fi
read -r E_ONE E_FEW E_CLIPS E_WHOLE <<< "$EPOCHS"

make() { # NAME and arguments of make_signvid.py
    local name=$1; shift
    if [ ! -f "$FOLDER/data/$name.jsonl" ]; then
        $PYTHON "$HERE/make_signvid.py" "$FOLDER/data" --train "$name" --workers "$WORKERS" "$@"
    fi
}

train() { # NAME of the stage and its data, base model, arguments of finetune
    local name=$1 base=$2; shift 2
    if [ -d "$FOLDER/$name/merged" ]; then return; fi
    # shellcheck disable=SC2086
    $PYTHON -m autogaze_mllm.cli finetune --model "$base" --data "$FOLDER/data/$name.jsonl" --output "$FOLDER/$name" \
        --cache "$FOLDER/gazed" --no-gradient-checkpointing --precision "$PRECISION" --resume --workers 0 $DEVICE "$@"
    $PYTHON -m autogaze_mllm.cli merge "$FOLDER/$name" "$FOLDER/$name/merging"
    mv "$FOLDER/$name/merging" "$FOLDER/$name/merged"
}

STILLS="--size 224x224 --frames 1 --at-once --questions 0"
# shellcheck disable=SC2086
{
    make one $STILLS --signs 1 --jitter 0 --videos $ONE --seed 1
    for jitter in 0 1 2; do
        make few-$jitter $STILLS --signs 3 --jitter $jitter --videos $FEW --seed $((2 + jitter))
    done
}
make clips --size 448x448 --frames 8 --signs 4 --videos $CLIPS --questions 4 --seed 5
make whole --size 1344x1344 --frames 16 --signs 5 --videos $WHOLE --questions 6 --seed 6

[ -f "$FOLDER/untrained/config.json" ] || $PYTHON "$HERE/make_bundled_mllm.py" "$FOLDER/untrained" "$FOLDER/data/few-0"

train one "$FOLDER/untrained" --gaze pixel-diff --ratio 0.1 --frames 1 --epochs "$E_ONE" --batch-size $BATCH \
    --tower off --projector-lr 1e-3 --llm-lr 1e-3
before=one
for jitter in 0 1 2; do
    train few-$jitter "$FOLDER/$before/merged" --gaze pixel-diff --ratio 0.2 --frames 1 --epochs "$E_FEW" \
        --batch-size $BATCH --tower-lr 1e-4 --projector-lr 1e-3 --llm-lr 1e-3
    before=few-$jitter
done
train clips "$FOLDER/few-2/merged" --gaze "$GAZE" --ratio 0.15 --frames 8 --max-tiles 4 --epochs "$E_CLIPS" \
    --batch-size 8 --tower-lr 1e-4 --projector-lr 5e-4 --llm-lr 5e-4
train whole "$FOLDER/clips/merged" --gaze "$GAZE" --ratio 0.15 --frames 16 --max-tiles 36 --epochs "$E_WHOLE" \
    --batch-size 2 --tower off --projector-lr 2e-4 --llm-lr 2e-4

[ -f "$FOLDER/model/config.json" ] ||
    $PYTHON -m autogaze_mllm.cli merge "$FOLDER/whole" "$FOLDER/model" --dtype bfloat16

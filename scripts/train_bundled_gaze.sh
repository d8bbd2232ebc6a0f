#!/usr/bin/env bash
# Trains the bundled gaze model from nothing: generated videos, next-token prediction on longer and longer clips,
# evaluation on held-out generated videos. GRPO goes on from there: at the same number of patches it shows held-out
# generated clips better, but stops less near the loss that was asked for, so the bundled model is the one before it.
# Every stage goes on where it was interrupted.
#
#   scripts/train_bundled_gaze.sh [--quick] [FOLDER]
#
# FOLDER (default: gaze_training) takes data, runs and results; FOLDER/model is the result, in bf16. --quick is the same
# recipe in small, under 10 minutes on 2 cores. PROCESSES (default 1) is what torchrun starts; on a machine with GPUs set
# it to their number and DEVICE to nothing. The bundled weights took an hour and a half of one core.
set -euo pipefail

QUICK=0
if [ "${1:-}" = "--quick" ]; then QUICK=1; shift; fi
FOLDER=${1:-gaze_training}
PYTHON=${PYTHON:-python}
PROCESSES=${PROCESSES:-1}
DEVICE=${DEVICE---device cpu}
HERE=$(cd "$(dirname "$0")" && pwd)
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}

# The steps of a stage's learning rate schedule, and where it was left for the next one.
if [ $QUICK = 1 ]; then
    TRAIN=24; VAL=4; FRAMES=24; CLIPS=2; EVALUATE=16; SETTINGS=task_0.40
    TWO="--steps 60 --until 30"; FOUR="--steps 20 --until 10"; SIXTEEN="--steps 3"; MORE="--steps 2"; GRPO="--steps 3"; LAST="--steps 2"
else
    TRAIN=1000; VAL=40; FRAMES=48; CLIPS=8; EVALUATE=32; SETTINGS=ratio_0.05,ratio_0.10,task_0.20,task_0.40
    TWO="--steps 2400 --until 1100"; FOUR="--steps 500 --until 350"; SIXTEEN="--steps 120"; MORE="--steps 160"; GRPO="--steps 50"; LAST="--steps 90"
fi

$PYTHON "$HERE/make_training_videos.py" "$FOLDER/videos" --train $TRAIN --val $VAL --frames $FRAMES --workers 2 --seed 0

train() { # NAME and arguments of train-gaze
    local run=$1; shift
    if [ -f "$FOLDER/$run/gaze/model.safetensors" ]; then return; fi
    # shellcheck disable=SC2086
    $PYTHON "$HERE/launch.py" --standalone --nproc-per-node "$PROCESSES" -m autogaze_mllm.cli train-gaze \
        "$FOLDER/videos" --out "$FOLDER/$run" $DEVICE --decoded "$FOLDER/decoded" --val-clips $CLIPS --min-crop 0.3 --mirror "$@"
}

# Short clips teach most and cost least: attention grows with the square of the frames.
# shellcheck disable=SC2086
{
    train ntp-2 --frames 2 --strides 1:12 --batch-size 8 --micro-batch 4 --lr 1e-3 $TWO
    train ntp-4 --init "$FOLDER/ntp-2/gaze" --frames 4 --strides 1:8 --batch-size 8 --micro-batch 4 --lr 8e-4 --hint-weight 0.2 --seed 1 $FOUR
    train ntp-16 --init "$FOLDER/ntp-4/gaze" --frames 16 --strides 1:3 --batch-size 4 --micro-batch 1 --lr 6e-4 --hint-weight 0 --seed 2 $SIXTEEN
    train ntp-16b --init "$FOLDER/ntp-16/gaze" --frames 16 --strides 1:3 --batch-size 4 --micro-batch 1 --lr 5e-4 --hint-weight 0 --seed 3 $MORE
    OWN="--algorithm grpo --frames 4 --strides 1:8 --batch-size 4 --micro-batch 2 --group-size 6 --val-every 10 --val-ratio 0.1 --val-loss 0"
    OWN="$OWN --ratio uniform:0.02:0.2 --requirement uniform:0.1:0.5"
    train grpo $OWN --init "$FOLDER/ntp-16b/gaze" --lr 5e-5 --seed 4 $GRPO
    train grpo-b $OWN --init "$FOLDER/grpo/gaze" --lr 1e-4 --seed 5 $LAST
}

$PYTHON - "$FOLDER" <<'PYTHON_END'
import sys

import torch

from autogaze_mllm import AutoGaze

model = AutoGaze.from_pretrained(f"{sys.argv[1]}/ntp-16b/gaze")
model.to(torch.bfloat16).save_pretrained(f"{sys.argv[1]}/model")
PYTHON_END

$PYTHON "$HERE/evaluate_reconstruction.py" "$FOLDER/videos" --split val --frames $EVALUATE --match \
    --gaze "$FOLDER/model,$FOLDER/grpo-b/gaze,pixel-diff,greedy,random" --settings "$SETTINGS" \
    --out "$FOLDER/evaluation"

#!/usr/bin/env bash
# Trains the bundled gaze model from nothing: generated videos, next-token prediction on longer and longer clips, GRPO,
# evaluation on held-out generated videos. Every stage goes on where it was interrupted.
#
#   scripts/train_bundled_gaze.sh [--quick] [FOLDER]
#
# FOLDER (default: gaze_training) takes data, runs and results; FOLDER/model is the result, in bf16. --quick is the same
# recipe in small, under 10 minutes on 2 cores. PROCESSES (default 2) is what accelerate starts; on a machine with GPUs
# set it to their number and DEVICE to nothing.
set -euo pipefail

QUICK=0
if [ "${1:-}" = "--quick" ]; then QUICK=1; shift; fi
FOLDER=${1:-gaze_training}
PYTHON=${PYTHON:-python}
PROCESSES=${PROCESSES:-2}
DEVICE=${DEVICE---device cpu}
HERE=$(cd "$(dirname "$0")" && pwd)
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}

if [ $QUICK = 1 ]; then
    TRAIN=24; VAL=4; FRAMES=24; STEPS="30 10 4"; GRPO=3; BATCH=4; GROUP=4; CLIPS=2; EVALUATE=16
else
    TRAIN=1000; VAL=40; FRAMES=48; STEPS="6000 2500 800"; GRPO=400; BATCH=16; GROUP=8; CLIPS=16; EVALUATE=32
fi

$PYTHON "$HERE/make_training_videos.py" "$FOLDER/videos" --train $TRAIN --val $VAL --frames $FRAMES --workers 2 --seed 0

train() { # NAME and arguments of train-gaze
    local run=$1; shift
    if [ -f "$FOLDER/$run/gaze/model.safetensors" ]; then return; fi
    local cpu=""; if [ -n "$DEVICE" ]; then cpu="--cpu"; fi
    # shellcheck disable=SC2086
    $PYTHON -m accelerate.commands.launch $cpu --num_processes "$PROCESSES" --num_machines 1 --dynamo_backend no \
        --mixed_precision no -m autogaze_mllm.cli train-gaze "$FOLDER/videos" --out "$FOLDER/$run" $DEVICE \
        --decoded "$FOLDER/decoded" --val-clips $CLIPS --seed 0 "$@"
}

read -r FIRST SECOND THIRD <<< "$STEPS"
CLIP="--min-crop 0.3 --mirror --batch-size $BATCH"
# shellcheck disable=SC2086
{
    train ntp-2 --frames 2 --strides 1:12 $CLIP --lr 1e-3 --steps "$FIRST"
    train ntp-4 --init "$FOLDER/ntp-2/gaze" --frames 4 --strides 1:8 $CLIP --lr 5e-4 --steps "$SECOND"
    train ntp-16 --init "$FOLDER/ntp-4/gaze" --frames 16 --strides 1:3 $CLIP --micro-batch 2 --lr 2e-4 --steps "$THIRD"
    train grpo --algorithm grpo --init "$FOLDER/ntp-16/gaze" --frames 4 --strides 1:8 --min-crop 0.3 --mirror \
        --batch-size 4 --micro-batch 2 --group-size "$GROUP" --lr 5e-5 --steps "$GRPO" --val-every 50 \
        --ratio uniform:0.02:0.2 --requirement uniform:0.1:0.5
}

$PYTHON - "$FOLDER" <<'PYTHON_END'
import sys

import torch

from autogaze_mllm import AutoGaze

model = AutoGaze.from_pretrained(f"{sys.argv[1]}/grpo/gaze")
model.to(torch.bfloat16).save_pretrained(f"{sys.argv[1]}/model")
PYTHON_END

$PYTHON "$HERE/evaluate_reconstruction.py" "$FOLDER/videos" --split val --frames $EVALUATE --match \
    --gaze "$FOLDER/model,pixel-diff,greedy,random" --settings ratio_0.05,ratio_0.10,task_0.20,task_0.40 \
    --out "$FOLDER/evaluation"

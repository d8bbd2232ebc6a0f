#!/usr/bin/env bash
# Stage 1 of the published training of the gaze model: next-token prediction on labels.
#
#   DATA=AutoGaze-Training-Data TASK=VideoMAE_AutoGaze OUTPUT=ntp scripts/train_gaze_ntp.sh
#   DOWNLOAD=1 OUTPUT=ntp scripts/train_gaze_ntp.sh --tracker wandb
#   SMALL=1 DATA=videos OUTPUT=ntp scripts/train_gaze_ntp.sh
#
# 150 epochs in batches of 1024 clips of 16 frames, put together by accumulation on however many GPUs there are; adam, from
# 5e-4 linearly to 0; ratio 0.1, over the frames by dirichlet:10,3,3,...; the VideoMAE rebuilds an eighth of the frames,
# its loss is l1 + 0.3 dinov2_reg + 0.3 siglip2. scripts/gaze_training.sh has the variables. A run that was interrupted
# goes on when the same command is given again.
set -euo pipefail

# shellcheck source=scripts/gaze_training.sh
. "$(dirname "$0")/gaze_training.sh"

if [ "$SMALL" = 1 ]; then
    FRAMES=${FRAMES:-2} EPOCHS=${EPOCHS:-2} BATCH=${BATCH:-4} PER_GPU=${PER_GPU:-1} SAVE=2 VAL=3 CLIPS=2
else
    FRAMES=${FRAMES:-16} EPOCHS=${EPOCHS:-150} BATCH=${BATCH:-1024} PER_GPU=${PER_GPU:-16} SAVE=500 VAL=3000 CLIPS=-1
fi
[ "$TASK" = mosaic ] || [ -n "$LABELS" ] || fail "there is no gazing_labels*.json in $DATA; name some by LABELS, or make them with autogaze-mllm label"
alphas=10
for _ in $(seq 2 "$FRAMES"); do alphas=$alphas,3; done
given=()
[ -z "$LABELS" ] || given=(--labels "$LABELS")

train --algorithm ntp "${given[@]}" --frames "$FRAMES" --epochs "$EPOCHS" --batch-size "$BATCH" --micro-batch "$PER_GPU" \
    --lr "${LR:-5e-4}" --ratio fixed:0.1 --frame-ratio "dirichlet:$alphas" \
    --val-ratio fixed:0.1 --val-frame-ratio "dirichlet:$alphas" --val-requirement none \
    --val-every "$VAL" --val-clips "$CLIPS" --save-every "$SAVE" "$@"

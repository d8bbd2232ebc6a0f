#!/usr/bin/env bash
# Stage 2 of the published training of the gaze model: GRPO on its own selections, from the model of stage 1.
#
#   DATA=AutoGaze-Training-Data TASK=VideoMAE_AutoGaze INIT=ntp/gaze OUTPUT=grpo scripts/train_gaze_grpo.sh
#   SMALL=1 DATA=videos INIT=ntp/gaze OUTPUT=grpo scripts/train_gaze_grpo.sh
#
# Ratio 0.75, shared among the frames as the model itself does (`self`), with a loss to stop at drawn from 0.5 to 1.0; at
# inference 0.7. Groups of 12 rollouts at a temperature that falls from 3 to 0.3, discount 0.995, batches of 64 clips, 2 on
# a GPU at a time. Published words do not say how long and how fast: EPOCHS (default 1) and LR (default 5e-5) are ours.
# scripts/gaze_training.sh has the other variables. A run that was interrupted goes on when the same command is given
# again.
set -euo pipefail

# shellcheck source=scripts/gaze_training.sh
. "$(dirname "$0")/gaze_training.sh"

[ -n "${INIT:-}" ] || fail "name the model of stage 1 by INIT (OUTPUT/gaze of scripts/train_gaze_ntp.sh)"
if [ "$SMALL" = 1 ]; then
    FRAMES=${FRAMES:-2} EPOCHS=${EPOCHS:-2} BATCH=${BATCH:-4} PER_GPU=${PER_GPU:-2} GROUP=3 SAVE=2 VAL=2 CLIPS=2
else
    FRAMES=${FRAMES:-16} EPOCHS=${EPOCHS:-1} BATCH=${BATCH:-64} PER_GPU=${PER_GPU:-2} GROUP=12 SAVE=500 VAL=3000 CLIPS=-1
fi
# Losses of the mosaic are smaller ones.
if [ "$TASK" = mosaic ]; then rule=uniform:0.1:0.4 stop=fixed:0.2; else rule=uniform:0.5:1.0 stop=fixed:0.7; fi

train --algorithm grpo --init "$INIT" --frames "$FRAMES" --epochs "$EPOCHS" --batch-size "$BATCH" \
    --micro-batch "$PER_GPU" --lr "${LR:-5e-5}" --ratio fixed:0.75 --frame-ratio self --requirement "$rule" \
    --group-size "$GROUP" --discount 0.995 --temperature 3:0.3 --top-k 50 --val-ratio fixed:0.75 \
    --val-frame-ratio uniform --val-requirement "$stop" --val-every "$VAL" --val-clips "$CLIPS" --save-every "$SAVE" "$@"

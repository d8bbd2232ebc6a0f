# What scripts/train_gaze_ntp.sh and scripts/train_gaze_grpo.sh have in common; they source it.
#
# DATA: a folder with train/ and val/, a folder of such folders, or several of them with commas between.
# OUTPUT: the run's folder; the trained model is OUTPUT/gaze. TASK: a VideoMAE, as a folder or by its id on the hub, or
# mosaic, which needs none. DOWNLOAD=1 fetches the published training data into DATA (default:
# AutoGaze-Training-Data) and takes the published VideoMAE from the hub.
# LABELS: files of labels with commas between (default: every gazing_labels*.json in DATA and the folders in it).
# SMALL=1: the same recipe in small, in minutes of one core, with the mosaic as the task.
# FRAMES: of a clip. EPOCHS, BATCH (over all GPUs), PER_GPU (clips a GPU works on at a time), LR: as published where
# nothing else is given.
# PROCESSES: per machine (default: one per GPU, 1 without any). NODES, NODE, MASTER, PORT: machines, this one's number,
# where the first one is reached; the same command runs on every machine, DATA and OUTPUT are the same files there.
# All other options are those of `autogaze-mllm train-gaze --help` and go before those of the recipe.

NAME=$(basename "$0")
HERE=$(cd "$(dirname "$0")" && pwd)
PYTHON=${PYTHON:-python}
SMALL=${SMALL:-0}
DOWNLOAD=${DOWNLOAD:-0}
DATA_ID=${DATA_ID:-bfshi/AutoGaze-Training-Data}
TASK_ID=${TASK_ID:-bfshi/VideoMAE_AutoGaze}

fail() {
    echo "$NAME: error: $1" >&2
    exit 2
}

if [ "$SMALL" = 1 ]; then TASK=${TASK:-mosaic}; fi
if [ "$DOWNLOAD" = 1 ]; then
    DATA=${DATA:-AutoGaze-Training-Data}
    TASK=${TASK:-$TASK_ID}
fi
[ -n "${DATA:-}" ] && [ -n "${TASK:-}" ] && [ -n "${OUTPUT:-}" ] || fail \
    "name DATA (folders with train/ and val/), TASK (a VideoMAE, or mosaic) and OUTPUT, or fetch the first two with DOWNLOAD=1"

gpus=$(command -v nvidia-smi > /dev/null 2>&1 && nvidia-smi -L 2> /dev/null | grep -c ^GPU || true)
DEVICE=()
if [ "${gpus:-0}" -eq 0 ]; then
    gpus=1
    DEVICE=(--device cpu)
fi
PROCESSES=${PROCESSES:-$gpus}
NODES=${NODES:-1}
for name in PROCESSES NODES NODE PORT FRAMES BATCH PER_GPU; do
    value=${!name-}
    case "$value" in
        *[!0-9]*) fail "$name must be a whole number, got '$value'" ;;
    esac
done
[ "$PROCESSES" != 0 ] && [ "$NODES" != 0 ] || fail "PROCESSES and NODES must be at least 1"

cores=$(( $(nproc 2> /dev/null || echo 1) / PROCESSES ))
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$(( cores > 0 ? cores : 1 ))}

launch=("$PYTHON" "$HERE/launch.py" --nproc-per-node "$PROCESSES")
if [ "$NODES" -gt 1 ]; then
    [ -n "${MASTER:-}" ] && [ -n "${NODE:-}" ] || fail "with NODES=$NODES name MASTER, the first machine, and NODE, the number of this one"
    launch+=(--nnodes "$NODES" --node-rank "$NODE" --master-addr "$MASTER" --master-port "${PORT:-29500}")
elif [ "$PROCESSES" -gt 1 ]; then
    launch+=(--standalone)
else
    launch=("$PYTHON") # one process has nobody to talk to
fi

if [ "$DOWNLOAD" = 1 ]; then
    "$PYTHON" "$HERE/fetch_training_data.py" "$DATA" --repository "$DATA_ID" || exit 2
fi

joined() { # lines -> one line with commas
    paste -sd, -
}

# The roots of the data: folders with train/ in them.
if [ -d "$DATA" ] && [ ! -d "$DATA/train" ]; then
    found=$(find -L "$DATA" -mindepth 2 -maxdepth 4 -type d -name train | sort | sed 's|/train$||' | joined)
    ROOTS=${found:-$DATA}
else
    ROOTS=$DATA
fi
IFS=, read -ra folders <<< "$ROOTS"
for folder in "${folders[@]}"; do
    [ -e "$folder" ] || fail "$folder: no such folder, video or list of videos"
done
if [ -z "${LABELS:-}" ]; then
    [ ! -d "$DATA" ] || folders+=("$DATA")
    LABELS=$(find -L "${folders[@]}" -maxdepth 2 \( -name train -o -name val \) -prune -o -name 'gazing_labels*.json' -print |
        sort -u | joined)
fi

TASK_OPTIONS=(--task "$TASK")
if [ "$TASK" != mosaic ]; then
    TASK_OPTIONS+=(--task-losses l1+dinov2_reg+siglip2 --task-weights 1+0.3+0.3 --rebuild 0.125)
fi

# What the published code does where ours has a choice: its definition of probabilities, its sampling, one learning rate.
AS_PUBLISHED=(--log-probabilities published --optimizer adam --schedule linear --min-lr 0 --convolution-lr 1
    --hint-weight 0 --clip-norm 0)

train() { # options of the recipe, then those of the command line
    exec "${launch[@]}" -m autogaze_mllm.cli train-gaze "$ROOTS" --out "$OUTPUT" \
        "${TASK_OPTIONS[@]}" "${AS_PUBLISHED[@]}" "${DEVICE[@]}" "$@"
}

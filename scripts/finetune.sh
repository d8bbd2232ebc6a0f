#!/usr/bin/env bash
# Fine-tunes a wrapped model with DeepSpeed, on one machine or several.
#
#   MODEL=nvidia/NVILA-8B-HD-Video DATA=videos.jsonl OUTPUT=out scripts/finetune.sh --train lora
#
# PROCESSES: per machine (default: one per GPU, 1 without any). DEEPSPEED: zero2, zero3, zero2_offload, zero3_offload, a
# json file, or none (default: zero2; none for one process). NODES, NODE, MASTER, PORT: machines, this one's number,
# where the first one is reached. Run the same command on every machine; DATA and OUTPUT must be the same files there.
# All other options are those of `autogaze-mllm finetune --help`. Other launchers do as well: `accelerate launch --module
# autogaze_mllm.cli finetune ...` and `deepspeed --no_local_rank --module autogaze_mllm.cli finetune ...`; the first one
# with FSDP: `accelerate launch --config_file scripts/fsdp.yaml ...`.
set -euo pipefail

: "${MODEL:?name the base model: a hub id or a folder}"
: "${DATA:?name the json or jsonl file of samples}"
: "${OUTPUT:?name the folder for checkpoints and the result}"

PYTHON=${PYTHON:-python}
gpus=$(command -v nvidia-smi > /dev/null 2>&1 && nvidia-smi -L 2> /dev/null | grep -c ^GPU || true)
[ "${gpus:-0}" -gt 0 ] || gpus=1
PROCESSES=${PROCESSES:-$gpus}
NODES=${NODES:-1}
for name in PROCESSES NODES NODE PORT; do
    value=${!name-}
    case "$value" in
        *[!0-9]*) echo "finetune.sh: error: $name must be a whole number, got '$value'" >&2; exit 2 ;;
    esac
done
if [ "${PROCESSES}" = 0 ] || [ "${NODES}" = 0 ]; then
    echo "finetune.sh: error: PROCESSES and NODES must be at least 1" >&2
    exit 2
fi
if [ "$PROCESSES" -gt 1 ] || [ "$NODES" -gt 1 ]; then default=zero2; else default=none; fi
DEEPSPEED=${DEEPSPEED:-$default}

launch=(--nproc-per-node "$PROCESSES")
if [ "$NODES" -gt 1 ]; then
    : "${MASTER:?name the machine that the others meet at}"
    launch+=(--nnodes "$NODES" --node-rank "${NODE:?which machine this is, from 0}" --master-addr "$MASTER" --master-port "${PORT:-29500}")
else
    launch+=(--standalone)
fi
engine=()
[ "$DEEPSPEED" = none ] || engine=(--deepspeed "$DEEPSPEED")

exec "$PYTHON" "$(dirname "$0")/launch.py" "${launch[@]}" -m autogaze_mllm.cli finetune \
    --model "$MODEL" --data "$DATA" --output "$OUTPUT" "${engine[@]}" "$@"

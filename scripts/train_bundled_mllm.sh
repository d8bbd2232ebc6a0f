#!/usr/bin/env bash
# Trains the bundled MLLM from nothing, as MLLMs are: a tower that reads (signs in sheets), a projector that speaks the
# LLM's words, then an LLM that listens, fine-tuned with this project's own code on SignVid's train split. The tower rests
# while the LLM learns: it reads already.
#
#   tower      tower and projector, on sheets full of signs
#   listing    stills with three signs: what do they say, by colour?
#   stills     stills with four signs, every patch seen: questions as in the benchmark, too
#   clips      8 frames of 2 x 2 tiles behind pixel-diff, 70 tokens: which sign came first?
#   gazed      the same behind GAZE (default: the bundled gaze model), 300 tokens
#   videos     16 frames of 3 x 3 tiles behind GAZE, 1,400 tokens
#   long       16 frames of 6 x 6 tiles behind GAZE, 5,500 tokens: what is worth attending to in so many
#   mixed      the videos of the last two, clips and videos of up to 64 frames behind pixel-diff, and every patch of small
#              ones, together: nothing is forgotten, and every way of looking learned
#   signs      where MINUTES says for how long: words first, then videos of 3 x 3 tiles, clean and noisy, every way of
#              looking alike, on a GPU (train_signvid_llm.py)
#   letters    then, for LETTER_MINUTES (default 70), on texts of a few words and few tokens of video: which letter the
#              option has that was just said, and which codes are shown (train_signvid_llm.py --letters)
#   looks      then, for MINUTES again, videos in every way of looking, while letters are kept (--letters kept)
#
#   scripts/train_bundled_mllm.sh [--quick] [FOLDER]
#
# FOLDER (default: mllm_training) takes data, runs and results; FOLDER/model is the result, in bf16, with the settings
# that `ask` takes from it. --quick is the same recipe in small, a few minutes on one core, in FOLDER/quick. Stages that
# are done are left as they are, interrupted ones go on. DEVICE: --cpu, or nothing where there is a GPU. What is tuned is
# tuned on `make_signvid.py --dev`, never on the test split.
set -euo pipefail

QUICK=0
if [ "${1:-}" = "--quick" ]; then QUICK=1; shift; fi
FOLDER=${1:-mllm_training}
PYTHON=${PYTHON:-python}
GAZE=${GAZE:-bundled}
DEVICE=${DEVICE---cpu}
PRECISION=${PRECISION:-fp32}
WORKERS=${WORKERS:-2}
HERE=$(cd "$(dirname "$0")" && pwd)
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}

if [ $QUICK = 1 ]; then
    FOLDER=$FOLDER/quick; MINUTES=${MINUTES:-3}; LETTER_MINUTES=${LETTER_MINUTES:-3}
    PRIME=40; LISTING=48; STILLS=16; CLIPS=4; VIDEOS=2; LONG=2; DENSE=1; EPOCHS="1 1 1 1 1 1 1"; BATCH=8
    TOWER="--sheets 12 --steps 12 --report-every 6"; SIGNS=--small
else
    PRIME=400; LISTING=6000; STILLS=3000; CLIPS=1500; VIDEOS=200; LONG=120; DENSE=40; EPOCHS="3 2 2 1 2 2 2"; BATCH=16
    TOWER="--sheets 1500 --minutes 15 --projector-minutes 4"; SIGNS=
fi
read -r E_LISTING E_STILLS E_CLIPS E_GAZED E_VIDEOS E_LONG E_MIXED <<< "$EPOCHS"

make() { # NAME and arguments of make_signvid.py
    local name=$1; shift
    if [ ! -f "$FOLDER/data/$name.jsonl" ]; then
        $PYTHON "$HERE/make_signvid.py" "$FOLDER/data" --train "$name" --workers "$WORKERS" "$@"
    fi
}

train() { # NAME of the stage, its data (one or several), base model, arguments of finetune
    local name=$1 data=() part base=$3
    for part in $2; do data+=("$FOLDER/data/$part.jsonl"); done
    shift 3
    if [ -d "$FOLDER/$name/merged" ]; then return; fi
    # shellcheck disable=SC2086
    $PYTHON -m autogaze_mllm.cli finetune --model "$base" --data "${data[@]}" --output "$FOLDER/$name" \
        --cache "$FOLDER/gazed" --no-gradient-checkpointing --precision "$PRECISION" --resume --workers 0 --tower off \
        --projector-lr 2e-4 $DEVICE "$@"
    $PYTHON -m autogaze_mllm.cli merge "$FOLDER/$name" "$FOLDER/$name/merging"
    mv "$FOLDER/$name/merging" "$FOLDER/$name/merged"
}

make prime --size 224x224 --frames 1 --at-once --signs 3 --videos $PRIME --questions 0 --seed 39
make stills --size 224x224 --frames 1 --at-once --signs 4 --videos $STILLS --questions 9 --turns 5 --seed 40
make clips --size 448x448 --frames 8 --signs 4 --videos $CLIPS --questions 13 --turns 5 --seed 41
make listing --size 224x224 --frames 1 --at-once --signs 3 --videos $LISTING --questions 0 --seed 44
make videos --size 672x672 --frames 16 --signs 5 --videos $VIDEOS --questions 14 --turns 7 --seed 45 \
    --look '{"max_tiles": 9}'
make long --size 1344x1344 --frames 16 --signs 5 --videos $LONG --questions 18 --turns 25 --seed 46
SPARSE='{"name": "pixel-diff", "chunk_frames": 16}'
make sparse --size 1344x1344 --frames 16 --signs 5 --videos $LONG --questions 26 --turns 11 --seed 47 --look "$SPARSE"
make few --size 448x448 --frames 8 --signs 4 --videos $CLIPS --questions 4 --turns 5 --seed 48 --look "$SPARSE"
make lengthy --size 1344x1344 --frames 64 --signs 6 --videos $DENSE --questions 26 --turns 11 --seed 49 \
    --look '{"name": "pixel-diff", "chunk_frames": 16, "frames": 64}'
make whole --size 448x448 --frames 8 --signs 4 --videos $VIDEOS --questions 13 --turns 5 --seed 50 \
    --look '{"name": "all", "ratio": 1, "frames": 8, "max_tiles": 4}'
make dense --size 672x672 --frames 16 --signs 5 --videos $DENSE --questions 14 --turns 7 --seed 51 \
    --look '{"name": "all", "ratio": 1, "frames": 8, "max_tiles": 9}'

[ -f "$FOLDER/untrained/config.json" ] || $PYTHON "$HERE/make_bundled_mllm.py" "$FOLDER/untrained" "$FOLDER/data/prime"
# shellcheck disable=SC2086
[ -f "$FOLDER/tower/config.json" ] ||
    $PYTHON "$HERE/train_sign_tower.py" "$FOLDER/untrained" "$FOLDER/tower" --workers "$WORKERS" $TOWER

ALONE="--batch-size 1 --accumulate" # nothing is padded, so attention needs no mask and is plainly causal, half the work
train listing listing "$FOLDER/tower" --gaze pixel-diff --ratio 0.3 --frames 1 --epochs "$E_LISTING" \
    --batch-size $BATCH --llm-lr 1.5e-3
train stills stills "$FOLDER/listing/merged" --gaze all --ratio 1 --frames 1 --epochs "$E_STILLS" \
    --batch-size $BATCH --llm-lr 1.5e-3
train clips clips "$FOLDER/stills/merged" --gaze pixel-diff --ratio 0.147 --frames 8 --max-tiles 4 --epochs "$E_CLIPS" \
    --batch-size $BATCH --llm-lr 1e-3
train gazed clips "$FOLDER/clips/merged" --gaze "$GAZE" --ratio 0.147 --loss 0 --frames 8 --max-tiles 4 \
    --epochs "$E_GAZED" --batch-size $BATCH --llm-lr 1e-3
# shellcheck disable=SC2086
train videos videos "$FOLDER/gazed/merged" --gaze "$GAZE" --ratio 0.147 --loss 0 --frames 16 --chunk-frames 2 \
    --max-tiles 9 --epochs "$E_VIDEOS" $ALONE 4 --llm-lr 8e-4
# shellcheck disable=SC2086
train long long "$FOLDER/videos/merged" --gaze "$GAZE" --ratio 0.147 --loss 0 --frames 16 --chunk-frames 2 \
    --max-tiles 36 --epochs "$E_LONG" $ALONE 2 --llm-lr 5e-4
# shellcheck disable=SC2086
train mixed "videos long sparse few lengthy whole dense" "$FOLDER/long/merged" --gaze "$GAZE" --ratio 0.147 --loss 0 \
    --frames 16 --chunk-frames 2 --max-tiles 36 --epochs "$E_MIXED" $ALONE 8 --llm-lr 8e-4

LLM=()
if [ -n "${MINUTES:-}" ]; then
    # shellcheck disable=SC2086
    [ -f "$FOLDER/signs/result.json" ] || $PYTHON "$HERE/train_signvid_llm.py" "$FOLDER/signs" --model "$FOLDER/mixed/merged" \
        --workers "$WORKERS" --minutes "$MINUTES" $SIGNS
    # shellcheck disable=SC2086
    [ -f "$FOLDER/letters/result.json" ] || $PYTHON "$HERE/train_signvid_llm.py" "$FOLDER/letters" --letters \
        --model "$FOLDER/mixed/merged" --llm "$FOLDER/signs/llm.safetensors" --workers "$WORKERS" \
        --minutes "${LETTER_MINUTES:-70}" $SIGNS
    # shellcheck disable=SC2086
    [ -f "$FOLDER/looks/result.json" ] || $PYTHON "$HERE/train_signvid_llm.py" "$FOLDER/looks" --letters kept \
        --model "$FOLDER/mixed/merged" --llm "$FOLDER/letters/llm.safetensors" --workers "$WORKERS" \
        --minutes "$MINUTES" $SIGNS
    LLM=(--llm "$FOLDER/looks/llm.safetensors")
fi
[ -f "$FOLDER/model/config.json" ] || $PYTHON "$HERE/bundle_mllm.py" "$FOLDER/mixed/merged" "$FOLDER/model" "${LLM[@]}"

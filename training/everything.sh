#!/bin/sh
# Train, export and evaluate all learned models of the miniature: training/everything.sh cpu|gpu WORK
#
# After checking the measures, publish the weights: python -m training.publish WORK magicseg/miniature/weights
# (add --scenes 65536 after "gpu").
# WORK contains painted scenes, checkpoints and curves. Starting the script again resumes from them. WORK/weights gets
# diffusion/, clip/ and measures.json. LIMIT: seconds after which a training is stopped and exported.
set -eu
machine=$1 work=$2 weights=$2/weights failed=
limit=${LIMIT:-1000000}
python=${PYTHON:-.venv/bin/python}
export HF_HUB_OFFLINE=1

case $machine in
cpu)
    common="--data $work/data" device=cpu scenes=16384
    autoencoder="" denoiser="" clip="" judge="" ;;
gpu)
    common="--data $work/data --device cuda --precision bfloat16 --save-seconds 20" device=cuda scenes=65536
    autoencoder="--scenes $scenes --steps 6000 --cooldown 1500 --batch-size 32"
    denoiser="--scenes $scenes --steps 2500 --cooldown 625 --batch-size 128"
    clip="--scenes $scenes --steps 5250 --cooldown 1312 --batch-size 256"
    judge="--workers $(nproc) --steps 4000 --cooldown 1000 --batch-size 64" ;;
*) echo "cpu or gpu, not $machine" >&2; exit 2 ;;
esac

# A training that reached the limit is exported. A failed training ends the script after the others have finished.
train() {
    timeout "$limit" "$python" -m "training.$1" "$work/$1" $common $2 || [ $? = 124 ]
}

mkdir -p "$weights"
"$python" -m training.painted "$work/data" --scenes $scenes --workers "$(nproc)"
train judge "$judge" &
judge=$!
train autoencoder "$autoencoder" &
autoencoder=$!
train clip "$clip" &
clip=$!
train denoiser "$denoiser" &
denoiser=$!
for training in $judge $autoencoder $clip $denoiser; do wait "$training" || failed=1; done
[ -z "$failed" ]
"$python" -m training.denoiser "$work/denoiser" $common --autoencoder "$work/autoencoder" --export "$weights/diffusion"
"$python" -m training.clip "$work/clip" $common --export "$weights/clip"
"$python" -m training.measure --diffusion "$weights/diffusion" --clip "$weights/clip" --judge "$work/judge" \
    --trained $scenes --workers "$(nproc)" --device $device --json "$weights/measures.json" --picture "$weights/pairs.png"

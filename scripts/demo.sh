#!/usr/bin/env bash
# Trains a small diffusion model on scikit-learn's digits, samples from it, and says where the pictures are.
#   bash scripts/demo.sh [FOLDER]    default runs/demo
set -eu
cd "$(dirname "$0")/.."
. scripts/environment.sh requirements.txt
"$python" scripts/build_kernels.py || [ $? -eq 2 ]  # 2: none here, and said why; MindSpore's own operators serve
run=${1:-runs/demo}
overwrite=
if [ -f "$run/config.yaml" ]; then overwrite=--overwrite; fi
"$python" scripts/train.py --config configs/digits.yaml --out "$run" $overwrite
"$python" scripts/sample.py --run "$run" --num 100 --batch_size 100 \
  --out "$run/samples.png" --gif "$run/denoise.gif" --npz "$run/samples.npz"
"$python" scripts/judge_digits.py --npz "$run/samples.npz"
echo
echo "a grid of samples: $run/samples.png"
echo "noise to digits:   $run/denoise.gif"
echo "the loss curve:    $run/loss.png"

#!/usr/bin/env bash
# Trains on N ranks of this host, one a card (Ascend: HCCL, GPU: NCCL; on a CPU, by MCCL, they share the cores).
#   bash scripts/train_distributed.sh 2 --config configs/digits.yaml --out runs/digits
#   bash scripts/train_distributed.sh 8 --nodes 2 --node_rank 0 --master_addr 10.0.0.1 --master_port 8118 --config ...
# The second on each of two hosts, with its own --node_rank. --help names all options; the rest are scripts/train.py's.
set -eu
house=$(cd "$(dirname "$0")/.." && pwd)
python=${PYTHON:-$house/.venv/bin/python}
if ! [ -x "$python" ]; then python=$(command -v python3 || command -v python); fi
exec "$python" "$house/scripts/launch_ranks.py" "$@"

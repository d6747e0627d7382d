#!/usr/bin/env bash
# Train in several processes on this machine, or on one node of several:
#   tools/dist_train.sh CONFIG PROCESSES [flags of train.py]
# NNODES, NODE_RANK, MASTER_ADDR and PORT describe the nodes.
set -euo pipefail
here=$(dirname "$0")
files=("${@:1:1}")
processes=${2:?usage: dist_train.sh CONFIG PROCESSES [flags]}

python -m torch.distributed.run \
    --nnodes="${NNODES:-1}" \
    --node_rank="${NODE_RANK:-0}" \
    --master_addr="${MASTER_ADDR:-127.0.0.1}" \
    --master_port="${PORT:-29500}" \
    --nproc_per_node="$processes" \
    "$here/train.py" "${files[@]}" --launcher pytorch "${@:3}"

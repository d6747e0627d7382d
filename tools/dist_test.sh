#!/usr/bin/env bash
# Test in several processes on this machine, or on one node of several:
#   tools/dist_test.sh CONFIG CHECKPOINT PROCESSES [flags of test.py]
# NNODES, NODE_RANK, MASTER_ADDR and PORT describe the nodes.
set -euo pipefail
here=$(dirname "$0")
files=("${@:1:2}")
processes=${3:?usage: dist_test.sh CONFIG CHECKPOINT PROCESSES [flags]}

python -m torch.distributed.run \
    --nnodes="${NNODES:-1}" \
    --node_rank="${NODE_RANK:-0}" \
    --master_addr="${MASTER_ADDR:-127.0.0.1}" \
    --master_port="${PORT:-29500}" \
    --nproc_per_node="$processes" \
    "$here/test.py" "${files[@]}" --launcher pytorch "${@:4}"

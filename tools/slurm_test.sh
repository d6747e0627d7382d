#!/usr/bin/env bash
# Test on a Slurm cluster:
#   [GPUS=8 GPUS_PER_NODE=8 CPUS_PER_TASK=5 SRUN_ARGS=...] \
#       tools/slurm_test.sh PARTITION JOB_NAME CONFIG CHECKPOINT [flags of test.py]
set -euo pipefail
here=$(dirname "$0")
partition=${1:?usage: slurm_test.sh PARTITION JOB_NAME CONFIG CHECKPOINT [flags]}
job=${2:?usage: slurm_test.sh PARTITION JOB_NAME CONFIG CHECKPOINT [flags]}
gpus_per_node=${GPUS_PER_NODE:-8}

# shellcheck disable=SC2086  # SRUN_ARGS is a list of words
srun --partition="$partition" \
    --job-name="$job" \
    --gres="gpu:$gpus_per_node" \
    --ntasks="${GPUS:-8}" \
    --ntasks-per-node="$gpus_per_node" \
    --cpus-per-task="${CPUS_PER_TASK:-5}" \
    --kill-on-bad-exit=1 \
    ${SRUN_ARGS:-} \
    python -u "$here/test.py" "${@:3}" --launcher slurm

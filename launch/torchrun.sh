#!/usr/bin/env bash
# Train under torchrun on this host, or on several.
#   bash launch/torchrun.sh [--config FILE.yaml] [key.path=value ...]
# RANKS      ranks on this host; default: one for each GPU, or one for each core (at most 4)
# NNODES, NODE_RANK, MASTER_ADDR, MASTER_PORT   for several hosts: run it on each, NODE_RANK 0, 1, ...
set -euo pipefail
venv="$(dirname "${BASH_SOURCE[0]}")/../.venv/bin"
if [ -x "$venv/torchrun" ]; then PATH="$(cd "$venv" && pwd):$PATH"; fi  # made by the quickstart
gpus=$( (nvidia-smi --list-gpus 2>/dev/null || true) | wc -l)
cores=$(nproc)
RANKS="${RANKS:-$((gpus > 0 ? gpus : (cores < 4 ? cores : 4)))}"
# cobo_dist sets the threads of each rank itself (run.threads); this silences torchrun's advice.
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
# By default glibc returns large freed blocks to the system, so activations cost page faults in every round; these
# thresholds keep the blocks (docs/PERFORMANCE.md). 32 MiB is the largest value that every glibc accepts.
export MALLOC_MMAP_THRESHOLD_="${MALLOC_MMAP_THRESHOLD_:-33554432}"
export MALLOC_TRIM_THRESHOLD_="${MALLOC_TRIM_THRESHOLD_:-17179869184}"
if [ "${NNODES:-1}" -gt 1 ]; then
  : "${NODE_RANK:?set NODE_RANK to 0 on the first host, 1 on the second, ...}"
  : "${MASTER_ADDR:?set MASTER_ADDR to the first host}"
  exec torchrun --nnodes="$NNODES" --node-rank="$NODE_RANK" --nproc-per-node="$RANKS" \
    --master-addr="$MASTER_ADDR" --master-port="${MASTER_PORT:-29500}" -m cobo_dist.train "$@"
fi
exec torchrun --standalone --nproc-per-node="$RANKS" -m cobo_dist.train "$@"

#!/usr/bin/env bash
# One training on two machines with torchrun. Run the same command on both, with the first one's name:
#   HEAD=gpu-01 bash two-machines.sh recipe.yaml
# Both see the same folder (runs/, models, rows). The port must be free on the first machine.
set -euo pipefail
exec torchrun \
  --nnodes=2 \
  --nproc-per-node="${GPUS:-8}" \
  --rdzv-backend=c10d \
  --rdzv-endpoint="${HEAD:?name of the first machine}:${PORT:-29500}" \
  --rdzv-id="${JOB:-potstill}" \
  --max-restarts=0 \
  -m potstill run "${1:?a recipe}" "${@:2}"

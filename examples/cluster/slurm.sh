#!/usr/bin/env bash
#SBATCH --job-name=potstill
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --time=12:00:00
#SBATCH --signal=TERM@120
# One task a GPU; each finds its job in SLURM's variables, so no torchrun is needed.
# 120 seconds before the end every task is told to save and stop; submit the same script again and it goes on.
#   sbatch slurm.sh recipe.yaml
set -euo pipefail
export OMP_NUM_THREADS="${SLURM_CPUS_PER_TASK:-8}"
export SRUN_CPUS_PER_TASK="$OMP_NUM_THREADS" # srun does not take it from the lines above
exec srun --kill-on-bad-exit=1 potstill run "${1:?a recipe}" "${@:2}"

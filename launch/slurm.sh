#!/bin/sh
# Runs a command of the library on the nodes of a Slurm job, one process a node.
#
#   sbatch --nodes=2 --gpus-per-node=8 launch/slurm.sh --config configs/cifar10_lt.py --workdir DIR
#
# DIR is a folder that all nodes see. Two minutes before its time is up the job saves and is queued
# again, as after a preemption, and goes on.
#SBATCH --ntasks-per-node=1
#SBATCH --signal=TERM@120
#SBATCH --requeue
#SBATCH --open-mode=append
set -u
srun python -m launch.main --distributed "$@" &
trap : TERM # srun hands the signal on
wait $!
code=$?
while kill -0 $! 2> /dev/null; do # the signal ended `wait`, and the job saves
  wait $!
  code=$?
done
if [ "$code" -eq 130 ]; then # saved before the end
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"

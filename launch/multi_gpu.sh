#!/bin/sh
# Runs a command of the library on one machine with several GPUs, a process for each.
#
#   launch/multi_gpu.sh 8 --config configs/cifar10_lt.py:method=edc --workdir runs/edc
#
# One process drives all GPUs of a machine too, without this script; with a process for each, every
# GPU has a Python of its own that reads and decodes images.
set -eu
count=$1
shift
export JAX_COORDINATOR_ADDRESS="localhost:${PORT:-9876}" JAX_NUM_PROCESSES="$count"
trap 'kill -TERM $pids' INT TERM
number=0 pids=
while [ "$number" -lt "$count" ]; do
  CUDA_VISIBLE_DEVICES=$number JAX_PROCESS_ID=$number python -m launch.main --distributed "$@" &
  pids="$pids $!"
  number=$((number + 1))
done
code=0
for pid in $pids; do
  status=0
  wait "$pid" || status=$?
  while kill -0 "$pid" 2> /dev/null; do # a signal ended `wait`, and the process saves
    status=0
    wait "$pid" || status=$?
  done
  [ "$status" -eq 0 ] || code=$status
done
exit "$code"

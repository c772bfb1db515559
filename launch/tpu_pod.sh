#!/bin/sh
# Runs a command of the library on every host of a Cloud TPU slice, and again where it stopped.
#
#   launch/tpu_pod.sh NAME ZONE --config configs/cifar10_lt.py:method=edc --workdir gs://bucket/edc
#
# The repository and its environment (pip install -e '.[tpu,gcs]') have to be in ~/ltdd_jax on each.
set -eu
name=$1 zone=$2
shift 2
quoted=
for argument; do
  quoted="$quoted '$(printf %s "$argument" | sed "s/'/'\\\\''/g")'"
done
exec gcloud compute tpus tpu-vm ssh "$name" --zone="$zone" --worker=all \
  --command="cd ltdd_jax && python3 -m launch.main --distributed$quoted"

#!/usr/bin/env bash
# Training steps beside their peers with torch.compile, in bfloat16, turn by turn, and their kernels.
# The interpreter also needs torch (for this CUDA), timm, transformers and scipy.
set -euo pipefail
out=${1:?a folder for the results}
mkdir -p "$out"
# JAX would take nearly all of the memory, and the peers need some too.
export PYTHONPATH=.${PYTHONPATH:+:$PYTHONPATH} XLA_PYTHON_CLIENT_PREALLOCATE=false
# shellcheck disable=SC2086
${PYTHON:-python} experiments/speed/gpu.py "$out" "${LIMIT:-280}" ${QUICK:-}
# Rehearsal on a CPU: QUICK=--quick LIMIT=600 9_speed.sh OUT

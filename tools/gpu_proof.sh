#!/usr/bin/env bash
# gpu_proof.sh [WHEELS] [ARGUMENT…]: the proof on a GPU (benchmarks/gpu_proof.py), on a machine with torch and no network.
# Installs the wheels that `make gpu-wheels` gathered into a folder of their own; torch and the rest stay the machine's.
set -euo pipefail
cd "$(dirname "$0")/.."
wheels=${1:-wheels}; shift || true
python=${PYTHON:-python3}
site=$(mktemp -d)
trap 'rm -rf "$site"' EXIT
"$python" -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --target "$site" "$wheels"/*.whl
PYTHONUNBUFFERED=1 PYTHONPATH="$site" "$python" benchmarks/gpu_proof.py "$@"

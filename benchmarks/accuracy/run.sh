#!/usr/bin/env bash
# RESULTS.md and results.json: endpoint errors and overhead beside diffusers, k-diffusion and azula; about ten minutes on two idle cores.
set -euo pipefail
cd "$(dirname "$0")/../.."
[ -x .venv-peers/bin/python ] || benchmarks/quality/peers.sh
pip=".venv-peers/bin/python -m pip --disable-pip-version-check --quiet"
$pip install -c constraints.txt -e .
# --no-deps: they ask for torchvision and training libraries, which sampling does not use (peers.py says what stands in).
$pip install --no-deps -r benchmarks/accuracy/peers-requirements.txt
OMP_NUM_THREADS=1 .venv-peers/bin/python benchmarks/accuracy/run.py

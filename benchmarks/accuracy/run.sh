#!/usr/bin/env bash
# RESULTS.md and results.json: endpoint errors and overhead beside diffusers, k-diffusion and azula; about ten minutes on two idle cores.
set -euo pipefail
cd "$(dirname "$0")/../.."
benchmarks/accuracy/peers.sh
OMP_NUM_THREADS=1 .venv-peers/bin/python benchmarks/accuracy/run.py

#!/usr/bin/env bash
# Completes .venv-peers: sfumato itself, k-diffusion and azula beside what quality/peers.sh puts there. What is there already is kept.
set -euo pipefail
cd "$(dirname "$0")/../.."
[ -x .venv-peers/bin/python ] || benchmarks/quality/peers.sh
pip=".venv-peers/bin/python -m pip --disable-pip-version-check --quiet"
$pip install -c constraints.txt -e .
# --no-deps: they ask for torchvision and training libraries, which sampling does not use (sfumato.bench says what stands in).
$pip install --no-deps -r benchmarks/accuracy/peers-requirements.txt

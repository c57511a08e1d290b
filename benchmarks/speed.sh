#!/usr/bin/env bash
# speed.txt, speed.json and cost.png: `sfumato bench` beside every peer; a quarter of an hour on two idle cores.
set -euo pipefail
cd "$(dirname "$0")/.."
benchmarks/accuracy/peers.sh
.venv-peers/bin/python -m sfumato bench --against diffusers,denoising-diffusion-pytorch,k-diffusion,azula \
    --plot benchmarks/cost.png --out benchmarks/speed.json | tee benchmarks/speed.txt

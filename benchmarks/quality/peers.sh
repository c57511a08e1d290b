#!/bin/sh
# Makes .venv-peers at the repository root: diffusers and denoising-diffusion-pytorch, pinned, on the CPU build of torch.
# PYTHON chooses the interpreter. Run again at any time: what is there already is kept.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
venv=$(cd "$here/../.." && pwd)/.venv-peers
"${PYTHON:-python3}" -m venv "$venv"
printf '*\n' > "$venv/.gitignore"
pip="$venv/bin/python -m pip --disable-pip-version-check"

# On Linux PyPI's wheel brings CUDA along; PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu prefers the smaller +cpu build.
$pip install torch==2.13.0
$pip install -r "$here/peers-requirements.txt"
# --no-deps: it requires torchvision and pytorch-fid, which its trainer does not use here. torchvision from PyPI does not match a
# CPU build of torch and breaks `import diffusers` (operator torchvision::nms does not exist); stubs/ stands in for it.
$pip install --no-deps denoising-diffusion-pytorch==2.3.4

"$venv/bin/python" -c 'import diffusers; from diffusers import UNet2DModel; print("diffusers", diffusers.__version__)'
PYTHONPATH="$here/stubs" "$venv/bin/python" -c 'import denoising_diffusion_pytorch as d; from denoising_diffusion_pytorch.version import __version__ as v; print("denoising-diffusion-pytorch", v)'

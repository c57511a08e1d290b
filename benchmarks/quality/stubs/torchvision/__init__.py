"""Stands in for torchvision where only `import torchvision` is asked for: every use raises.

denoising-diffusion-pytorch imports `transforms` and `utils` at its top for a Trainer that reads image folders. The benchmark
feeds arrays and writes its own files, so nothing of torchvision runs.
"""

from . import transforms, utils

__version__ = "0.0.0+stub"
__all__ = ["transforms", "utils"]


def __getattr__(name: str) -> object:
    raise AttributeError(f"torchvision.{name}: this is the benchmark's stub of torchvision; install torchvision to use it.")

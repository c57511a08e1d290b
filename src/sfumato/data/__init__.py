"""Data sets: one type, and a loader for each format."""

from sfumato.data.arrays import Missing, from_arrays, npy, npz
from sfumato.data.bundled import digits, fashion_small
from sfumato.data.cifar import CIFAR10_CLASSES, cifar10, cifar10_pngs, cifar100
from sfumato.data.dataset import Dataset, HeldOutBy
from sfumato.data.fashion import FASHION_CLASSES, fashion
from sfumato.data.folder import folder
from sfumato.data.hugging_face import from_datasets
from sfumato.data.idx import idx, read_idx
from sfumato.data.images import Fit
from sfumato.data.scaling import IMAGES, Channels, Scaling, Standard
from sfumato.data.scenes import SceneBatch, Scenes
from sfumato.data.symbols import Vocabulary
from sfumato.data.table import table
from sfumato.data.toys import (
    TOYS,
    checkerboard,
    circles,
    datasaurus,
    eight_gaussians,
    gaussian_rings,
    moons,
    pinwheel,
    s_curve,
    swiss_roll,
    toy,
)
from sfumato.runtime import cache_folder

__all__ = [
    "CIFAR10_CLASSES",
    "FASHION_CLASSES",
    "IMAGES",
    "TOYS",
    "Channels",
    "Dataset",
    "Fit",
    "HeldOutBy",
    "Missing",
    "Scaling",
    "SceneBatch",
    "Scenes",
    "Standard",
    "Vocabulary",
    "cache_folder",
    "checkerboard",
    "cifar10",
    "cifar10_pngs",
    "cifar100",
    "circles",
    "datasaurus",
    "digits",
    "eight_gaussians",
    "fashion",
    "fashion_small",
    "folder",
    "from_arrays",
    "from_datasets",
    "gaussian_rings",
    "idx",
    "moons",
    "npy",
    "npz",
    "pinwheel",
    "read_idx",
    "s_curve",
    "swiss_roll",
    "table",
    "toy",
]

"""An autoencoder that diffusers saved, as a model."""

import json
from pathlib import Path

from sfumato import latent
from sfumato.data import IMAGES
from sfumato.data.options import ElsewhereData
from sfumato.data.source import DataSpec
from sfumato.model import Model
from sfumato.recipe import recipe_of
from sfumato.tasks import AutoencoderTask


def is_autoencoder(folder: str | Path) -> bool:
    """Whether diffusers saved an `AutoencoderKL` there."""
    path = Path(folder) / "config.json"
    try:
        return path.is_file() and json.loads(path.read_text()).get("_class_name", "AutoencoderKL") == "AutoencoderKL"
    except (ValueError, AttributeError):
        return path.is_file()  # what is wrong with it, `load_autoencoder` says


def load_autoencoder(folder: str | Path) -> Model:
    """The autoencoder in a folder of diffusers; it takes images of any size in [-1, 1].

    Raises:
        ValueError: no such folder, an architecture that is none of ours, or a scaling factor of zero or NaN.
        CheckpointError: weights that are missing or do not fit.
    """
    network = latent.load_diffusers(folder)
    spec = DataSpec((network.encoder.channels, None, None), IMAGES)
    return Model(str(folder), recipe_of(AutoencoderTask(), data=ElsewhereData()), spec, network)

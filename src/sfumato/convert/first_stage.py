"""Loads an autoencoder of diffusers as a model."""

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
    """Whether this is a folder with a saved `AutoencoderKL` of diffusers."""
    path = Path(folder) / "config.json"
    try:
        return path.is_file() and json.loads(path.read_text()).get("_class_name", "AutoencoderKL") == "AutoencoderKL"
    except (ValueError, AttributeError):
        return path.is_file()  # `load_autoencoder` reports errors in it


def load_autoencoder(folder: str | Path) -> Model:
    """Loads the autoencoder in a folder of diffusers; it takes images of any size in [-1, 1].

    Raises:
        ValueError: no such folder, an architecture that we do not have, or a scaling factor of zero or NaN.
        CheckpointError: weights are missing or do not fit.
    """
    network = latent.load_diffusers(folder)
    spec = DataSpec((network.encoder.channels, None, None), IMAGES)
    return Model(str(folder), recipe_of(AutoencoderTask(), data=ElsewhereData()), spec, network)

"""From what the user wrote to a model folder on disk."""

import json
import os
from pathlib import Path

from penstock.demo import MODEL_FOLDER
from penstock.sources.find import find_folder
from penstock.sources.uri import Claim, Hub, Image, parse_source

DEMO_NAME = "penstock-demo"


def find_model(name: str, *, text_only: bool = False) -> str:
    """The folder for `name`: anything that sources/uri.py lists, or "" for the demonstration model.

    With `text_only` the weights need not be there. Raises ConfigError with what is missing.
    """
    return str(find_folder(name or str(MODEL_FOLDER), text_only=text_only))


def model_name(name: str) -> str:
    """What clients call the model that `find_model(name)` finds."""
    folder = Path(name).expanduser() if name else MODEL_FOLDER
    if folder.resolve() == MODEL_FOLDER.resolve():
        return DEMO_NAME
    if folder.is_dir():
        return Path(os.path.abspath(folder)).name  # of a link its own name, not its target's
    match parse_source(name):
        case Hub() as hub:
            return hub.repository
        case Claim() as claim:
            return Path(claim.path).name or claim.name
        case Image() as image:
            return image.reference.partition("@")[0].rpartition("/")[2].partition(":")[0]
        case source:
            return Path(source.path).name


def config_modules(folder: str) -> tuple[str, ...]:
    """The transformers module that reads this folder's config, which takes 1 to 3 s to import."""
    try:
        kind = json.loads((Path(folder) / "config.json").read_bytes())["model_type"]
    except (OSError, ValueError, LookupError, TypeError):
        return ()  # the engine says what is wrong with it
    return (f"transformers.models.{kind}.configuration_{kind}",)

"""From what the user wrote to a model folder on disk."""

import json
from pathlib import Path

from penstock.demo import MODEL_FOLDER
from penstock.errors import ConfigError

DEMO_NAME = "penstock-demo"
_FILES = ["*.json", "*.safetensors", "*.jinja", "*.txt", "tokenizer.model"]
"""All that serving reads; repositories often hold the weights in further formats."""


def find_model(name: str) -> str:
    """The folder for `name`: a folder, a Hugging Face id, which is downloaded once, or "" for the demonstration model.

    Raises ConfigError with what is missing.
    """
    folder = Path(name).expanduser() if name else MODEL_FOLDER
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise ConfigError(f"{folder} is no model folder: it has no config.json")
        return str(folder)
    if name.startswith(("/", ".", "~")) or name.count("/") != 1:
        raise ConfigError(f"there is no folder {name}; name one, or a Hugging Face id such as Qwen/Qwen3-0.6B")
    return _download(name)


def model_name(name: str) -> str:
    """What clients call the model that `find_model(name)` finds."""
    if not name:
        return DEMO_NAME
    folder = Path(name).expanduser()
    return folder.resolve().name if folder.is_dir() else name


def config_modules(folder: str) -> tuple[str, ...]:
    """The transformers module that reads this folder's config, which takes 1 to 3 s to import."""
    try:
        kind = json.loads((Path(folder) / "config.json").read_bytes())["model_type"]
    except (OSError, ValueError, LookupError, TypeError):
        return ()  # the engine says what is wrong with it
    return (f"transformers.models.{kind}.configuration_{kind}",)


def _download(model_id: str) -> str:
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise ConfigError(f"{model_id} is not a folder, and fetching it needs huggingface_hub") from error
    try:
        return str(snapshot_download(model_id, allow_patterns=_FILES))
    except Exception as error:  # its errors come from three libraries and share no base
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ConfigError(
            f"{model_id} is not a folder here and cannot be fetched from Hugging Face ({reason}); "
            "check the id and the network, or name a local folder"
        ) from error

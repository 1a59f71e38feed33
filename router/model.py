"""The served model as the router needs it: names, limits, special ids and text tools, read from the model's folder."""

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from penstock.errors import ModelError
from penstock.fingerprint import model_fingerprint
from penstock.router.chat_template import ChatTemplate, load_chat_template
from penstock.router.detokenizer import Vocabulary
from penstock.router.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class ServedModel:
    """All that requests are checked against and rendered with."""

    name: str
    created: int
    """Unix time of loading, as /v1/models shows it."""
    context_tokens: int
    vocab_size: int
    end_ids: frozenset[int]
    """The model's end-of-sequence tokens."""
    tokenizer: Tokenizer
    vocabulary: Vocabulary
    chat_template: ChatTemplate | None
    fingerprint: str
    """What workers of this model say of themselves, too."""


def load_model(folder: Path, *, name: str = "", context_tokens: int | None = None) -> ServedModel:
    """Reads a model folder. Raises ModelError naming the file and the reason."""
    if not folder.is_dir():
        raise ModelError(f"{folder} is not a folder; give the model's folder with tokenizer.json and config.json")
    config = _read(folder / "config.json")
    config = {**config, **config.get("text_config", {})}
    generation = _read(folder / "generation_config.json") if (folder / "generation_config.json").is_file() else {}
    limit = config.get("max_position_embeddings")
    context = context_tokens or limit
    if not isinstance(context, int):
        raise ModelError(f"{folder / 'config.json'} has no max_position_embeddings; set max_context_tokens")
    vocab_size = config.get("vocab_size")
    if not isinstance(vocab_size, int):
        raise ModelError(f"{folder / 'config.json'} has no vocab_size")
    tokenizer = Tokenizer(folder)
    return ServedModel(
        name=name or folder.resolve().name,
        created=int(time.time()),
        context_tokens=context,
        vocab_size=vocab_size,
        end_ids=_end_ids(config) | _end_ids(generation),
        tokenizer=tokenizer,
        vocabulary=Vocabulary(tokenizer),
        chat_template=load_chat_template(folder, tokenizer.special_tokens),
        fingerprint=model_fingerprint(folder),
    )


def _end_ids(config: dict[str, Any]) -> frozenset[int]:
    found = config.get("eos_token_id")
    return frozenset([found] if isinstance(found, int) else found or [])


def _read(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text("utf-8"))
    except FileNotFoundError as error:
        raise ModelError(f"{path.parent} has no {path.name}") from error
    except ValueError as error:
        raise ModelError(f"{path} is not JSON: {error}") from error
    if not isinstance(found, dict):
        raise ModelError(f"{path} holds {type(found).__name__} where an object belongs")
    return found

"""What the router and its workers must have in common, as short strings that are equal or not."""

import json
from hashlib import blake2b
from pathlib import Path

import msgspec

from penstock.protocol import Layout

_MAY_DIFFER = ("_name_or_path", "dtype", "quantization_config", "torch_dtype", "transformers_version", "use_cache")
"""Fields of config.json that say how weights are stored or by what they were written, not what the model is."""


def model_fingerprint(folder: Path) -> str:
    """Of tokenizer and architecture: a worker with another one gives token ids another meaning.

    The same for a model and its quantized form. Raises OSError or ValueError for a folder without these files.
    """
    config = json.loads((folder / "config.json").read_bytes())
    shape = {name: value for name, value in config.items() if name not in _MAY_DIFFER}
    tokenizer = blake2b((folder / "tokenizer.json").read_bytes()).hexdigest()
    return _digest([json.dumps(shape, sort_keys=True), tokenizer])


def layout_fingerprint(layout: Layout) -> str:
    """Only workers with equal ones can read each other's KV cache."""
    return _digest(layout)


def _digest(content: object) -> str:
    return blake2b(msgspec.json.encode(content), digest_size=8).hexdigest()

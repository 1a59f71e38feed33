"""Models: from a checkpoint's folder to a decoder that runs on paged KV.

`load_model(path)` reads the config (config.py, rope.py), builds the decoder (decoder.py) and fills it from the files
(folder.py, weights.py); memory.py counts what it will cost before that.
"""

from penstock.engine.model.config import ARCHITECTURES, ModelConfig, load_config
from penstock.engine.model.decoder import Decoder
from penstock.engine.model.folder import require_tokenizer, weights_version
from penstock.engine.model.memory import weight_bytes
from penstock.engine.model.weights import load_model

__all__ = [
    "ARCHITECTURES",
    "Decoder",
    "ModelConfig",
    "load_config",
    "load_model",
    "require_tokenizer",
    "weight_bytes",
    "weights_version",
]

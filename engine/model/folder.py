"""A model folder on disk: finds its files and refuses a broken one, naming the file and the reason.

Knows Hugging Face's file names and the safetensors container. Knows nothing of what the tensors mean.
"""

import json
import os
import struct
from contextlib import ExitStack
from hashlib import blake2b
from pathlib import Path
from typing import Any

from penstock.errors import ModelError

CONFIG = "config.json"
GENERATION_CONFIG = "generation_config.json"
TOKENIZER = "tokenizer.json"
WEIGHTS = "model.safetensors"
WEIGHTS_INDEX = "model.safetensors.index.json"

_MAX_HEADER_BYTES = 100 * 2**20
"""The safetensors format itself allows no longer header."""
_WHOLE_TENSOR_BYTES = 64 * 1024
_SAMPLES = 16
_SAMPLE_BYTES = 4096


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in the file `path`. Raises ModelError when it is missing, unreadable or not an object."""
    try:
        content = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise ModelError(f"{path} is missing; a model folder needs it") from None
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:  # bad JSON as well as bad UTF-8
        raise ModelError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(content, dict):
        raise ModelError(f"{path} holds a JSON {type(content).__name__} where an object is expected")
    return content


def require_tokenizer(path: str | os.PathLike[str]) -> Path:
    """The folder's tokenizer.json, checked to be a tokenizer. Raises ModelError when it is missing or broken."""
    file = Path(path) / TOKENIZER
    if not isinstance(read_json(file).get("model"), dict):
        raise ModelError(f"{file} is no tokenizer: it has no object 'model'; save it with `save_pretrained`")
    return file


def weight_files(path: Path) -> dict[Path, list[str]]:
    """The folder's safetensors files, in order of name, each with the tensors it should hold.

    A single file is listed with the tensors of its own header, shards with what the index says.
    Raises ModelError for missing or unreadable files and for an index that is not a map of names to files.
    """
    if not (path / WEIGHTS_INDEX).exists():
        file = path / WEIGHTS
        if not file.exists():
            raise ModelError(
                f"{path} has neither {WEIGHTS} nor {WEIGHTS_INDEX}; save the model with `save_pretrained` "
                "(other weight formats are not read)"
            )
        return {file: [name for name in read_header(file)[0] if name != "__metadata__"]}
    weight_map = read_json(path / WEIGHTS_INDEX).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ModelError(f"{path / WEIGHTS_INDEX} has no object 'weight_map'")
    files: dict[Path, list[str]] = {}
    for name, shard in sorted(weight_map.items(), key=lambda item: str(item[1])):
        if not isinstance(shard, str) or Path(shard).name != shard:
            raise ModelError(f"{path / WEIGHTS_INDEX}: {name!r} lies in {shard!r}, which is not a file name")
        files.setdefault(path / shard, []).append(name)
    for file, names in files.items():
        if not file.exists():
            raise ModelError(f"{file} is missing; {WEIGHTS_INDEX} names it for {len(names)} tensors")
        absent = set(names) - read_header(file)[0].keys()
        if absent:
            raise ModelError(f"{file} lacks the tensor {min(absent)!r} that {WEIGHTS_INDEX} places there")
    return files


def read_header(file: Path) -> tuple[dict[str, Any], int]:
    """The header of a safetensors file and the offset where its data begin.

    Raises ModelError for a file that is truncated or whose header is not what the format prescribes.
    """
    try:
        size = file.stat().st_size
        with file.open("rb") as stream:
            prefix = stream.read(8)
            (length,) = struct.unpack("<Q", prefix) if len(prefix) == 8 else (0,)
            if not 2 <= length <= min(size - 8, _MAX_HEADER_BYTES):
                raise ModelError(f"{file} is corrupt or truncated: no safetensors header in its {size} bytes")
            header = json.loads(stream.read(length))
    except OSError as error:
        raise ModelError(f"{file} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{file} is corrupt: its safetensors header is not valid JSON: {error}") from error
    try:
        tensors = [entry for name, entry in header.items() if name != "__metadata__"]
        spans = [(int(start), int(end)) for start, end in (entry["data_offsets"] for entry in tensors)]
        expected = 8 + length + max((end for _, end in spans), default=0)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ModelError(f"{file} is corrupt: its header describes no tensors ({error!r})") from error
    if size != expected:
        raise ModelError(f"{file} is corrupt or truncated: it has {size} bytes, its header describes {expected}")
    return header, 8 + length


def weights_version(path: str | os.PathLike[str]) -> str:
    """A fingerprint of the folder's weights and config: equal content gives equal KV bytes, wherever it is stored.

    Hashes config.json and, of *every* tensor, name, type, shape and data: all of a tensor up to 64 KiB, else 16 windows
    of 4 KiB spread evenly over it. Fine-tuning, merging an adapter, quantizing or rounding to another type moves values
    throughout the tensors it touches, so each of them shows in its sample; an edit of a few chosen values could hide
    between the windows. That is enough to keep revisions apart, which is the purpose; it does not defend against
    forgery. File names, times and the split into shards are left out: copies are equal.
    Reads 19 MB of an 8 B model (291 tensors) instead of 16 GB. Raises ModelError for a broken folder.
    """
    folder = Path(path)
    digest = blake2b(digest_size=16)
    read_json(folder / CONFIG)
    digest.update((folder / CONFIG).read_bytes())
    files = weight_files(folder)
    headers = {file: read_header(file) for file in files}
    with ExitStack() as stack:
        streams = {file: stack.enter_context(file.open("rb")) for file in files}
        for name, file in sorted((name, file) for file, names in files.items() for name in names):
            header, data_start = headers[file]
            entry = header[name]
            digest.update(json.dumps([name, entry.get("dtype"), entry.get("shape")]).encode())
            for offset, length in _windows(*entry["data_offsets"]):
                digest.update(os.pread(streams[file].fileno(), length, data_start + offset))
    return digest.hexdigest()


def _windows(start: int, end: int) -> list[tuple[int, int]]:
    """The (offset, length) pairs of a tensor's bytes that `weights_version` hashes."""
    if end - start <= _WHOLE_TENSOR_BYTES:
        return [(start, end - start)]
    stride = (end - start - _SAMPLE_BYTES) // (_SAMPLES - 1)
    return [(start + i * stride, _SAMPLE_BYTES) for i in range(_SAMPLES)]

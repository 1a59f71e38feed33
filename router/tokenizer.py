"""Text to token ids, equal to transformers' tokenizer of the same folder but without transformers."""

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import tokenizers

from penstock.errors import ModelError, RequestError

_NAMED_TOKENS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


class Tokenizer:
    """The `tokenizer.json` of a model folder, completed by what `tokenizer_config.json` says of special tokens."""

    def __init__(self, folder: Path) -> None:
        path = folder / "tokenizer.json"
        if not path.is_file():
            raise ModelError(f"{folder} has no tokenizer.json; the router needs the model's tokenizer files")
        try:
            source = path.read_text("utf-8")
            self._inner = tokenizers.Tokenizer.from_str(source)
        except Exception as error:  # tokenizers raises bare Exception for any defect of the file
            raise ModelError(f"{path} is not a tokenizer: {error}") from error
        self._inner.no_truncation()
        self._inner.no_padding()
        self.decoder: Mapping[str, Any] | None = json.loads(source).get("decoder")
        config = _read_json(folder / "tokenizer_config.json")
        self.special_tokens = _special_tokens(folder, config)
        """Template variables: `bos_token`, `eos_token` and the family's own `*_token`, as text."""
        self._add_missing(config)
        added = self._inner.get_added_tokens_decoder()
        self.special_ids = frozenset(id_ for id_, token in added.items() if token.special)
        self.added_tokens: Collection[tokenizers.AddedToken] = list(added.values())
        """What texts are split at before anything else happens to them."""
        self.is_deterministic = not getattr(self._inner.model, "dropout", None)
        """Whether a text always gives the same tokens."""

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        """Token ids of `text`. A rendered chat template has its special tokens already: pass False for it."""
        try:
            # The batch call, unlike `encode`, releases the GIL; "fast" leaves out the offsets, which nobody reads.
            return self._inner.encode_batch_fast([text], add_special_tokens=add_special_tokens)[0].ids
        except TypeError as error:  # what the binding says of a str that is not valid Unicode
            raise RequestError("the text holds half of a surrogate pair, which is not Unicode text") from error

    def token(self, token_id: int) -> str | None:
        """The vocabulary's own spelling of a token, or None for an id it does not have."""
        return self._inner.id_to_token(token_id)

    def _add_missing(self, config: Mapping[str, Any]) -> None:
        known = {token.content: token for token in self._inner.get_added_tokens_decoder().values()}
        declared = [_added_token(entry) for _, entry in sorted(config.get("added_tokens_decoder", {}).items(), key=_id)]
        missing = [token for token in declared if token.content not in known]
        self._inner.add_tokens(missing)
        known |= {token.content: token for token in declared}
        extra = config.get("extra_special_tokens") or config.get("additional_special_tokens") or []
        names = [*self.special_tokens.values(), *(_content(entry) for entry in extra if not isinstance(extra, dict))]
        for content in names:
            token = known.get(content) or tokenizers.AddedToken(content, normalized=False)
            token.special = True
            self._inner.add_special_tokens([token])


def _special_tokens(folder: Path, config: Mapping[str, Any]) -> dict[str, str]:
    """Named special tokens. The legacy special_tokens_map.json counts only beside a config without added tokens."""
    values = dict(config)
    if "added_tokens_decoder" not in config:
        values |= _read_json(folder / "special_tokens_map.json")
    named = {name: _content(values[name]) for name in _NAMED_TOKENS if values.get(name)}
    own = {
        name: _content(value)
        for name, value in values.items()
        if name.endswith("_token") and name not in _NAMED_TOKENS and isinstance(value, (str, dict)) and value
    }
    extra = values.get("extra_special_tokens")
    if isinstance(extra, dict):
        own |= {name: _content(value) for name, value in extra.items()}
    return named | own


def _content(entry: Any) -> str:
    return entry["content"] if isinstance(entry, dict) else str(entry)


def _id(item: tuple[str, Any]) -> int:
    return int(item[0])


def _added_token(entry: Mapping[str, Any]) -> tokenizers.AddedToken:
    flags = {name: entry.get(name, False) for name in ("single_word", "lstrip", "rstrip", "special")}
    return tokenizers.AddedToken(entry["content"], normalized=entry.get("normalized", not flags["special"]), **flags)


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        found = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise ModelError(f"{path} is not JSON: {error}") from error
    if not isinstance(found, dict):
        raise ModelError(f"{path} holds {type(found).__name__} where an object belongs")
    return found

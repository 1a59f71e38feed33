"""Fetches a repository of the Hugging Face hub into the hub's own cache: the only place that talks to a hub.

All of it is huggingface_hub: its cache (HF_HOME), its token (HF_TOKEN), its address (HF_ENDPOINT), its locks between
processes and its resuming of broken downloads. Ours are the progress, the look at the disk, and the sentences.
"""

import shutil
from functools import partial
from pathlib import Path
from typing import Any

from penstock.errors import ModelError
from penstock.sources.progress import Progress, Say, say_to_stderr, size
from penstock.sources.uri import Hub

TEXT_FILES = ["*.json", "*.jinja", "*.txt", "tokenizer.model"]
"""What the router reads."""
WEIGHT_FILES = ["*.safetensors"]
_IGNORED = ["*/*", "consolidated*"]
"""Repositories often hold the weights again, in other formats: in folders, or as Mistral's consolidated*."""


def fetch(hub: Hub, *, text_only: bool = False, say: Say = say_to_stderr, pause_s: float = 5.0) -> Path:
    """The folder of `hub` in the cache, fetched unless it is there. With `text_only` the weights are left out.

    A commit in the cache is taken without asking the hub; so is a branch or tag when the hub cannot be reached.
    Raises ModelError: no such repository or revision, no or a wrong token, no room, no network.
    """
    from huggingface_hub import snapshot_download

    wanted = [*TEXT_FILES, *([] if text_only else WEIGHT_FILES)]
    snapshot: Any = partial(snapshot_download, hub.repository, allow_patterns=wanted, ignore_patterns=_IGNORED)
    if (cached := _cached(snapshot, hub)) is not None and hub.is_pinned:
        return cached
    try:
        revision = _revision(hub)
        files = snapshot(revision=revision, dry_run=True, tqdm_class=_silent())
        missing_bytes = sum(file.file_size or 0 for file in files if file.will_download)
        if missing_bytes:
            _check_room(hub, missing_bytes)
            say(f"{hub}: fetching {size(missing_bytes)} of commit {files[0].commit_hash}")
        progress = Progress(str(hub), missing_bytes, say=say, pause_s=pause_s)
        return Path(snapshot(revision=revision, tqdm_class=progress.bar_class()))
    except Exception as error:  # they come from three libraries and share no base
        if cached is not None and _is_no_answer(error):
            say(f"{hub}: the hub does not answer, so this is what was fetched before")
            return cached
        raise ModelError(_sentence(hub, error)) from error


def _cached(snapshot: Any, hub: Hub) -> Path | None:
    """The folder if the cache has all that is wanted."""
    try:
        return Path(snapshot(revision=hub.revision, local_files_only=True))
    except OSError:
        return None


def _revision(hub: Hub) -> Any:
    """The revision with the commit it stands for now, so that every later call means the same one."""
    from huggingface_hub import HfApi

    return hub.revision if hub.is_pinned else HfApi().resolve_revision(hub.repository, revision=hub.revision)


def _silent() -> type:
    return Progress("", 0, say=lambda _: None).bar_class()


def _check_room(hub: Hub, missing_bytes: int) -> None:
    from huggingface_hub import constants

    cache = Path(constants.HF_HUB_CACHE)
    cache.mkdir(parents=True, exist_ok=True)
    free_bytes = shutil.disk_usage(cache).free
    if missing_bytes > free_bytes:
        raise ModelError(f"{hub} needs {size(missing_bytes)} more in {cache}, where {size(free_bytes)} are free")


def _is_no_answer(error: Exception) -> bool:
    """Whether `error` says nothing about the repository: no network, or a hub in trouble."""
    from huggingface_hub import errors

    if isinstance(error, errors.HfHubHTTPError):
        return error.response.status_code >= 500
    return not isinstance(error, ModelError)


def _sentence(hub: Hub, error: Exception) -> str:
    """What happened and what to do, in one line."""
    from huggingface_hub import constants, errors, get_token

    at, where = f"at {constants.ENDPOINT}", f"{hub.repository} at {constants.ENDPOINT}"
    has_token = get_token() is not None
    give_token = "set HF_TOKEN (in Kubernetes, spec.model.tokenSecret)"
    match error:
        case ModelError():
            return str(error)
        case errors.RevisionNotFoundError():
            return f"{where} has no revision {hub.revision!r}; name a branch, a tag or a commit of it after '@'"
        case errors.GatedRepoError():
            return f"{where} is gated: " + (
                "the token given has no access; ask for it on the repository's page with the token's account"
                if has_token
                else f"ask for access on its page, then {give_token}"
            )
        case errors.RepositoryNotFoundError():
            return f"there is no {where}, or it is private: check the name, or " + (
                "give a token that may read it" if has_token else give_token
            )
        case errors.HfHubHTTPError() if error.response.status_code in (401, 403):
            return f"the token in HF_TOKEN is refused {at} (HTTP {error.response.status_code}); make a new one"
        case errors.LocalEntryNotFoundError() | errors.OfflineModeIsEnabled():
            return f"{hub} is not whole in {constants.HF_HUB_CACHE}, and it cannot be fetched: {_reason(error)}"
        case OSError(errno=int()):
            return f"{hub} cannot be written to {constants.HF_HUB_CACHE}: {error.strerror}"
    return f"{where} cannot be fetched: {_reason(error)}; check the network, or name a local folder"


def _reason(error: BaseException) -> str:
    """The first line of the innermost cause."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".") if lines else type(error).__name__

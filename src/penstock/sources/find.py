"""The folder of a model on this machine, whatever its source; `penstock up` and a pod's containers look the same way.

A pod mounts its source under `uri.MOUNTS`; init containers fetch or copy what is not there yet, before anyone looks.
"""

from pathlib import Path

from penstock.errors import ModelError
from penstock.sources.uri import IMAGE_COPY, Claim, Hub, Image, parse_source


def find_folder(uri: str, *, text_only: bool = False) -> Path:
    """The folder for `uri`; a repository of the hub is fetched, unless it is in the cache already.

    With `text_only` the weights may be missing: the router reads none. Raises ModelError with what is missing.
    """
    if (folder := Path(uri).expanduser()).is_dir():  # also one that could be a repository's name
        return _checked(folder, uri)
    match parse_source(uri):
        case Hub() as hub:
            return _checked(_fetched(hub, uri, text_only), uri)
        case Claim() as claim:
            return _mounted(Path(claim.mount_path), claim.path, uri, f"the claim {claim.name}")
        case Image():
            return _mounted(Path(IMAGE_COPY), "", uri, "the image's model")
        case folder_source:
            return _checked(Path(folder_source.path).expanduser(), uri)


def _fetched(hub: Hub, uri: str, text_only: bool) -> Path:
    from penstock.sources.hub import fetch

    try:
        return fetch(hub, text_only=text_only)
    except ModelError as error:
        if "://" in uri:
            raise
        raise ModelError(f"{uri} is not a folder here, and {error}") from error


def _mounted(mount: Path, path: str, uri: str, what: str) -> Path:
    if not mount.is_dir():
        raise ModelError(f"{uri}: {what} is not mounted at {mount}, as it is in pods; outside of one, name a folder")
    return _checked(mount / path, uri)


def _checked(folder: Path, uri: str) -> Path:
    written = "" if uri == str(folder) else f" ({uri})"
    if not folder.is_dir():
        hint = "" if "://" in uri else "; name one, or a repository such as hf://Qwen/Qwen3-0.6B"
        raise ModelError(f"there is no folder {folder}{written}{hint}")
    if not (folder / "config.json").is_file():
        raise ModelError(f"{folder}{written} is no model folder: it has no config.json")
    return folder

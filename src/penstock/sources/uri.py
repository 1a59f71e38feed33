"""The ways to name a model, parsed. Knows no file system, no network and no Kubernetes.

file:///models/x, /models/x, ./x   a folder: of this machine, of the image, or of a volume that the pod mounts
pvc://claim/path                   a folder of a PersistentVolumeClaim
hf://org/name@revision, org/name   a repository of the Hugging Face hub; the revision is a branch, a tag or a commit
image://registry/name:tag?path=/x  a folder (/models if not given) of a container image
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import TypeAlias
from urllib.parse import unquote

from penstock.errors import ModelError

MOUNTS = "/mnt/penstock"
"""Pods mount below it what their model's source needs: `claims/CLAIM`, `image`, and `hub` (the hub's cache)."""
DEFAULT_REVISION = "main"
IMAGE_PATH = "/models"

_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_REVISION = re.compile(r"[A-Za-z0-9][\w./+-]*")
_CLAIM = re.compile(r"[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?")
_IMAGE = re.compile(r"[a-zA-Z0-9][\w./:@-]*[\w]")


@dataclass(frozen=True)
class Folder:
    """A folder as it is."""

    path: str


@dataclass(frozen=True)
class Claim:
    """A folder of a PersistentVolumeClaim; "" is its root."""

    name: str
    path: str

    @property
    def mount_path(self) -> str:
        """Where pods mount the whole claim."""
        return f"{MOUNTS}/claims/{self.name}"


@dataclass(frozen=True)
class Hub:
    """A repository of the Hugging Face hub."""

    repository: str
    revision: str = DEFAULT_REVISION

    @property
    def is_pinned(self) -> bool:
        """Whether the revision is a commit, which never changes."""
        return re.fullmatch(r"[0-9a-f]{40}", self.revision) is not None

    def __str__(self) -> str:
        return f"hf://{self.repository}@{self.revision}"


@dataclass(frozen=True)
class Image:
    """A folder of a container image."""

    reference: str
    path: str = IMAGE_PATH


Source: TypeAlias = Folder | Claim | Hub | Image

HUB_HOME = f"{MOUNTS}/hub"
"""HF_HOME of a pod: the hub's cache and what its downloader keeps beside it."""
IMAGE_COPY = f"{MOUNTS}/image"
"""Where an init container copies the model of an image to."""


def parse_source(uri: str) -> Source:
    """The source that `uri` names. Raises ModelError with an example of what the scheme takes."""
    scheme, separator, rest = uri.partition("://")
    if not separator:
        return Hub(uri) if _REPOSITORY.fullmatch(uri) else Folder(uri)
    if scheme not in _PARSERS:
        raise ModelError(f"{uri} is of no known source; there are {', '.join(f'{known}://' for known in _PARSERS)}")
    return _PARSERS[scheme](uri, rest)


def _folder(uri: str, rest: str) -> Folder:
    path = unquote(rest)
    if not path.startswith("/"):
        raise ModelError(f"{uri} names no folder: write three slashes, for example file:///models/qwen3")
    _refuse_dots(uri, path)
    return Folder(path)


def _claim(uri: str, rest: str) -> Claim:
    name, _, path = rest.partition("/")
    if not _CLAIM.fullmatch(name):
        raise ModelError(f"{uri} names no PersistentVolumeClaim; write for example pvc://models/qwen3")
    _refuse_dots(uri, path)
    return Claim(name, unquote(path).strip("/"))


def _hub(uri: str, rest: str) -> Hub:
    repository, at, revision = rest.partition("@")
    if not _REPOSITORY.fullmatch(repository):
        raise ModelError(f"{uri} names no repository; write for example hf://Qwen/Qwen3-0.6B@main")
    if at and not _REVISION.fullmatch(revision):
        raise ModelError(f"{uri} names no revision after '@'; write a branch, a tag or a commit")
    return Hub(repository, revision or DEFAULT_REVISION)


def _image(uri: str, rest: str) -> Image:
    reference, question, query = rest.partition("?")
    if not _IMAGE.fullmatch(reference):
        raise ModelError(f"{uri} names no image; write for example image://registry.example.com/qwen3:1.0")
    key, _, path = query.partition("=")
    if question and (key != "path" or not path.startswith("/")):
        raise ModelError(f"{uri}: after '?' only the folder in the image can be said, for example ?path=/weights")
    _refuse_dots(uri, path)
    return Image(reference, path or IMAGE_PATH)


def _refuse_dots(uri: str, path: str) -> None:
    if ".." in PurePosixPath(unquote(path)).parts:
        raise ModelError(f"{uri} must not contain '..'")


_PARSERS: dict[str, Callable[[str, str], Source]] = {"file": _folder, "pvc": _claim, "hf": _hub, "image": _image}

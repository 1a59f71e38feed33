"""What may be written for a model, what it means, and the sentence for what may not."""

import pytest

from penstock.errors import ModelError
from penstock.sources.uri import Claim, Folder, Hub, Image, Source, parse_source


@pytest.mark.parametrize(
    ("uri", "source"),
    [
        ("file:///models/qwen3", Folder("/models/qwen3")),
        ("file:///models/with%20blank", Folder("/models/with blank")),
        ("/models/qwen3", Folder("/models/qwen3")),
        ("./qwen3", Folder("./qwen3")),
        ("a/b/c", Folder("a/b/c")),
        ("pvc://models/qwen3/v1/", Claim("models", "qwen3/v1")),
        ("pvc://models", Claim("models", "")),
        ("Qwen/Qwen3-0.6B", Hub("Qwen/Qwen3-0.6B", "main")),
        ("hf://Qwen/Qwen3-0.6B", Hub("Qwen/Qwen3-0.6B", "main")),
        ("hf://Qwen/Qwen3-0.6B@v1.0", Hub("Qwen/Qwen3-0.6B", "v1.0")),
        ("hf://Qwen/Qwen3-0.6B@refs/pr/4", Hub("Qwen/Qwen3-0.6B", "refs/pr/4")),
        ("image://ghcr.io/org/qwen3:1.0", Image("ghcr.io/org/qwen3:1.0", "/models")),
        ("image://ghcr.io/org/qwen3@sha256:ab12?path=/weights", Image("ghcr.io/org/qwen3@sha256:ab12", "/weights")),
    ],
)
def test_what_a_uri_means(uri: str, source: Source) -> None:
    assert parse_source(uri) == source


@pytest.mark.parametrize(
    ("uri", "sentence"),
    [
        ("file://models", "three slashes"),
        ("file:///models/../etc", r"must not contain '\.\.'"),
        ("pvc://models/%2e%2e/other", r"must not contain '\.\.'"),
        ("pvc://Models/x", "names no PersistentVolumeClaim"),
        ("pvc:///x", "names no PersistentVolumeClaim"),
        ("hf://Qwen", "names no repository"),
        ("hf://Qwen/../x", "names no repository"),
        ("hf://Qwen/Qwen3@", "names no revision"),
        ("image://", "names no image"),
        ("image://a:1?folder=/x", "only the folder in the image"),
        ("image://a:1?path=x", "only the folder in the image"),
        ("s3://bucket/x", "no known source; there are file://, pvc://, hf://, image://"),
    ],
)
def test_what_may_not_be_written_is_refused_with_an_example(uri: str, sentence: str) -> None:
    with pytest.raises(ModelError, match=sentence):
        parse_source(uri)


def test_only_a_commit_is_pinned() -> None:
    assert Hub("a/b", "0123456789abcdef0123456789abcdef01234567").is_pinned
    assert not Hub("a/b", "main").is_pinned

"""The folder of a model, and a clear sentence when there is none."""

from pathlib import Path

import pytest

from penstock.errors import ModelError
from penstock.sources import find
from penstock.sources.find import find_folder
from penstock.sources.progress import progress_line


def test_a_folder_is_found_by_path_and_by_uri(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    assert find_folder(str(tmp_path)) == find_folder(f"file://{tmp_path}") == tmp_path


@pytest.mark.parametrize(
    ("uri", "sentence"),
    [
        ("file:///nowhere", r"there is no folder /nowhere \(file:///nowhere\)$"),
        ("./nowhere", r"there is no folder nowhere \(\./nowhere\); name one, or a repository such as hf://"),
        ("pvc://models/x", "the claim models is not mounted at /mnt/penstock/claims/models, as it is in pods"),
        ("image://models:1", "the image's model is not mounted at /mnt/penstock/image"),
    ],
)
def test_a_missing_folder_is_named_with_what_was_asked_for(uri: str, sentence: str) -> None:
    with pytest.raises(ModelError, match=sentence):
        find_folder(uri)


def test_a_claim_and_an_image_are_where_the_pod_mounts_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "image").mkdir()
    (tmp_path / "image" / "config.json").write_text("{}")
    monkeypatch.setattr(find, "IMAGE_COPY", f"{tmp_path}/image")
    assert find_folder("image://models:1") == tmp_path / "image"
    monkeypatch.setattr(find.Claim, "mount_path", property(lambda claim: f"{tmp_path}/{claim.name}"))
    assert find_folder("pvc://image") == tmp_path / "image"
    with pytest.raises(ModelError, match=r"there is no folder .*/image/v2 \(pvc://image/v2\)$"):
        find_folder("pvc://image/v2")


def test_a_line_of_progress_says_how_far_how_fast_and_how_long() -> None:
    line = progress_line("hf://a/b@main", 3_200_000_000, 16_000_000_000, 32.0)
    assert line == "hf://a/b@main: 3.2 GB of 16 GB (20 %), 100 MB/s, 2 min left"

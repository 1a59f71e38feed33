"""Which folder a user means, and a clear sentence when there is none."""

import os
from pathlib import Path

import pytest

from penstock.demo import MODEL_FOLDER
from penstock.errors import ConfigError
from penstock.local.model import config_modules, find_model, model_name


def test_folder_with_a_config_is_taken_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    assert find_model(str(tmp_path)) == str(tmp_path)


def test_no_name_means_the_demonstration_model() -> None:
    assert (MODEL_FOLDER / "tokenizer.json").is_file()
    if (MODEL_FOLDER / "config.json").is_file():
        assert find_model("") == str(MODEL_FOLDER)
    else:
        with pytest.raises(ConfigError, match=r"no config\.json"):
            find_model("")


def test_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"is no model folder: it has no config\.json"):
        find_model(str(tmp_path))


@pytest.mark.parametrize("name", ["/nowhere/model", "./model", "model", "a/b/c"])
def test_name_that_can_only_be_a_missing_folder_is_not_looked_up_elsewhere(name: str) -> None:
    with pytest.raises(ConfigError, match="there is no folder"):
        find_model(name)


def test_hugging_face_id_without_network_is_one_clear_sentence(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(
        ConfigError, match=r"penstock-tests/none is not a folder here, and .* cannot be fetched"
    ) as refused:
        find_model("penstock-tests/none")
    assert "\n" not in str(refused.value)


def test_model_is_called_by_its_folder_its_repository_its_image_or_as_the_demonstration(tmp_path: Path) -> None:
    assert model_name(f"{tmp_path}/") == tmp_path.name
    assert model_name("Qwen/Qwen3-0.6B") == "Qwen/Qwen3-0.6B"
    assert model_name("hf://Qwen/Qwen3-0.6B@main") == "Qwen/Qwen3-0.6B"
    assert model_name("file:///models/qwen3") == model_name("pvc://models/qwen3") == "qwen3"
    assert model_name("pvc://qwen3") == model_name("image://ghcr.io/org/qwen3:1.0?path=/weights") == "qwen3"
    (tmp_path / "latest").symlink_to(tmp_path)
    assert model_name(f"{tmp_path}/latest/") == "latest"


def test_the_demonstration_model_has_one_name_whatever_way_leads_to_it(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(MODEL_FOLDER)
    for way in ("", str(MODEL_FOLDER), os.path.relpath(MODEL_FOLDER), str(tmp_path / "link")):
        assert model_name(way) == "penstock-demo"


def test_module_that_reads_the_config_follows_its_type_and_broken_ones_are_left_to_the_engine(tmp_path: Path) -> None:
    config = tmp_path / "config.json"
    config.write_text('{"model_type": "qwen3"}')
    assert config_modules(str(tmp_path)) == ("transformers.models.qwen3.configuration_qwen3",)
    config.write_text("[")
    assert config_modules(str(tmp_path)) == ()

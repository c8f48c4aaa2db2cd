from __future__ import annotations

from pathlib import Path

import pytest

from hssl_nnunet.errors import HSSLError
from hssl_nnunet.paths import ENV_PREPROCESSED, ENV_RAW, dataset_name


@pytest.mark.parametrize("text", [4, "4", "004", "Dataset004_Toy"])
def test_a_dataset_is_found_by_id_and_name(nnunet_folders: dict[str, Path], text: str | int):
    (nnunet_folders[ENV_PREPROCESSED] / "Dataset004_Toy").mkdir()
    assert dataset_name(text) == "Dataset004_Toy"


@pytest.mark.parametrize("text", ["²", "4.0", "-4", ""])
def test_what_is_no_id(nnunet_folders: dict[str, Path], text: str):
    with pytest.raises(HSSLError, match=f"'{text}' is neither a dataset id"):
        dataset_name(text)


@pytest.mark.parametrize(
    "folder, name",
    [("Dataset006", "Dataset006_Name"), ("Dataset6_Lung", "Dataset006_Lung"), ("Dataset0006_Lung", "Dataset006_Lung")],
)
def test_a_folder_whose_name_is_not_nnunets_is_to_be_renamed(nnunet_folders: dict[str, Path], folder: str, name: str):
    wrong = nnunet_folders[ENV_RAW] / folder
    wrong.mkdir()
    with pytest.raises(HSSLError, match=f"'6' was not found.*Rename {wrong} to {name}"):
        dataset_name("6")
    with pytest.raises(HSSLError, match="'60' was not found.*convert_msd"):
        dataset_name(60)


def test_another_name_of_an_id_is_nothing_to_rename(nnunet_folders: dict[str, Path]):
    (nnunet_folders[ENV_RAW] / "Dataset006_Lung").mkdir()
    with pytest.raises(HSSLError, match="'Dataset006_Heart' was not found.*Run `do this`") as raised:
        dataset_name("Dataset006_Heart", "Run `do this`.")
    assert "Rename" not in str(raised.value)


def test_a_variable_that_is_not_set_may_be_why_nothing_is_found(
    nnunet_folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.delenv(ENV_RAW)
    with pytest.raises(
        HSSLError, match=r"'4' was not found in \S+, \S+. nnUNet_raw is not set \(see `hssl doctor`\). Run"
    ):
        dataset_name(4)

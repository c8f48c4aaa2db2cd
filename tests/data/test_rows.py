from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from hssl_nnunet.corpus.manifest import ImageRow, write_manifest
from hssl_nnunet.data.rows import read_rows
from hssl_nnunet.errors import HSSLError
from hssl_nnunet.plan_schema import DomainPlan


def domain(name: str) -> DomainPlan:
    return DomainPlan(
        dataset_name=name,
        plans_name="nnUNetPlans",
        data_identifier="nnUNetPlans_3d_fullres",
        modality="CT",
        groups=("toy",),
        num_images=1,
        spacing=(1.0, 1.0, 1.0),
        patch_size=(8, 8, 8),
        architecture={},
    )


NAMES = ("Dataset001_Toy", "Dataset002_Other")
TEMPLATE = ImageRow(0, NAMES[0], "", 0, "someone", True, "-", "-", (1.0, 1.0, 1.0), (1, 1, 1), ("toy",))
ROWS = [replace(TEMPLATE, domain=i % 2, dataset_name=NAMES[i % 2], case=f"case_{i}") for i in range(4)]


def test_rows_belong_to_the_domains_of_the_plans(tmp_path: Path) -> None:
    plans = tmp_path / "Dataset900_Toys" / "nnUNetPlans.json"
    write_manifest(plans.with_name("manifest.csv"), ROWS)
    assert read_rows([domain(name) for name in NAMES], plans) == ROWS


@pytest.mark.parametrize("names", [NAMES[:1], NAMES[1:], NAMES[::-1]])
def test_domains_that_were_taken_out_or_moved_are_refused(names: tuple[str, ...], tmp_path: Path) -> None:
    """Else a domain would train in the geometry, and under the name, of another."""
    plans = tmp_path / "Dataset900_Toys" / "nnUNetPlans.json"
    write_manifest(plans.with_name("manifest.csv"), ROWS)
    with pytest.raises(HSSLError, match=r"has Dataset00._.* as domain [01].*hssl corpus .*-o 900 -n Toys --overwrite"):
        read_rows([domain(name) for name in names], plans)

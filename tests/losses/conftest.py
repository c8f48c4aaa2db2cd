import pytest
import torch

from hssl_nnunet.plan_values import LossPlan


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@pytest.fixture
def loss_plan():
    return LossPlan(
        image=0.5,
        task=0.4,
        group=0.3,
        reconstruction=1.2,
        voxel=0.7,
        voxel_tau=0.2,
        tau=0.3,
        pooling="mean_max_std",
        negatives="all",
        task_loss="classification",
        group_loss="classification",
        reconstruction_target="masked",
        mask_ratio=0.6,
        mask_block_voxel=8,
    )

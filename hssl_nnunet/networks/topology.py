"""What a plan says about its network: family, stages, strides, kernels; and the stock nnU-Net network it builds."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans
from torch import nn

from hssl_nnunet.errors import HSSLError

FAMILIES = ("PlainConvUNet", "ResidualEncoderUNet")
# Classes by whose names nnU-Net may import and call what a plan says: one level deep, for an attribute of a module may
# be any other module. A plan also comes out of a stranger's weights file or checkpoint.
_PART = re.compile(
    r"torch\.nn(\.modules\.\w+)?\.[A-Z]\w*|dynamic_network_architectures\.(architectures|building_blocks)\.\w+\.[A-Z]\w*"
)


@dataclass(frozen=True, slots=True)
class Topology:
    """The topology of one nnU-Net network, level 0 = full resolution.

    Attributes:
        family: network class, one of `FAMILIES`.
        dim: 2 or 3 spatial axes.
        strides: per level, the stride of each axis on the way from the level above; level 0 has stride 1.
        kernel_sizes: per level, the kernel of each axis.
        features: per level, the width.
        architecture_json: the plan's `architecture` entry, as JSON so that a topology is hashable.
    """

    family: str
    dim: Literal[2, 3]
    strides: tuple[tuple[int, ...], ...]
    kernel_sizes: tuple[tuple[int, ...], ...]
    features: tuple[int, ...]
    architecture_json: str

    @classmethod
    def from_architecture(cls, architecture: dict[str, Any], source: str = "the plans") -> Topology:
        """Read `plans["configurations"][configuration]["architecture"]`.

        Raises:
            HSSLError: the network class is not a U-Net that shared weights are defined for, or a part of it is no class
                of torch's or dynamic_network_architectures'; the entry lacks what we read, has it in another form, or
                for another number of stages.
        """
        try:
            return cls._read(architecture, source)
        except (LookupError, TypeError, ValueError) as error:
            raise HSSLError(
                f"The `architecture` of {source} does not describe a network as nnU-Net does: {error!r}. Correct it, "
                "or plan the dataset again."
            ) from None

    @classmethod
    def _read(cls, architecture: dict[str, Any], source: str) -> Topology:
        family = str(architecture["network_class_name"]).rsplit(".", 1)[-1]
        if family not in FAMILIES:
            raise HSSLError(
                f"{source} plan a {family}; pretraining knows {', '.join(FAMILIES)}. Use one of their planners."
            )
        kwargs = architecture["arch_kwargs"]
        parts = [kwargs.get(name) for name in architecture.get("_kw_requires_import", ())]
        _check_parts([architecture["network_class_name"], *parts], source)
        dim = 3 if str(kwargs["conv_op"]).endswith("3d") else 2
        n_stages = int(kwargs["n_stages"])
        per_stage = "n_conv_per_stage" if family == "PlainConvUNet" else "n_blocks_per_stage"
        for key in ("features_per_stage", "kernel_sizes", "strides", per_stage):
            _check_length(kwargs, key, n_stages, source)
        _check_length(kwargs, "n_conv_per_stage_decoder", n_stages - 1, source)
        return cls(
            family=family,
            dim=cast(Literal[2, 3], dim),
            strides=_per_level_and_axis(kwargs["strides"], n_stages, dim),
            kernel_sizes=_per_level_and_axis(kwargs["kernel_sizes"], n_stages, dim),
            features=tuple(map(int, kwargs["features_per_stage"])),
            architecture_json=json.dumps(architecture, sort_keys=True),
        )

    @property
    def n_stages(self) -> int:
        """Number of resolution levels."""
        return len(self.strides)

    @property
    def total_stride(self) -> tuple[int, ...]:
        """Voxels of level 0 per voxel of the bottleneck, for each axis."""
        return tuple(math.prod(level[axis] for level in self.strides) for axis in range(self.dim))

    def build(
        self,
        num_input_channels: int = 1,
        num_output_channels: int = 1,
        deep_supervision: bool = False,
        device: str | torch.device = "cpu",
    ) -> nn.Module:
        """Build the stock nnU-Net network, initialised as nnU-Net does.

        Args:
            num_input_channels: channels of the image.
            num_output_channels: channels of the segmentation layers.
            deep_supervision: whether every decoder level answers, or level 0 only.
            device: `"meta"` gives a skeleton without storage, for `torch.func.functional_call`.
        """
        architecture = json.loads(self.architecture_json)
        on_meta = torch.device(device).type == "meta"
        with torch.device(device):
            network = get_network_from_plans(
                architecture["network_class_name"],
                architecture["arch_kwargs"],
                architecture["_kw_requires_import"],
                num_input_channels,
                num_output_channels,
                allow_init=not on_meta,
                deep_supervision=deep_supervision,
            )
        return cast(nn.Module, network)


def _check_parts(names: Sequence[Any], source: str) -> None:
    for name in names:
        if name is not None and not _PART.fullmatch(str(name)):
            raise HSSLError(
                f"{source} name {name!r} as a part of the network, which nnU-Net would import and call. Only classes "
                "of torch.nn and dynamic_network_architectures are known. Do not use a file that you do not trust."
            )


def _check_length(kwargs: dict[str, Any], key: str, expected: int, source: str) -> None:
    value = kwargs[key]
    if not isinstance(value, int) and len(value) != expected:  # one number stands for all
        raise HSSLError(
            f"`{key}` in the `architecture` of {source} has {len(value)} entries, expected {expected} for `n_stages` "
            f"{kwargs['n_stages']}. Correct it, or plan the dataset again."
        )


def _per_level_and_axis(value: Any, n_stages: int, dim: int) -> tuple[tuple[int, ...], ...]:
    levels = [value] * n_stages if isinstance(value, int) else value
    found = tuple((level,) * dim if isinstance(level, int) else tuple(map(int, level)) for level in levels)
    if wrong := [level for level in found if len(level) != dim]:
        raise ValueError(f"{wrong[0]} is not of {dim} axes")
    return found

"""One superset of parameters for all domains, indexed by resolution level and role."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch
from torch import Tensor, nn

from hssl_nnunet.errors import HSSLError
from hssl_nnunet.networks.projection import is_segmentation, role_of
from hssl_nnunet.networks.topology import Topology

LEAKY_SLOPE = 1e-2  # nnU-Net's LeakyReLU, for which its networks are initialised


class SharedWeights(nn.Module):
    """The parameters that every domain's network is projected from.

    Kernels are held at the largest form that any domain has, always with three spatial axes (a 2D kernel has depth 1);
    the stem has one channel. Parameters are initialised as nnU-Net initialises a network of that largest form, which
    the projection preserves for convolutions: the sum of three taps of variance 2/(27 I) has the variance 2/(9 I) of
    the thinner kernel. (The mean over two taps of a transposed convolution starts at half of nnU-Net's deviation.)
    """

    def __init__(self, topologies: Sequence[Topology]):
        """Build the union of `topologies`.

        Raises:
            HSSLError: the topologies mix network families, or plan another width at the same level.
        """
        super().__init__()
        self.family = _one_family(topologies)
        self._roles = _union_of_shapes(topologies)
        ends = {role for role in self._roles if _ends_block(role, self._roles)}
        self.parameters_by_role = nn.ParameterDict({_key(r): _initialised(r, s, ends) for r, s in self._roles.items()})

    def tensors(self) -> dict[str, Tensor]:
        """Role -> parameter."""
        return {role: self.parameters_by_role[_key(role)] for role in self._roles}

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Role -> shape."""
        return dict(self._roles)


def _key(role: str) -> str:
    return role.replace(".", "/")  # a module's parameter names may hold no dot


def _one_family(topologies: Sequence[Topology]) -> str:
    families = sorted({t.family for t in topologies})
    if len(families) != 1:
        raise HSSLError(
            f"The domains plan {' and '.join(families)}, whose weights cannot be shared. "
            "Plan all of them with one preset: `hssl plan_and_preprocess -d ... --preset NAME`."
        )
    return families[0]


def _union_of_shapes(topologies: Sequence[Topology]) -> dict[str, tuple[int, ...]]:
    union: dict[str, tuple[int, ...]] = {}
    for topology in topologies:
        for name, parameter in topology.build(device="meta").named_parameters():
            role = role_of(name, topology.n_stages)
            if is_segmentation(role) and not role.startswith("decoder.0."):
                continue  # pretraining reconstructs at full resolution only
            shape = _as_stored(tuple(parameter.shape))
            known = union.get(role, shape)
            if known[:2] != shape[:2]:
                raise HSSLError(
                    f"The domains plan different widths at {role}: {known[:2]} and {shape[:2]}. "
                    "Plan all of them with one preset: `hssl plan_and_preprocess -d ... --preset NAME`."
                )
            union[role] = known[:2] + tuple(map(max, zip(known[2:], shape[2:], strict=True)))
    return union


def _as_stored(shape: tuple[int, ...]) -> tuple[int, ...]:
    return shape if len(shape) != 4 else (*shape[:2], 1, *shape[2:])


def _ends_block(role: str, roles: Collection[str]) -> bool:
    """Whether a role is of the last norm of a residual block, which has two convolutions, or three as a bottleneck."""
    return ".conv3.norm." in role or (".conv2.norm." in role and role.replace(".conv2.", ".conv3.") not in roles)


def _initialised(role: str, shape: tuple[int, ...], ends: Collection[str]) -> nn.Parameter:
    """nnU-Net's start: He normal kernels, zero biases, unit norms; zero for a residual block's last norm."""
    if len(shape) > 1:
        return nn.Parameter(nn.init.kaiming_normal_(torch.empty(shape), a=LEAKY_SLOPE))
    one = role.endswith("norm.weight") and role not in ends  # a residual block starts as the identity
    return nn.Parameter(torch.ones(shape) if one else torch.zeros(shape))

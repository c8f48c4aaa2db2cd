"""From shared weights to the parameters of any nnU-Net network: the heart of the method.

A parameter of a network is matched to a *role*, which names what it does at which resolution level, not where it
stands in a module list (nnU-Net numbers its decoder from the bottleneck, so that the same index is another resolution
in a deeper network). A matched tensor is then brought to the network's kernel by a linear map:

* convolution, thinner kernel along an axis: the outer taps are added to the outermost tap that remains; for 3 -> 1 the
  sum over the axis. It is exactly the response of the full kernel to an input that is constant along the axis.
* convolution, thicker kernel: the centre taps, zero outside.
* transposed convolution (kernel = stride): the mean over the taps that fall together; for stride 1 over the axis.
* 2D network: as a 3D kernel of depth 1, the depth axis dropped.
* stem of C channels: the one-channel stem repeated and divided by C. Imported weights may have a stem of more channels:
  an equal number is copied, else they are added up first, which is the response to one image in all of them.

Because the map is linear, pretraining back-propagates through it into the shared weights.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from hssl_nnunet.networks.topology import Topology

Status = Literal["exact", "adapted", "fresh"]


@dataclass(frozen=True, slots=True)
class Entry:
    """How one parameter of a network is obtained.

    Attributes:
        name: the parameter's name in the network.
        role: its role, for example `encoder.0.0.convs.0.conv.weight` or `decoder.2.transpconv.weight`.
        shape: its shape in the network.
        status: `exact` (copied), `adapted` (brought to this kernel or channel count) or `fresh` (left as initialised).
        how: the adaptation, or why nothing could be transferred.
    """

    name: str
    role: str
    shape: tuple[int, ...]
    status: Status
    how: str = ""

    @property
    def part(self) -> Literal["encoder", "decoder"]:
        """The half of the U-Net that the parameter belongs to; the stem counts as encoder."""
        return "decoder" if self.role.startswith("decoder.") else "encoder"


_ENCODER = re.compile(r"encoder\.stages\.(\d+)\.(.+)")
_DECODER = re.compile(r"decoder\.(stages|transpconvs|seg_layers)\.(\d+)\.(.+)")
_DECODER_WORDS = {"stages": "", "transpconvs": "transpconv.", "seg_layers": "segmentation."}
_STEM = re.compile(r"encoder\.(stem|0\.0)\.convs\.0\.conv\.weight")
_SKIP_CONV = re.compile(r"\.skip\.\d+\.")


def role_of(name: str, n_stages: int) -> str:
    """Role of a parameter of a stock U-Net with `n_stages` levels.

    The index inside a residual block's skip path depends on whether an average pooling stands before the convolution,
    hence it is left out of the role.
    """
    if match := _ENCODER.fullmatch(name):
        return _SKIP_CONV.sub(".skip.", f"encoder.{match[1]}.{match[2]}")
    if match := _DECODER.fullmatch(name):
        level = n_stages - 2 - int(match[2])
        return f"decoder.{level}.{_DECODER_WORDS[match[1]]}{match[3]}"
    return name


def is_segmentation(role: str) -> bool:
    """Whether the role is that of a segmentation layer, which is never transferred."""
    return ".segmentation." in role


def is_stem(role: str) -> bool:
    """Whether the role is that of the kernel that reads the image's channels."""
    return _STEM.fullmatch(role) is not None


def is_transposed(role: str) -> bool:
    """Whether the role is that of a transposed convolution's kernel."""
    return role.endswith("transpconv.weight")


def plan_projection(
    shapes: Mapping[str, Sequence[int]], network: nn.Module, topology: Topology, *, segmentation: bool = False
) -> list[Entry]:
    """Decide for every parameter of `network` how it is obtained from shared tensors of these shapes.

    Args:
        shapes: role -> shape of the shared tensor; kernels in 3D.
        network: a stock network of this topology (a skeleton on the meta device will do).
        topology: the network's topology.
        segmentation: whether level 0's segmentation layer takes part: it reconstructs the image in pretraining.

    Returns:
        One entry for each of `network.named_parameters()`, in that order.
    """
    entries = []
    for name, parameter in network.named_parameters():
        role, shape = role_of(name, topology.n_stages), tuple(parameter.shape)
        if is_segmentation(role) and not segmentation:
            entries.append(Entry(name, role, shape, "fresh", "segmentation layers are never transferred"))
        else:
            entries.append(Entry(name, role, shape, *_decide(role, shape, shapes.get(role))))
    return entries


def plan_start(shapes: Mapping[str, Sequence[int]], wanted: Mapping[str, tuple[int, ...]]) -> list[Entry]:
    """Decide for the shared tensors of some domains how each is obtained from those of others.

    Args:
        shapes: role -> shape of the tensors that are there; kernels in 3D.
        wanted: role -> shape of those to come; kernels in 3D.

    Returns:
        One entry for each role of `wanted`, in that order, called as its role.
    """
    return [Entry(role, role, shape, *_decide(role, shape, shapes.get(role))) for role, shape in wanted.items()]


def _decide(role: str, shape: tuple[int, ...], shared: Sequence[int] | None) -> tuple[Status, str]:
    if shared is None:
        return "fresh", "not pretrained: no domain has this level or block, or no term of the loss decodes"
    shared = tuple(shared)
    if shape == shared:
        return "exact", ""
    if len(shape) < 3:  # a bias or a norm: one number per feature
        return "fresh", f"width {shape[0]}, pretrained with {shared[0]}"
    steps = []
    if shape[:2] != shared[:2]:
        if shape[0] != shared[0] or not is_stem(role):
            source, target = (0, 1) if is_transposed(role) else (1, 0)
            own, theirs = (f"{s[source]} -> {s[target]}" for s in (shape, shared))
            return "fresh", f"width {own}, pretrained with {theirs}"
        one = "one-channel stem" if shared[1] == 1 else f"stem's {shared[1]} channels added up,"
        steps.append(f"{one} repeated {shape[1]} times and divided by {shape[1]}")
    kernel, full = _as_3d(shape[2:]), shared[2:]
    if kernel != full:
        rule = _transposed_rule(kernel, full) if is_transposed(role) else _convolution_rule(kernel, full)
        steps.append(f"kernel {'x'.join(map(str, full))} -> {'x'.join(map(str, shape[2:]))}, {rule}")
    elif len(shape) == 4:
        steps.append("depth axis of length 1 dropped")
    return "adapted", "; ".join(steps)


def _convolution_rule(kernel: Sequence[int], full: Sequence[int]) -> str:
    thinner = any(k < f for k, f in zip(kernel, full, strict=True))
    thicker = any(k > f for k, f in zip(kernel, full, strict=True))
    return " and ".join(["sum over the axis"] * thinner + ["centre taps"] * thicker)


def _transposed_rule(kernel: Sequence[int], full: Sequence[int]) -> str:
    return "mean over the axis" if any(k < f for k, f in zip(kernel, full, strict=True)) else "taps repeated"


def project(tensors: Mapping[str, Tensor], entries: Sequence[Entry]) -> dict[str, Tensor]:
    """Compute the transferred parameters of a network, differentiably.

    Args:
        tensors: role -> shared tensor, kernels `(O, I, 3, 3, 3)` or as large as the corpus has them.
        entries: what `plan_projection` decided.

    Returns:
        Parameter name -> tensor, for every entry that is exact or adapted.
    """
    return {
        entry.name: tensors[entry.role] if entry.status == "exact" else adapt(tensors[entry.role], entry)
        for entry in entries
        if entry.status != "fresh"
    }


def adapt(shared: Tensor, entry: Entry) -> Tensor:
    """Bring one shared kernel to the kernel size and channel count of an entry.

    Args:
        shared: `(O, I, K, K, K)`, for a transposed convolution `(I, O, K, K, K)`.
        entry: an adapted entry with a kernel of two or three axes.

    Returns:
        A tensor of `entry.shape`, channels last where `shared` is.
    """
    along_axis = _pool_taps if is_transposed(entry.role) else _fold_taps
    result = shared
    for axis, size in enumerate(_as_3d(entry.shape[2:]), start=2):
        if result.shape[axis] != size:
            result = along_axis(result, axis, size)
    if result.shape[1] != entry.shape[1]:
        result = result.sum(1, keepdim=True).expand(-1, entry.shape[1], -1, -1, -1) / entry.shape[1]
    result = result.reshape(entry.shape)
    if not shared.is_contiguous(memory_format=torch.channels_last_3d):
        return result
    return result.contiguous(memory_format=torch.channels_last_3d if result.ndim == 5 else torch.channels_last)


def _as_3d(kernel: Sequence[int]) -> tuple[int, ...]:
    return (1,) * (3 - len(kernel)) + tuple(kernel)


def _fold_taps(kernel: Tensor, axis: int, size: int) -> Tensor:
    """Centre `size` taps of an odd kernel along `axis`; taps outside are added to the outermost that remain."""
    length = kernel.shape[axis]
    if size > length:
        pad = (size - length) // 2
        before_after = [0, 0] * (kernel.ndim - 1 - axis) + [pad, size - length - pad]
        return functional.pad(kernel, before_after)
    if size == 1:
        return kernel.sum(axis, keepdim=True)
    target = (torch.arange(length, device=kernel.device) - (length - size) // 2).clamp(0, size - 1)
    shape = (*kernel.shape[:axis], size, *kernel.shape[axis + 1 :])
    return kernel.new_zeros(shape).index_add(axis, target, kernel)


def _pool_taps(kernel: Tensor, axis: int, size: int) -> Tensor:
    """Resample the taps of a transposed convolution along `axis`: mean where there are fewer, repeated where more."""
    if size == 1:
        return kernel.mean(axis, keepdim=True)
    flat = kernel.movedim(axis, -1)
    return (
        functional.adaptive_avg_pool1d(flat.flatten(0, -2)[:, None], size)
        .reshape(*flat.shape[:-1], size)
        .movedim(-1, axis)
    )

"""The network of one domain: nnU-Net's own, without parameters of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call

from hssl_nnunet.networks.projection import plan_projection
from hssl_nnunet.networks.topology import Topology


class PyramidDecoder(nn.Module):
    """nnU-Net's decoder, which gives the features of all its levels beside its output.

    Its parameters are called as in the whole network.
    """

    def __init__(self, decoder: nn.Module):
        super().__init__()
        self.decoder = decoder

    def forward(self, skips: Sequence[Tensor], num_output: int) -> tuple[list[Tensor], Tensor | None]:
        """Decode.

        Args:
            skips: the encoder's features, level 0 first.
            num_output: images of the batch, the first ones, whose output is wanted; 0 = none.

        Returns:
            The features, level 0 first, and the output of level 0.
        """
        ups, stages, outputs = (self.decoder.get_submodule(n) for n in ("transpconvs", "stages", "seg_layers"))
        levels = [skips[-1]]
        for up, stage, skip in zip(ups, stages, reversed(skips[:-1]), strict=True):  # type: ignore[call-overload]
            levels.append(stage(torch.cat([up(levels[-1]), skip], dim=1)))
        output = outputs[-1](levels[-1][:num_output]) if num_output else None  # type: ignore[index]
        return levels[:0:-1], output


class DomainNetwork:
    """A stock nnU-Net network without storage, run with tensors projected from the shared weights.

    Not a module: its parameters are empty shells on the meta device, which no optimiser or checkpoint may see.
    nnU-Net registers some modules twice; `functional_call` finds them by identity, and would leave real tensors in the
    shells if it tied them by name as well, hence `tie_weights=False`.
    """

    def __init__(
        self,
        topology: Topology,
        shapes: Mapping[str, Sequence[int]],
        *,
        decoded_views: int,
        reconstructs: bool,
        compiled: bool,
    ):
        """Build the empty network.

        Args:
            topology: that of the domain's plan.
            shapes: shapes of the shared weights.
            decoded_views: how many of the views are decoded, the first ones.
            reconstructs: whether the first of them is reconstructed.
            compiled: whether it is compiled.
        """
        self.skeleton = topology.build(device="meta")
        self.encoder = self.skeleton.get_submodule("encoder")
        self.decoder = PyramidDecoder(self.skeleton.get_submodule("decoder"))
        entries = plan_projection(shapes, self.skeleton, topology, segmentation=reconstructs)
        self.entries = [e for e in entries if decoded_views or e.part == "encoder"]
        self.decoded_views, self.reconstructs = decoded_views, reconstructs
        # dynamic=False: dynamo would take the next domain's shapes for this one's, and make them variables
        self.call = torch.compile(self.run, dynamic=False) if compiled else self.run

    def run(
        self, parameters: dict[str, Tensor], views: Tensor, num_images: int
    ) -> tuple[list[Tensor], list[Tensor], Tensor | None]:
        """Encode every view, decode the first `decoded_views` of them, reconstruct view 0 where that is asked for.

        Args:
            parameters: parameter name -> tensor, from `project`.
            views: `(V * B, 1, X, Y[, Z])`.
            num_images: B.

        Returns:
            The encoder's features and the decoder's, level 0 first, and view 0's reconstruction `(B, 1, X, Y[, Z])`;
            nothing of what is not asked for.
        """
        skips = self.encode(parameters, views)
        if not self.decoded_views:
            return skips, [], None
        first = [features[: self.decoded_views * num_images] for features in skips]
        own = {name: p for name, p in parameters.items() if name.startswith("decoder.")}
        asked = num_images if self.reconstructs else 0
        levels, output = functional_call(self.decoder, own, (first, asked), tie_weights=False)
        return skips, levels, output

    def encode(self, parameters: dict[str, Tensor], images: Tensor) -> list[Tensor]:
        """The encoder's features of images `(B, 1, X, Y[, Z])`, level 0 first."""
        own = {name.removeprefix("encoder."): p for name, p in parameters.items() if name.startswith("encoder.")}
        return functional_call(self.encoder, own, (images,), tie_weights=False)  # type: ignore[no-any-return]

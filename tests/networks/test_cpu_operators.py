"""The CPU's operators against torch's own, in the precisions in which torch's own are right."""

from __future__ import annotations

import copy

import pytest
import torch
from dynamic_network_architectures.architectures.unet import PlainConvUNet
from torch import nn
from torch.func import functional_call

from hssl_nnunet.networks.cpu_operators import kernel_gradient, use_cpu_operators

SHAPES = [
    # kernel, stride, padding, image
    ((3, 3, 3), (1, 1, 1), (1, 1, 1), (2, 3, 5, 6, 4)),
    ((3, 3, 3), (2, 2, 2), (1, 1, 1), (1, 2, 6, 7, 8)),
    ((3, 3, 3), (2, 2, 2), (1, 1, 1), (2, 2, 5, 5, 5)),
    ((1, 3, 3), (1, 2, 2), (0, 1, 1), (2, 3, 4, 6, 5)),
    ((5, 3, 1), (1, 1, 1), (2, 1, 0), (1, 2, 1, 4, 4)),  # the outer offsets reach padding alone
    ((3, 3, 3), (3, 1, 2), (0, 1, 2), (1, 2, 8, 4, 5)),
    ((1, 1, 1), (1, 1, 1), (0, 0, 0), (2, 3, 3, 4, 5)),
    ((1, 1, 1), (2, 1, 2), (0, 0, 0), (2, 3, 3, 4, 5)),
    ((3, 3), (2, 1), (1, 1), (3, 2, 7, 6)),
    ((1, 1), (2, 2), (0, 0), (3, 2, 7, 6)),
]


@pytest.mark.parametrize(("kernel", "stride", "padding", "shape"), SHAPES)
def test_gradients_of_kernels_are_those_of_autograd(kernel, stride, padding, shape) -> None:
    image = torch.randn(shape, dtype=torch.float64)
    weight = torch.randn(4, shape[1], *kernel, dtype=torch.float64, requires_grad=True)
    convolve = nn.functional.conv3d if len(kernel) == 3 else nn.functional.conv2d
    output = convolve(image, weight, None, stride, padding)
    gradient = torch.randn_like(output)
    expected = torch.autograd.grad(output, weight, gradient)[0]
    torch.testing.assert_close(kernel_gradient(gradient, image, weight.shape, stride, padding), expected)


@pytest.mark.parametrize("stride", [(2, 2, 2), (1, 2, 2), (2, 2), (1, 3)])
def test_gradients_of_transposed_kernels_are_those_of_autograd(stride) -> None:
    image = torch.randn(2, 3, *(5, 4, 3)[: len(stride)], dtype=torch.float64)
    weight = torch.randn(3, 4, *stride, dtype=torch.float64, requires_grad=True)
    convolve = nn.functional.conv_transpose3d if len(stride) == 3 else nn.functional.conv_transpose2d
    output = convolve(image, weight, None, stride)
    gradient = torch.randn_like(output)
    expected = torch.autograd.grad(output, weight, gradient)[0]
    found = kernel_gradient(gradient, image, weight.shape, stride, (0,) * len(stride), transposed=True)
    torch.testing.assert_close(found, expected)


def unet(dim: int = 3) -> PlainConvUNet:
    """A small network of nnU-Net, anisotropic on its first level."""
    kernels, strides = [(1, 3, 3), (3, 3, 3), (3, 3, 3)], [(1, 1, 1), (1, 2, 2), (2, 2, 2)]
    torch.manual_seed(0)
    return PlainConvUNet(
        *(1, 3, (16, 32, 64), nn.Conv3d if dim == 3 else nn.Conv2d),
        *([k[3 - dim :] for k in kernels], [s[3 - dim :] for s in strides], 2, 3, 2),
        conv_bias=True,
        norm_op=nn.InstanceNorm3d if dim == 3 else nn.InstanceNorm2d,
        norm_op_kwargs={"eps": 1e-5, "affine": True},
        nonlin=nn.LeakyReLU,
        nonlin_kwargs={"inplace": True},
    )


def gradients(network: nn.Module, image: torch.Tensor, *, bf16: bool) -> dict[str, torch.Tensor]:
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        output = network(image)
    torch.manual_seed(1)
    target = torch.randint(3, (len(image), *output.shape[2:]))
    nn.functional.cross_entropy(output.float(), target).backward()
    found = {name: p.grad.clone() for name, p in network.named_parameters() if p.grad is not None}
    network.zero_grad()
    return found


@pytest.mark.parametrize(("dim", "shape"), [(3, (2, 1, 8, 16, 12)), (2, (3, 1, 24, 16))])
@pytest.mark.parametrize("layout", ["contiguous", "channels last"])
def test_a_network_keeps_its_outputs_and_gradients(dim, shape, layout) -> None:
    stock = unet(dim).double()
    image = torch.randn(shape, dtype=torch.float64)
    if layout == "channels last":
        image = image.contiguous(memory_format=torch.channels_last_3d if dim == 3 else torch.channels_last)
    ours = copy.deepcopy(stock)
    use_cpu_operators(ours)
    torch.testing.assert_close(ours(image), stock(image))
    expected = gradients(stock, image, bf16=False)
    torch.testing.assert_close(gradients(ours, image, bf16=False), expected)
    assert list(ours.state_dict()) == list(stock.state_dict())


@pytest.mark.parametrize(("dim", "shape"), [(3, (2, 1, 8, 32, 24)), (2, (3, 1, 48, 32))])
def test_gradients_in_bf16_point_where_those_in_fp32_do(dim, shape) -> None:
    network, image = unet(dim), torch.randn(shape)
    use_cpu_operators(network)
    expected, found = gradients(network, image, bf16=False), gradients(network, image, bf16=True)
    for name, gradient in expected.items():
        if "conv.bias" in name and "transp" not in name:
            continue  # instance norm takes a constant away: nothing but rounding is left
        cosine = nn.functional.cosine_similarity(gradient.flatten(), found[name].flatten(), dim=0)
        assert cosine > 0.97, name
        assert found[name].dtype == torch.float32


@pytest.mark.parametrize(
    ("module", "shape"),
    [
        (nn.Conv3d(64, 32, (1, 3, 3), padding=(0, 1, 1)), (2, 64, 6, 116, 28)),
        (nn.Conv3d(64, 64, 3, padding=1), (2, 64, 4, 100, 24)),
        (nn.Conv3d(128, 4, 1), (1, 128, 4, 60, 43)),
        (nn.ConvTranspose3d(128, 16, (1, 2, 2), (1, 2, 2)), (1, 128, 4, 30, 28)),
    ],
)
def test_where_torchs_own_bf16_gradients_fail_ours_are_right(module, shape) -> None:
    use_cpu_operators(module)
    image = torch.randn(shape).contiguous(memory_format=torch.channels_last_3d)
    output = module(image)
    gradient = torch.randn_like(output)
    expected = torch.autograd.grad(output, list(module.parameters()), gradient)
    with torch.autocast("cpu", torch.bfloat16):
        low = module(image)
    assert low.dtype == torch.bfloat16
    for one, other in zip(
        torch.autograd.grad(low, list(module.parameters()), gradient.bfloat16()), expected, strict=True
    ):
        assert (one - other).norm() < 0.02 * other.norm()


def test_channels_last_images_stay_so() -> None:
    norm = nn.InstanceNorm3d(4, affine=True)
    use_cpu_operators(norm)
    image = torch.randn(2, 4, 3, 5, 6).contiguous(memory_format=torch.channels_last_3d)
    assert norm(image).is_contiguous(memory_format=torch.channels_last_3d)


def test_shells_on_the_meta_device_run_with_parameters_of_others() -> None:
    with torch.device("meta"):
        shell = unet()
    use_cpu_operators(shell)
    parameters, image = dict(unet().named_parameters()), torch.randn(1, 1, 4, 8, 8)
    torch.testing.assert_close(functional_call(shell, parameters, (image,), tie_weights=False), unet()(image))


@pytest.mark.parametrize(
    "module",
    [
        nn.Conv3d(2, 2, 3, dilation=2),
        nn.Conv3d(2, 2, 3, groups=2),
        nn.Conv3d(2, 2, 3, padding="same"),
        nn.Conv3d(2, 2, 3, padding=1, padding_mode="reflect"),
        nn.ConvTranspose3d(2, 2, 3, stride=2),
        nn.BatchNorm3d(2),
    ],
)
def test_what_nnunet_does_not_plan_is_left_alone(module) -> None:
    kind = type(module)
    use_cpu_operators(module)
    assert type(module) is kind

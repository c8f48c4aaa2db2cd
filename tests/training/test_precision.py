from __future__ import annotations

import pytest
import torch

from hssl_nnunet.training import precision

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch):
    """Pretend that the GPU has a compute capability."""

    def set_capability(*capability: int) -> None:
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)

    return set_capability


@pytest.mark.parametrize(("plan", "expected"), [("fp32", torch.float32), ("bf16", torch.bfloat16)])
def test_the_plan_decides_on_a_cpu(plan, expected) -> None:
    assert precision.compute_dtype(plan, CPU) == expected


INTEL, AMD = {"cpu_name": "Intel(R) Xeon(R) Processor"}, {"cpu_name": "AMD EPYC"}


@pytest.mark.parametrize(
    ("amx", "told", "expected"),
    [
        (True, INTEL | {"avx512_bf16": True}, torch.bfloat16),
        (False, INTEL | {"avx512_bf16": True}, torch.float32),
        (False, AMD | {"avx512_bf16": True}, torch.bfloat16),
        (False, AMD | {"avx512_bf16": False}, torch.float32),
        (False, {"architecture": "aarch64"}, torch.float32),
    ],
)
def test_auto_follows_the_cpu(monkeypatch, amx, told, expected) -> None:
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx, raising=False)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: told, raising=False)
    assert precision.compute_dtype("auto", CPU) == expected


def test_a_torch_that_does_not_tell_stays_in_fp32(monkeypatch) -> None:
    monkeypatch.delattr(torch.cpu, "_is_amx_tile_supported", raising=False)
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    assert precision.compute_dtype("auto", CPU) == torch.float32


@pytest.mark.parametrize(
    ("capability", "expected"), [((7, 5), torch.float16), ((8, 0), torch.bfloat16), ((9, 0), torch.bfloat16)]
)
def test_auto_follows_the_gpu(gpu, capability, expected) -> None:
    gpu(*capability)
    assert precision.compute_dtype("auto", CUDA) == expected
    assert precision.compute_dtype("fp32", CUDA) == torch.float32


@pytest.mark.filterwarnings("ignore:.*GradScaler is enabled, but CUDA is not available")
def test_only_fp16_needs_a_loss_scaler(gpu) -> None:
    gpu(7, 5)
    assert precision.grad_scaler("auto", CUDA) is not None
    assert precision.grad_scaler("fp32", CUDA) is None and precision.grad_scaler("bf16", CPU) is None
    gpu(8, 0)
    assert precision.grad_scaler("auto", CUDA) is None


@pytest.mark.parametrize(("plan", "expected"), [("fp32", torch.float32), ("bf16", torch.bfloat16)])
def test_convolutions_run_in_the_planned_type(plan, expected) -> None:
    convolution, image = torch.nn.Conv3d(1, 2, 3), torch.randn(1, 1, 4, 4, 4)
    with precision.autocast(plan, CPU):
        assert convolution(image).dtype == expected
    assert convolution(image).dtype == torch.float32


@pytest.mark.parametrize(("plan", "expected"), [("fp32", torch.float32), ("bf16", torch.bfloat16)])
def test_nnunets_nameless_autocast_takes_the_planned_type_inside_alone(monkeypatch, plan, expected) -> None:
    monkeypatch.setattr(precision, "compute_dtype", lambda *_: expected)
    before = torch.get_autocast_dtype("cuda")
    with precision.autocast(plan, CUDA if torch.cuda.is_available() else CPU):
        assert torch.get_autocast_dtype("cuda" if torch.cuda.is_available() else "cpu") == expected
    with pytest.raises(KeyError), precision.autocast(plan, CPU):
        raise KeyError
    assert torch.get_autocast_dtype("cuda") == before and torch.get_autocast_dtype("cpu") == torch.bfloat16


@pytest.mark.parametrize(
    ("shape", "layout"), [((2, 3, 4, 5, 6), torch.channels_last_3d), ((2, 3, 4, 5), torch.channels_last)]
)
def test_batches_lie_channels_last_with_the_same_values(shape, layout) -> None:
    image = torch.randn(shape)
    formatted = precision.formatted(image, CPU)
    assert torch.equal(formatted, image)
    assert formatted.is_contiguous(memory_format=layout) and not image.is_contiguous(memory_format=layout)
    assert precision.memory_format(torch.device("mps"), len(shape) - 2) == torch.contiguous_format


def test_on_a_gpu_compiled_networks_alone_are_channels_last() -> None:
    assert precision.memory_format(CUDA, 3) == torch.contiguous_format
    assert precision.memory_format(CUDA, 3, compiled=True) == torch.channels_last_3d
    assert precision.memory_format(CUDA, 2, compiled=True) == torch.channels_last


def test_the_description_names_what_will_run() -> None:
    assert precision.describe(CPU, "bf16") == "cpu: bfloat16, channels last"
    assert precision.describe(torch.device("mps"), "fp32") == "mps: float32, contiguous"

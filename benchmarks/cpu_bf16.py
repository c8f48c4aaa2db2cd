"""Can a CPU train 3D convolutions in bf16? Are the kernels' gradients right, and is a step faster than in fp32?

    python benchmarks/cpu_bf16.py [--shapes 30] [--out benchmarks/results/cpu_bf16.json]

Gradients: the weights' gradient under bf16 autocast against the fp32 one, for random shapes as nnU-Net plans them; each
shape runs in a process of its own, and fails when the relative error is above 3 % or not a number, or when the process
crashes or hangs. Speed: forward and backward of a small nnU-Net, fp32 and bf16 in turn, both channels-last. Once as
torch chooses, and once with AMX ruled out (`ONEDNN_MAX_CPU_ISA`).
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
from pathlib import Path

from hssl_nnunet.files import write_json
from hssl_nnunet.versions import versions

ISAS = {"as torch chooses": {}, "without AMX": {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE_BF16"}}
TOLERANCE, TIMEOUT_S = 0.03, 60
ONE_SHAPE = """
import json, sys, torch
kernel, stride, inputs, outputs, batch, size = json.loads(sys.argv[1])
torch.set_num_threads(1)
torch.manual_seed(0)
conv = torch.nn.Conv3d(inputs, outputs, kernel, stride, [k // 2 for k in kernel])
x = torch.randn(batch, inputs, *size).contiguous(memory_format=torch.channels_last_3d)
y = conv(x)
g = torch.randn_like(y)
expected = torch.autograd.grad(y, [conv.weight], g)[0]
for _ in range(3):
    with torch.autocast("cpu", torch.bfloat16):
        low = conv(x)
    found = torch.autograd.grad(low, [conv.weight], g.to(low.dtype))[0].float()
print(((found - expected).norm() / expected.norm()).item())
"""
SPEED = """
import statistics, time, torch
from dynamic_network_architectures.architectures.unet import PlainConvUNet
torch.set_num_threads(1)
net = PlainConvUNet(1, 4, (16, 32, 64, 128), torch.nn.Conv3d, 3, (1, 2, 2, 2), 2, 3, 2, conv_bias=True,
                    norm_op=torch.nn.InstanceNorm3d, norm_op_kwargs={"affine": True}, nonlin=torch.nn.LeakyReLU)
x = torch.randn(2, 1, 40, 56, 40).contiguous(memory_format=torch.channels_last_3d)
seconds = {True: [], False: []}
for step in range(6):
    for low, times in seconds.items():
        begin = time.perf_counter()
        with torch.autocast("cpu", torch.bfloat16, enabled=low):
            y = net(x)
        y.float().square().mean().backward()
        times += [time.perf_counter() - begin] * (step > 0)
print(statistics.median(a / b for a, b in zip(seconds[False], seconds[True])))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", type=int, default=30)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/cpu_bf16.json"))
    args = parser.parse_args()
    shapes = list(random_shapes(args.shapes))
    flags = next(line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("flags"))
    result: dict[str, object] = {
        "command": "python benchmarks/cpu_bf16.py",
        "seed": 0,
        "tolerance": TOLERANCE,
        "versions": versions(),
        "cpu_flags": [flag for flag in flags.split() if "bf16" in flag or "amx" in flag],
    }
    for name, isa in ISAS.items():
        outcomes = {json.dumps(shape): outcome(shape, isa) for shape in shapes}
        failures = {shape: what for shape, what in outcomes.items() if what != "right"}
        ratio = round(float(run(SPEED, [], isa, 10 * TIMEOUT_S).stdout), 2)
        result[name] = {
            "shapes": len(shapes),
            "failed": len(failures),
            "fp32_seconds_over_bf16_seconds": ratio,
            "failures": failures,
        }
        print(f"{name}: {len(failures)} of {len(shapes)} shapes failed; fp32 / bf16 step time {ratio}", flush=True)
    write_json(args.out, result)


def random_shapes(count: int) -> list[list[object]]:
    """Convolutions of all levels of a network: large and thin above, small and wide below."""
    rng = random.Random(0)
    kernels, strides = ([1, 3, 3], [3, 3, 3]), ([1, 1, 1], [1, 2, 2], [2, 2, 2])
    shapes = []
    for index in range(count):
        edges, depths, widths = (
            (range(24, 129, 4), [4, 6, 16], [16, 32, 64]) if index % 2 else (range(4, 17), [2, 4, 8], [128, 320])
        )
        size = [rng.choice(depths), rng.choice(edges), rng.choice(edges)]
        channels = [rng.choice(widths), rng.choice(widths)]
        shapes.append([rng.choice(kernels), rng.choice(strides), *channels, rng.choice([1, 2, 8]), size])
    return shapes


def run(code: str, arguments: list[str], isa: dict[str, str], timeout: int) -> subprocess.CompletedProcess[str]:
    # unused memory is filled with a pattern, so that a kernel that reads it shows
    environment = {**os.environ, "MALLOC_CHECK_": "3", "MALLOC_PERTURB_": "165", **isa}
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=timeout, check=False)


def outcome(shape: list[object], isa: dict[str, str]) -> str:
    try:
        done = run(ONE_SHAPE, [json.dumps(shape)], isa, TIMEOUT_S)
    except subprocess.TimeoutExpired:
        return f"hung for {TIMEOUT_S} s"
    if done.returncode:
        return f"exit code {done.returncode}: {done.stderr.strip().splitlines()[-1:]}"
    error = float(done.stdout)
    return "right" if error < TOLERANCE else f"relative error {error:.3g}"


if __name__ == "__main__":
    main()

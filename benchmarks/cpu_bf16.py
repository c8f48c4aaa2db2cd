"""Can a CPU train convolutions in bf16? Are the kernels' gradients right, and is a step faster than in fp32?

    python benchmarks/cpu_bf16.py [--shapes 40] [--out benchmarks/results/cpu_bf16.json]

Gradients: the weights' gradient under bf16 autocast against the fp32 one, for random 3D shapes as nnU-Net plans them,
with torch's own operators and with ours (`networks/cpu_operators.py`); each shape runs in a process of its own, and
fails when the relative error is above 3 % or not a number, or when the process crashes or hangs. Speed: forward and
backward of a small nnU-Net, torch's own fp32 over ours, all channels-last; as torch chooses, and with AMX ruled out
(`ONEDNN_MAX_CPU_ISA`).
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
from hssl_nnunet.versions import cpu_model, versions

ISAS = {"as torch chooses": {}, "without AMX": {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE_BF16"}}
OPERATORS = ("torch", "ours")
TOLERANCE, TIMEOUT_S = 0.03, 60
ONE_SHAPE = """
import json, sys, torch
from hssl_nnunet.networks.cpu_operators import use_cpu_operators
kind, kernel, stride, inputs, outputs, batch, size = json.loads(sys.argv[2])
torch.set_num_threads(1)
torch.manual_seed(0)
padding = {} if kind == "ConvTranspose3d" else {"padding": [k // 2 for k in kernel]}
conv = getattr(torch.nn, kind)(inputs, outputs, kernel, stride, **padding)
x = torch.randn(batch, inputs, *size).contiguous(memory_format=torch.channels_last_3d)
y = conv(x)
g = torch.randn_like(y)
expected = torch.autograd.grad(y, [conv.weight], g)[0]
if sys.argv[1] == "ours":
    use_cpu_operators(conv)
for _ in range(3):
    with torch.autocast("cpu", torch.bfloat16):
        low = conv(x)
    found = torch.autograd.grad(low, [conv.weight], g.to(low.dtype))[0].float()
print(((found - expected).norm() / expected.norm()).item())
"""
SPEED = """
import copy, json, statistics, time, torch
from dynamic_network_architectures.architectures.unet import PlainConvUNet
from hssl_nnunet.networks.cpu_operators import use_cpu_operators
torch.set_num_threads(1)
stock = PlainConvUNet(1, 4, (16, 32, 64, 128), torch.nn.Conv3d, 3, (1, 2, 2, 2), 2, 3, 2, conv_bias=True,
                      norm_op=torch.nn.InstanceNorm3d, norm_op_kwargs={"affine": True}, nonlin=torch.nn.LeakyReLU)
ours = copy.deepcopy(stock)
use_cpu_operators(ours)
x = torch.randn(2, 1, 40, 56, 40).contiguous(memory_format=torch.channels_last_3d)
runs = {"torch fp32": (stock, False), "ours fp32": (ours, False), "ours bf16": (ours, True)}
seconds = {name: [] for name in runs}
for step in range(8):
    for name, (net, low) in runs.items():
        begin = time.perf_counter()
        with torch.autocast("cpu", torch.bfloat16, enabled=low):
            y = net(x)
        y.float().square().mean().backward()
        seconds[name] += [time.perf_counter() - begin] * (step > 0)
ratios = {name: [a / b for a, b in zip(seconds["torch fp32"], times)] for name, times in seconds.items()}
print(json.dumps({n: [round(f(r), 2) for f in (min, statistics.median, max)] for n, r in list(ratios.items())[1:]}))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", type=int, default=40)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/cpu_bf16.json"))
    args = parser.parse_args()
    shapes = list(random_shapes(args.shapes))
    flags = next(line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("flags"))
    result: dict[str, object] = {
        "command": "python benchmarks/cpu_bf16.py",
        "seed": 0,
        "threads": 1,
        "tolerance": TOLERANCE,
        "versions": versions(),
        "cpu": cpu_model(),
        "cpu_flags": [flag for flag in flags.split() if "bf16" in flag or "amx" in flag],
    }
    for operators in OPERATORS:
        outcomes = {json.dumps(shape): outcome(shape, operators) for shape in shapes}
        failures = {shape: what for shape, what in outcomes.items() if what != "right"}
        result[f"gradients, {operators}"] = {"shapes": len(shapes), "failed": len(failures), "failures": failures}
        print(f"{operators}: {len(failures)} of {len(shapes)} shapes failed", flush=True)
    for name, isa in ISAS.items():
        ratios = json.loads(run(SPEED, [], isa, 10 * TIMEOUT_S).stdout)
        result[f"torch's fp32 seconds over these, {name} (min, median, max)"] = ratios
        print(f"{name}: {ratios}", flush=True)
    write_json(args.out, result)


def random_shapes(count: int) -> list[list[object]]:
    """Convolutions of all levels of a network: large and thin above, small and wide below; upsampling and heads."""
    rng = random.Random(0)
    strides = ([1, 1, 1], [1, 2, 2], [2, 2, 2])
    shapes = []
    for index in range(count):
        edges, depths, widths = (
            (range(24, 129, 4), [4, 6, 16], [16, 32, 64]) if index % 2 else (range(4, 17), [2, 4, 8], [128, 320])
        )
        size = [rng.choice(depths), rng.choice(edges), rng.choice(edges)]
        tail = [rng.choice(widths), rng.choice(widths), rng.choice([1, 2, 8]), size]
        step = rng.choice(strides)
        upsampling = ["ConvTranspose3d", rng.choice(strides[1:])]
        convolution = ["Conv3d", rng.choice([[1, 3, 3], [3, 3, 3]])]
        if index % 4 == 3:
            shapes.append([*upsampling, upsampling[1], *tail])
        elif index % 8 == 2:
            shapes.append(["Conv3d", [1, 1, 1], [1, 1, 1], tail[0], 4, *tail[2:]])
        else:
            shapes.append([*convolution, step, *tail])
    return shapes


def run(code: str, arguments: list[str], isa: dict[str, str], timeout: int) -> subprocess.CompletedProcess[str]:
    # unused memory is filled with a pattern, so that a kernel that reads it shows
    environment = {**os.environ, "MALLOC_CHECK_": "3", "MALLOC_PERTURB_": "165", **isa}
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=timeout, check=False)


def outcome(shape: list[object], operators: str) -> str:
    try:
        done = run(ONE_SHAPE, [operators, json.dumps(shape)], {}, TIMEOUT_S)
    except subprocess.TimeoutExpired:
        return f"hung for {TIMEOUT_S} s"
    if done.returncode:
        return f"exit code {done.returncode}: {done.stderr.strip().splitlines()[-1:]}"
    error = float(done.stdout)
    return "right" if error < TOLERANCE else f"relative error {error:.3g}"


if __name__ == "__main__":
    main()

"""Is the bf16 gradient of a 3D convolution's weights right on this CPU? Each shape runs in a process of its own.

    python benchmarks/amx_gradient.py [--shapes 100] [--out benchmarks/results/amx_gradient.json]

Compares the gradient under bf16 autocast with the fp32 one, with and without AMX (`ONEDNN_MAX_CPU_ISA`). A shape
fails when the relative error is above 3 % or not a number, or when the process crashes or hangs.
"""

from __future__ import annotations

import argparse
import os
import random
import subprocess
import sys
from pathlib import Path

from hssl_nnunet.files import write_json
from hssl_nnunet.training.precision import ENV_CPU_ISA, ISA_WITHOUT_AMX
from hssl_nnunet.versions import versions

TOLERANCE, TIMEOUT_S = 0.03, 90
ONE_SHAPE = """
import json, sys, torch
kernel, stride, inputs, outputs, batch, size = json.loads(sys.argv[1])
torch.set_num_threads(1)
conv = torch.nn.Conv3d(inputs, outputs, kernel, stride, [k // 2 for k in kernel])
x = torch.randn(batch, inputs, *size).contiguous(memory_format=torch.channels_last_3d)
y = conv(x)
g = torch.randn_like(y)
expected = torch.autograd.grad(y, [conv.weight], g)[0]
for _ in range(2):
    with torch.autocast("cpu", torch.bfloat16):
        low = conv(x)
    found = torch.autograd.grad(low, [conv.weight], g.to(low.dtype))[0].float()
print(((found - expected).norm() / expected.norm()).item())
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", type=int, default=40)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/amx_gradient.json"))
    args = parser.parse_args()
    shapes = list(random_shapes(args.shapes))
    result = {"command": "python benchmarks/amx_gradient.py", "seed": 0, "tolerance": TOLERANCE, "versions": versions()}
    for name, limit in (("as torch chooses", None), (ISA_WITHOUT_AMX, ISA_WITHOUT_AMX)):
        outcomes = {str(shape): outcome(shape, limit) for shape in shapes}
        failed = {shape: what for shape, what in outcomes.items() if what != "right"}
        result[name] = {"shapes": len(shapes), "failed": len(failed), "failures": failed}
        print(name, len(failed), "of", len(shapes), "failed")
    write_json(args.out, result)


def random_shapes(count: int) -> list[list[object]]:
    """Convolutions as nnU-Net plans them at the upper levels of a network."""
    rng, edges = random.Random(0), range(24, 129, 4)
    kernels, strides = ([1, 3, 3], [3, 3, 3]), ([1, 1, 1], [1, 2, 2], [2, 2, 2])
    return [
        [
            rng.choice(kernels),
            rng.choice(strides),
            rng.choice([1, 16, 32, 64]),
            rng.choice([16, 32, 64]),
            rng.choice([1, 2]),
            [rng.choice([4, 6, 16]), rng.choice(edges), rng.choice(edges)],
        ]
        for _ in range(count)
    ]


def outcome(shape: list[object], isa: str | None) -> str:
    environment = {**os.environ, "MALLOC_CHECK_": "3"} | ({ENV_CPU_ISA: isa} if isa else {})
    command = [sys.executable, "-c", ONE_SHAPE, str(shape)]
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired:
        return f"hung for {TIMEOUT_S} s"
    if done.returncode:
        return f"exit code {done.returncode}: {done.stderr.strip().splitlines()[-1:]}"
    error = float(done.stdout)
    return "right" if error < TOLERANCE else f"relative error {error:.3g}"


if __name__ == "__main__":
    main()

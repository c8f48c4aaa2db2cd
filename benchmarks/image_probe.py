"""Whether pretraining tells the images of one domain apart: are they found again by another view?

    python benchmarks/image_probe.py CORPUS [NAME=]CHECKPOINT... -p PLANS [--out .../image_probe.json]

CORPUS is what `hssl corpus` wrote, CHECKPOINT a `checkpoint_final.pth` of a pretraining on its domains, called NAME or
as its corpus. For each, and for weights that are drawn afresh: the probe `image_accuracy` of a run's log, over the
training images.
"""

from __future__ import annotations

import shlex
import sys
from typing import Any

import torch
from common import about, trainer_and_checkpoints

from hssl_nnunet.data.split import held_out_rows
from hssl_nnunet.files import write_json
from hssl_nnunet.training.monitor import few_of_each_domain
from hssl_nnunet.transfer.checkpoints import load_checkpoint


def main() -> None:
    args, trainer, checkpoints = trainer_and_checkpoints(__doc__, "image_probe.json")
    found = {"fresh": probed(trainer)}
    for label, path in checkpoints.items():
        trainer.model.load_state_dict(load_checkpoint(str(path))["network_weights"], strict=False)
        found[label] = probed(trainer)
    told = {"command": f"python {shlex.join(sys.argv)}", **about(args.device, args.threads)}
    write_json(args.out, {**told, "seed": trainer.plan.seed, "found": found})


def probed(trainer: Any) -> dict[str, float]:
    """The probe over every domain, and for each."""
    held_out = held_out_rows(trainer.rows, trainer.plan.held_out_fraction, trainer.plan.seed)
    rows = few_of_each_domain([row for index, row in enumerate(trainer.rows) if index not in held_out])
    trainer.model.eval()
    with torch.no_grad():
        result = trainer.monitor.found_again(trainer.model, rows)
        for name in dict.fromkeys(r.dataset_name for r in rows):
            of_domain = [r for r in rows if r.dataset_name == name]
            result[name] = trainer.monitor.found_again(trainer.model, of_domain)["image_accuracy"]
    result = {name: round(value, 3) for name, value in result.items()}
    print(result, flush=True)
    return result


if __name__ == "__main__":
    main()

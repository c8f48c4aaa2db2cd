"""Whether a pretraining can go on from a checkpoint with the plans as they are now."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from hssl_nnunet.errors import HSSLError
from hssl_nnunet.plan_schema import PretrainingPlan
from hssl_nnunet.typed_json import differences, parse, to_json


def changed_values(
    checkpoint: Mapping[str, Any], path: str, plan: PretrainingPlan, state: Mapping[str, Tensor]
) -> list[str]:
    """Plan values that differ from those of a checkpoint, all of them harmless.

    Args:
        checkpoint: nnU-Net's, of a pretraining.
        path: its file.
        plan: the plan now.
        state: the network's parameters and buffers now.

    Raises:
        HSSLError: the values stand for another network or optimiser than the checkpoint's.
    """
    before = parse(PretrainingPlan, checkpoint["init_args"]["plans"]["hssl"]["pretraining"], path)
    changed = differences("hssl.pretraining", to_json(before), to_json(plan))
    then, now = ({name: t.shape for name, t in s.items()} for s in (checkpoint["network_weights"], state))
    if then != now or before.optimizer != plan.optimizer:
        raise HSSLError(
            f"{path} holds another network or optimiser than the plans describe now: "
            f"{'; '.join(changed) or 'the domains have changed'}. Put that back, or move the folder away to begin anew."
        )
    return changed

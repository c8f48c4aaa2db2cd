"""Test Dice along the training: curves of several arms on the same seeds, and when they reach a baseline's last value.

The scores are made during training, without mirroring and in preprocessed voxels, and differ from the final ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from hssl_nnunet.benchmark.pairing import Runs, groups, shared_seeds


@dataclass(frozen=True, kw_only=True, slots=True)
class Reach:
    """Epochs done until a Dice was reached, and their share of the epochs that the baseline's runs have."""

    epoch: int
    share: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Curves:
    """Dice in [0, 1] along the training, every arm averaged over the same seeds.

    Attributes:
        seeds: the seeds.
        by_arm: arm -> epoch, ascending -> Dice, at the epochs that all its runs have; an arm that lacks one of the
            seeds, or a curve, is left out.
        num_epochs: arm -> epochs of its runs.
    """

    seeds: tuple[int, ...]
    by_arm: dict[str, dict[int, float]]
    num_epochs: dict[str, int]

    def level(self, baseline: str) -> float | None:
        """The last value of an arm's curve; None without one."""
        curve = self.by_arm.get(baseline)
        return curve[max(curve)] if curve else None

    def reach(self, arm: str, baseline: str) -> Reach | None:
        """When an arm's curve first reaches the last value of the baseline's; None when it never does.

        A curve that wobbles touches its last value before its end: ask for the baseline itself as `arm` too, and read
        an arm's value against that.
        """
        level = self.level(baseline)
        curve = self.by_arm.get(arm, {})
        epoch = next((epoch for epoch, dice in curve.items() if level is not None and dice >= level), None)
        return None if epoch is None else Reach(epoch=epoch, share=epoch / self.num_epochs[baseline])


def curves(records: Runs, dataset_name: str, budget: str, anchors: Sequence[str]) -> Curves | None:
    """Curves of every arm that has the seeds which the `anchors` share.

    One set of seeds for all that is drawn and compared: an arm's own seeds would put it beside a baseline on others.

    Args:
        records: runs.
        dataset_name: the target.
        budget: the label budget.
        anchors: arms whose shared seeds are taken.

    Returns:
        None where an anchor has no curve, or they share no seed.
    """
    found = groups(records).get((dataset_name, budget), {})
    by_arm = {arm: [r for r in runs if r.epochs] for arm, runs in found.items()}
    if not anchors or not (seeds := shared_seeds(*(by_arm.get(arm, []) for arm in anchors))):
        return None
    there = {arm: [r for r in runs if r.seed in seeds] for arm, runs in by_arm.items()}
    complete = {arm: runs for arm, runs in there.items() if len(runs) == len(seeds)}
    averaged = {arm: _curve(runs) for arm, runs in complete.items()}
    drawn = {arm: curve for arm, curve in averaged.items() if curve}
    return Curves(seeds=seeds, by_arm=drawn, num_epochs={arm: complete[arm][0].num_epochs for arm in drawn})


def _curve(runs: Runs) -> dict[int, float]:
    """Epoch -> Dice averaged over runs, at the epochs that all of them have."""
    each = [{point.epoch: point.dice for point in run.epochs} for run in runs]
    return {e: fmean(curve[e] for curve in each) for e in sorted(set.intersection(*map(set, each)))}

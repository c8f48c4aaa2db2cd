"""The leakage audit: of each arm, what a file of the benchmark shows to have been compared, and no more."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from hssl_nnunet.benchmark.records import LeakageCheck, RunRecord
from hssl_nnunet.benchmark.report.content import Content
from hssl_nnunet.benchmark.report.wording import count

EVERY_TARGET = "every target"
NOTHING = "nothing to leak: it starts from no weights"
NOT_RECORDED = "the comparison before each run is not recorded"
BY_CONSTRUCTION = f"test patients are left out of the corpus by construction; {NOT_RECORDED}"
FILE_COMPARED = f"its weights file was compared with every test set once, nothing found; {NOT_RECORDED}"
NOT_CHECKED = "not checked"
NOT_KNOWN = (
    "an overlap cannot be ruled out: the imported weights do not say which images they have seen, only that their "
    "dataset is not this one"
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Audit:
    """One line of the audit.

    Attributes:
        arm: the arm.
        dataset: the target, or `EVERY_TARGET`.
        told: what was found, or what was done.
        refused: whether `told` names test cases that its weights have seen.
        run: whether the arm has a run there all the same, where it is refused.
    """

    arm: str
    dataset: str
    told: str
    refused: bool = False
    run: bool = False


def audits(content: Content) -> list[Audit]:
    """Of every arm that was asked for or has a run, one line, or one for each target."""
    arms = dict.fromkeys((*content.plan.arms, *content.arms))
    return [audit for arm in arms for audit in _of_arm(content, arm)]


def _of_arm(content: Content, arm: str) -> list[Audit]:
    records = [r for r in content.records if r.arm == arm]
    ran = {name: of for name in content.datasets if (of := [r for r in records if r.dataset_name == name])}
    refused = [
        Audit(arm=arm, dataset=name, told=", ".join(seen), refused=True, run=name in ran)
        for name, seen in content.leaked(arm).items()
    ]
    if refused and not records:
        return refused
    otherwise = _otherwise(content, arm, any(r.weights_sha256 for r in records))
    told = {name: _told(of, otherwise) for name, of in ran.items()}
    if len(set(told.values())) < 2 and not refused:
        told = {EVERY_TARGET: next(iter(told.values()), otherwise)}
    return refused + [Audit(arm=arm, dataset=name, told=said) for name, said in told.items()]


def _told(records: Sequence[RunRecord], otherwise: str) -> str:
    """Of the runs of an arm on a target: what their records say was compared, and of the rest what else is known."""
    checks = [r.leakage for r in records if r.leakage is not None]
    found = [_check(c, f"{checks.count(c)} of {count(len(records), 'run')}") for c in dict.fromkeys(checks)]
    if len(checks) < len(records):
        found.append(f"the other {count(len(records) - len(checks), 'run')}: {otherwise}" if found else otherwise)
    return "; ".join(found)


def _check(check: LeakageCheck, runs: str) -> str:
    if check.images is None:
        return f"{NOT_KNOWN}; compared before {runs}"
    return (
        f"names, contents and patients compared before {runs}, nothing found: {count(check.images, 'image')} of the "
        f"weights with {count(check.test_cases, 'test case')}"
    )


def _otherwise(content: Content, arm: str, has_weights: bool) -> str:
    """What is known without the records' own word."""
    if arm in content.plan.arms:  # else its runs were copied from elsewhere
        source = content.plan.source(arm)
        if content.plan.arms[source].weights_file is not None:
            return FILE_COMPARED if {arm, source} & content.leakage.keys() else NOT_CHECKED
        if content.plan.arms[source].pretrained_on != "none":
            return BY_CONSTRUCTION
    return NOT_CHECKED if has_weights else NOTHING

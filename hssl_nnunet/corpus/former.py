"""What a person has put into a corpus that is about to be replaced: plan values and groups that are kept."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hssl_nnunet.corpus.hierarchy import Groups
from hssl_nnunet.corpus.manifest import MANIFEST, read_manifest
from hssl_nnunet.errors import HSSLError
from hssl_nnunet.files import cannot, read_json, remove_file
from hssl_nnunet.nnunet_plans import plans_in
from hssl_nnunet.plan_schema import Preset, preset_of_plans, pretraining_plan
from hssl_nnunet.plan_values import PretrainingPlan
from hssl_nnunet.typed_json import differences, parse, to_json

FINGERPRINT = "hssl_fingerprint.json"
FORMER = ".former"  # end of the name of plans while those that replace them are not there yet
REMEDY = "Repair it, or remove it to start from the preset's values and derived groups."


@dataclass(frozen=True, slots=True)
class FormerDomain:
    """What we keep of a domain."""

    dataset_name: str
    groups: Groups


@dataclass(frozen=True, slots=True)
class FormerBlock:
    """What we keep of an `hssl` block."""

    domains: list[FormerDomain]
    pretraining: dict[str, Any]
    weights: str | None = None
    weights_sha256: str | None = None


@dataclass(frozen=True, slots=True)
class _Fingerprint:
    """What we read of the corpus' own fingerprint."""

    derived_groups: dict[str, Groups] | None = None


@dataclass(frozen=True, slots=True)
class Former:
    """The plans of a corpus that is about to be replaced, and the file that those to come are written to."""

    path: Path
    plans: dict[str, Any]
    block: FormerBlock
    successor: Path

    def kept(self, what: str, told: str) -> list[str]:
        """The note on what stays of it."""
        undo = f"To have it without them, remove {self.successor} and run this again with --overwrite."
        return [f"kept the {what} of {self.path} that {told}. {undo}"]


def plans_of_corpora(folder: Path, pattern: str = "*.json") -> dict[Path, dict[str, Any]]:
    """Plans that a corpus was written with; other JSON files, which the user may have put there, are not among them."""
    return {path: content for path, content in plans_in(folder, pattern).items() if "hssl" in content}


@contextmanager
def set_aside(folder: Path) -> Iterator[None]:
    """The folder without its corpus' plans, gone at the end; after an interruption `former_corpus` finds them.

    Raises:
        HSSLError: a file cannot be moved or removed.
    """
    for path in plans_of_corpora(folder):
        try:
            path.replace(f"{path}{FORMER}")
        except OSError as error:
            raise cannot("move", path, error) from error
    yield
    for path in folder.glob(f"*.json{FORMER}"):
        remove_file(path)


def former_corpus(folder: Path, plans_name: str) -> Former | None:
    """The plans of the corpus in `folder`, those of this name first, or nothing.

    Raises:
        HSSLError: their `hssl` block is damaged.
    """
    found = plans_of_corpora(folder) or plans_of_corpora(folder, f"*.json{FORMER}")
    if not found:
        return None
    path = max(found, key=lambda p: (p.name.partition(".")[0] == plans_name, p.stat().st_mtime))
    block = parse(FormerBlock, found[path]["hssl"], f"the `hssl` block of {path}", REMEDY)
    return Former(path, found[path], block, folder / f"{plans_name}.json")


def kept_pretraining(
    former: Former | None, preset: Preset, overrides: Mapping[str, Any] | None
) -> tuple[PretrainingPlan, list[str]]:
    """The preset's values with those of the former plans that their own preset does not have, and a note on these.

    Values that are asked for now (`overrides`) go before all former ones.

    Raises:
        HSSLError: a value is wrong or unknown.
    """
    if former is None or overrides is not None:
        return pretraining_plan(preset, **(overrides or {})), []
    theirs = preset_of_plans(former.plans)
    try:
        edited = _edited(
            to_json(pretraining_plan(theirs, former.path, **former.block.pretraining)),
            to_json(pretraining_plan(theirs)),
        )
        kept = pretraining_plan(preset, former.path, **edited)
    except HSSLError as error:
        raise HSSLError(f"{error}\n{REMEDY}") from None
    lines = differences("pretraining", to_json(pretraining_plan(preset)), to_json(kept))
    return kept, former.kept("values", f"are not the preset's: {', '.join(lines)}") if lines else []


def weights_note(former: Former | None) -> list[str]:
    """A note where the former plans go on from weights: those to come do as well."""
    if former is None or former.block.weights is None:
        return []
    return former.kept("weights", f"`hssl seed` has named: {former.block.weights}")


def _edited(values: dict[str, Any], preset: dict[str, Any]) -> dict[str, Any]:
    """The values that differ from the preset's, nested ones in their places."""
    return {
        key: _edited(value, preset[key]) if isinstance(value, dict) and isinstance(preset[key], dict) else value
        for key, value in values.items()
        if value != preset[key]
    }


def kept_groups(former: Former | None, derived: Mapping[str, Groups]) -> tuple[dict[str, Groups], list[str]]:
    """Groups of the former plans that a person gave, in a file or by editing the plans, and a note on them.

    `derived` are those that the domains to come have without a person's, by dataset name.
    """
    if former is None:
        return {}, []
    then = _derived_then(former.path.parent)
    given = {d.dataset_name: d.groups for d in former.block.domains if d.groups != then.get(d.dataset_name)}
    kept = {name: groups for name, groups in given.items() if derived.get(name, groups) != groups}
    if not kept:
        return {}, []
    told = "; ".join(f"{name}: {', '.join(g)} (derived: {', '.join(derived[name])})" for name, g in kept.items())
    return kept, former.kept("groups", f"were given by hand: {told}")


def _derived_then(folder: Path) -> Mapping[str, Groups]:
    """Groups that nobody gave, as the corpus was built with; in one of an earlier version all that its manifest has."""
    path = folder / FINGERPRINT
    found = parse(_Fingerprint, read_json(path, REMEDY), path, REMEDY).derived_groups if path.is_file() else None
    return found if found is not None else {row.dataset_name: row.groups for row in read_manifest(folder / MANIFEST)}

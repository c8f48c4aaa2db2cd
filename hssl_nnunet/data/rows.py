"""The images of a corpus, as its manifest has them, beside the domains of its plans."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from hssl_nnunet.corpus.manifest import MANIFEST, ImageRow, read_manifest
from hssl_nnunet.errors import HSSLError
from hssl_nnunet.plan_schema import DomainPlan
from hssl_nnunet.remedies import corpus_command


def read_rows(domains: Sequence[DomainPlan], plans: Path) -> list[ImageRow]:
    """Read the manifest, whose rows name domains by their place in the plans, which may have been edited.

    Args:
        domains: the corpus' domains.
        plans: the file that they are of; the manifest lies beside it.

    Raises:
        HSSLError: an image is not of the domain at its place, or the manifest cannot be read.
    """
    path, names = plans.with_name(MANIFEST), [domain.dataset_name for domain in domains]
    rows = read_manifest(path)
    for row in rows:
        if names[row.domain : row.domain + 1] != [row.dataset_name]:
            raise HSSLError(
                f"{path} has {row.dataset_name} as domain {row.domain}, counted from 0; the domains of {plans.name} "
                f"are {', '.join(names)}. Put them back as they were, or choose the datasets of the corpus anew: "
                f"`{corpus_command(plans.parent.name)} --overwrite`."
            )
    return rows

"""Which plans a command means that was given none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hssl_nnunet.errors import HSSLError
from hssl_nnunet.files import read_json
from hssl_nnunet.paths import preprocessed_dir
from hssl_nnunet.plan_schema import DEFAULT_PLANS, SEEDED_SUFFIX
from hssl_nnunet.remedies import DEFAULT_CONFIGURATION, corpus_command, preprocess_command, seed_command


def corpus_plans_name(dataset: str) -> str:
    """Name of the only plans file of a corpus that carries an `hssl` block.

    Raises:
        HSSLError: none or several do.
    """
    folder = preprocessed_dir() / dataset
    found = sorted(p.stem for p in folder.glob("*.json") if _role(read_json(p)) == "corpus")
    remedy = f"`{corpus_command('ID')}` makes a corpus: run it, and name its id here."
    return _the_only(found, folder, "plans with an `hssl` block of a corpus", remedy)


def target_plans_name(dataset: str, configuration: str = DEFAULT_CONFIGURATION) -> str:
    """`nnUNetPlans_HSSL` when `hssl seed` wrote it for the dataset, else the only plans file that ends in `_HSSL`.

    Args:
        dataset: name of the target.
        configuration: what it is for; the error's command names it.

    Raises:
        HSSLError: none or several do.
    """
    folder = preprocessed_dir() / dataset
    found = sorted(p.stem for p in folder.glob(f"*{SEEDED_SUFFIX}.json"))
    corpora = [p for p in folder.glob("*Plans*.json") if _role(read_json(p)) == "corpus"]
    if corpora and not found:
        raise HSSLError(
            f"{dataset} is a corpus, which weights are learned from ({corpora[0]}). Name a dataset that has masks and "
            "that `hssl seed -d TARGET -w hssl.safetensors` has seeded."
        )
    default = DEFAULT_PLANS + SEEDED_SUFFIX
    if default in found:
        return default
    own = sorted(p.stem for p in folder.glob("*Plans*.json"))
    plans_name = DEFAULT_PLANS if DEFAULT_PLANS in own or not own else own[0]
    seeding = f"`{seed_command(dataset, None, plans_name, configuration)}`"
    remedy = f"Run {'' if own else f'`{preprocess_command(dataset, plans_name, configuration)}`, then '}{seeding}."
    return _the_only(found, folder, f"seeded plans (*{SEEDED_SUFFIX}.json)", remedy)


def _role(content: Any) -> str | None:
    block = content.get("hssl") if isinstance(content, dict) else None
    return block.get("role") if isinstance(block, dict) else None


def _the_only(found: list[str], folder: Path, what: str, remedy: str) -> str:
    if len(found) == 1:
        return found[0]
    if not found:
        raise HSSLError(f"{folder} holds no {what}. {remedy}")
    raise HSSLError(f"{folder} holds several {what}: {', '.join(found)}. Choose one with -p.")

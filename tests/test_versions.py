"""Versions name what makes a result, and ask for nothing that is optional."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version

import pytest

from hssl_nnunet import versions


def test_the_packages_behind_the_benchmarks_numbers_are_named_where_they_are_installed():
    found = versions.versions()
    for name in ("monai", "statsmodels"):
        try:
            assert found[name] == version(name)
        except PackageNotFoundError:
            assert name not in found


def test_a_missing_package_is_told_of_only_if_it_is_needed(monkeypatch: pytest.MonkeyPatch):
    def missing(name: str) -> str:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(versions, "version", missing)
    found = versions.versions()
    assert found["torch"] == found["numpy"] == "not installed"
    assert found.keys().isdisjoint(("monai", "statsmodels"))


def test_nothing_is_imported_to_tell_its_version():
    code = "import sys; from hssl_nnunet.versions import versions; versions(); print(*sys.modules)"
    modules = subprocess.check_output([sys.executable, "-c", code], text=True).split()
    assert {"monai", "scipy", "statsmodels", "torch"}.isdisjoint(modules)

"""What packages register is found by name, imported when it is asked for, and blamed by name."""

from __future__ import annotations

import pytest
from fake_passes import Tidy, installed, point

from prunec.compiler import plugins
from prunec.compiler.errors import PrunecError
from prunec.compiler.pass_base import PASSES


@pytest.fixture(autouse=True)
def install(monkeypatch):
    yield installed(monkeypatch)
    plugins.refresh()


def test_passes_are_imported_when_asked_for(install):
    install(point("tidy", "fakes:Tidy"), point("broken", "no_such_package.sub:X", "acme"))
    assert PASSES.names() == ("broken", "tidy")
    assert PASSES.named("tidy") is Tidy


BAD_PASSES = [
    (
        "not importable",
        [point("tidy", "no_such_package.sub:X", "acme")],
        "the pass 'tidy' of the package 'acme' (no_such_package.sub:X) can't be imported: "
        "ModuleNotFoundError: No module named 'no_such_package'",
    ),
    (
        "no such class",
        [point("tidy", "fakes:Gone", "acme")],
        "the pass 'tidy' of the package 'acme' (fakes:Gone) can't be imported: "
        "AttributeError: module 'fakes' has no attribute 'Gone'",
    ),
    (
        "no pass",
        [point("tidy", "fakes:Budget", "acme")],
        "the pass 'tidy' of the package 'acme' (fakes:Budget) is no subclass of prunec.compiler.pass_base.Pass",
    ),
    (
        "another name",
        [point("tidy", "fakes:Trim", "acme")],
        "the pass 'tidy' of the package 'acme' (fakes:Trim) is registered as 'tidy', but its class says 'trim'",
    ),
    (
        "registered twice",
        [point("tidy", "fakes:Tidy", "prunec"), point("tidy", "other:Tidy", "acme")],
        "the pass 'tidy' is registered by 'acme' (other:Tidy) and 'prunec' (fakes:Tidy)\nhint: uninstall one of them",
    ),
    ("unknown", [point("trim", "fakes:Trim")], "unknown pass 'tidy'\nhint: valid: trim"),
]


@pytest.mark.parametrize(("points", "expected"), [row[1:] for row in BAD_PASSES], ids=[row[0] for row in BAD_PASSES])
def test_a_bad_registration_names_the_package(install, points, expected):
    install(*points)
    with pytest.raises(PrunecError) as caught:
        PASSES.named("tidy")
    assert str(caught.value) == expected


def test_one_package_listed_twice_is_one(install):
    install(point("tidy", "fakes:Tidy", "acme"), point("tidy", "fakes:Tidy", "acme"))
    assert PASSES.named("tidy") is Tidy

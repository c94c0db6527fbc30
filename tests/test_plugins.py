"""What packages register is found by name, imported when it is asked for, and blamed by name."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest
from fake_passes import Tidy, installed, point

from prunec.compiler import plugins
from prunec.compiler.errors import PrunecError
from prunec.compiler.pass_base import PASSES
from prunec.compiler.plugins import Registry


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


class Base:
    """What extensions of a kind have in common."""


class Good(Base):
    name = "good"


class Misnamed(Base):
    name = "other"


NOT_OURS = {
    "a function": (test_one_package_listed_twice_is_one, "is no subclass of"),
    "another class": (int, "is no subclass of"),
    "another name": (Misnamed, "is registered as 'good', but its class says 'other'"),
}


def kind_of(monkeypatch, **named: object) -> Registry:
    """A kind of extension with these, as one package registers them."""
    monkeypatch.setitem(sys.modules, "kinds", SimpleNamespace(**named))
    points = tuple(point(name, f"kinds:{name}", "acme") for name in named)
    monkeypatch.setattr("importlib.metadata.entry_points", lambda *, group: points if group == "acme.kinds" else ())
    plugins.refresh()
    return Registry("acme.kinds", "kind", Base)


def test_any_kind_of_extension_is_found(monkeypatch):
    kinds = kind_of(monkeypatch, good=Good)
    assert kinds.named("good") is Good
    assert dict(kinds.all()) == {"good": Good}
    assert Registry("others", "kind", Base).names() == ()
    with pytest.raises(PrunecError, match="unknown kind 'goud'") as caught:
        kinds.named("goud")
    assert caught.value.hint == "did you mean 'good'?"


@pytest.mark.parametrize(("found", "message"), NOT_OURS.values(), ids=NOT_OURS)
def test_what_is_no_such_extension_is_refused(monkeypatch, found, message):
    kinds = kind_of(monkeypatch, good=found)
    with pytest.raises(PrunecError, match=f"the kind 'good' of the package 'acme'.* {message}"):
        kinds.named("good")
    assert kinds.load("good")[1] is found, "whatever an entry names"


def test_what_is_installed_is_looked_up_once(monkeypatch):
    kinds = kind_of(monkeypatch, good=Good)
    assert kinds.names() == ("good",)
    monkeypatch.setattr("importlib.metadata.entry_points", lambda *, group: ())
    assert kinds.names() == ("good",)
    plugins.refresh()
    assert kinds.names() == ()

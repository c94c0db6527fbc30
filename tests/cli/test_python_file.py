"""What a file of Python defines is read from its text; nothing of it runs."""

from __future__ import annotations

import pytest

from prunec.compiler.cli.python_file import definitions
from prunec.compiler.errors import PlanError

SOURCE = '''\
import nowhere_at_all
from torch import nn

raise SystemExit("this file was run")


def make(depth, *, pretrained=False):
    """A network.

    And more.
    """


class Base(nn.Module):
    def __init__(self, width: int = 8, **more):
        super().__init__()


class Net(Base):
    """Our network."""


class Wrapped(lightning.LightningModule): ...


class Settings:
    """No network."""


class _Hidden(nn.Module): ...


if True:
    class Late(nn.Module): ...
try:
    import fast
except ImportError:
    def slow(): ...


async def waits(): ...
'''


def test_networks_functions_and_classes(tmp_path):
    path = tmp_path / "nets.py"
    path.write_text(SOURCE)
    assert [(each.name, each.kind, each.arguments, each.text) for each in definitions(path)] == [
        ("Base", "network", "(width: int=8, **more)", ""),
        ("Net", "network", "()", "Our network."),
        ("Wrapped", "network", "()", ""),
        ("Late", "network", "()", ""),
        ("make", "function", "(depth, *, pretrained=False)", "A network."),
        ("slow", "function", "()", ""),
        ("Settings", "class", "()", "No network."),
    ]


def test_classes_that_are_derived_from_each_other_end(tmp_path):
    path = tmp_path / "round.py"
    path.write_text("class A(B): ...\nclass B(A): ...\n")
    assert [each.kind for each in definitions(path)] == ["class", "class"]


def test_a_file_that_is_no_python_says_where(tmp_path):
    path = tmp_path / "bad.py"
    path.write_text("x = 1\ndef f(:\n")
    with pytest.raises(PlanError, match="this is no Python: invalid syntax") as caught:
        definitions(path)
    assert (caught.value.at.line, caught.value.at.text) == (2, "def f(:")


@pytest.mark.parametrize("text", [b"x = '\xff'\n", b"x\0y", b"(" * 100_000, b"-" * 200_000 + b"1"])
def test_what_cannot_be_parsed_is_refused(tmp_path, text):
    path = tmp_path / "bad.py"
    path.write_bytes(text)
    with pytest.raises(PlanError):
        definitions(path)

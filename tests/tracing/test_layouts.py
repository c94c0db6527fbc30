"""Attributes are chosen by name and type, for each class of modules once."""

from __future__ import annotations

from torch import nn

from prunec.compiler.tracing.layouts import attributes_that


def test_what_matters_is_asked_once_for_modules_that_look_alike():
    asked = []

    def matters(name: str, kind: type) -> bool:
        asked.append(name)
        return kind is tuple

    chosen = attributes_that(matters)
    wanted = (("kernel_size", tuple), ("stride", tuple), ("padding", tuple), ("dilation", tuple))
    assert set(chosen(nn.Conv2d(3, 8, 3).__dict__)) > set(wanted)
    seen = len(asked)
    assert set(chosen(nn.Conv2d(5, 2, 1).__dict__)) > set(wanted)
    assert len(asked) == seen


def test_an_attribute_of_another_type_or_name_is_another_layout():
    chosen = attributes_that(lambda name, kind: kind is list or name == "odd")
    conv, other = nn.Conv2d(3, 8, 3), nn.Conv2d(3, 8, 3)
    assert chosen(conv.__dict__) == ()
    other.stride = [1, 1]
    assert chosen(other.__dict__) == (("stride", list),)
    other.odd = 3
    assert chosen(other.__dict__) == (("stride", list), ("odd", int))
    assert chosen(conv.__dict__) == ()

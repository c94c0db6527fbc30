"""The cycle collector is off inside, and afterwards as it was."""

from __future__ import annotations

import gc

import pytest

from prunec.compiler.ir.gc_pause import gc_paused


@pytest.fixture(autouse=True)
def as_it_was():
    was_on = gc.isenabled()
    yield
    (gc.enable if was_on else gc.disable)()


@pytest.mark.parametrize("on", [True, False], ids=["on", "off"])
def test_it_is_afterwards_as_it_was(on):
    @gc_paused()
    def fail():
        assert not gc.isenabled()
        with gc_paused():
            assert not gc.isenabled()
        assert not gc.isenabled(), "the inner block changes nothing"
        raise ZeroDivisionError

    (gc.enable if on else gc.disable)()
    with pytest.raises(ZeroDivisionError):
        fail()
    assert gc.isenabled() is on
    assert gc.get_freeze_count() == 0


def test_what_was_made_is_not_looked_at_at_once():
    gc.enable()
    with gc_paused():
        made = [[] for _ in range(1000)]
    young = {id(each) for each in gc.get_objects(generation=0)}
    assert not any(id(each) in young for each in made)

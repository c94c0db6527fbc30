"""What a budget can be set for: each figure is that of the slim program, and a resource is linear in its terms."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from nets import NETS, Made, conv
from oracle import selection
from torch import nn

from prunec.compiler.cost.model import cost_model
from prunec.compiler.cost.resources import TAKES, baseline, resource
from prunec.compiler.emit.python import weights_size
from prunec.compiler.errors import PrunecError
from prunec.compiler.groups.analysis import analyse
from prunec.compiler.pass_base import Context
from prunec.compiler.rewrite.shrink import remove_units
from prunec.compiler.tracing.trace import trace


@pytest.mark.parametrize("name", sorted(NETS))
def test_the_figures_are_those_of_the_slim_program(name):
    net = NETS[name]
    program = trace(net.build(), net.inputs())
    for seed, share in enumerate((0.0, 0.6)):
        keep = selection(analyse(program), seed, share)
        slim, model = remove_units(program, keep), cost_model(program)
        found = {key: resource(key, program, Context()).of(keep) for key in ("macs", "params", "memory", "file_size")}
        assert found["macs"] == model.macs(keep)
        assert found["params"] == model.params(keep)
        assert found["memory"] == model.memory(keep)
        over = found["file_size"] - weights_size(slim)
        assert 0 <= over <= 8 + 8 * len(slim.saved) + indices(program), "it is counted from above"


def indices(program):
    """The bytes of tables of indices, which a rewrite may shorten or drop with what is said of them."""
    bound = {axis.tensor for axis in analyse(program).flow.bindings}
    return sum(
        t.nbytes + 80 for name, t in program.saved.items() if name not in bound and not isinstance(t, nn.Parameter)
    )


def test_a_file_of_some_size_is_known_within_one_percent():
    parts = {"a": conv(3, 64), "bn": nn.BatchNorm2d(64), "b": conv(64, 64), "fc": nn.Linear(64, 10)}
    program = trace(
        Made(parts, lambda m, x: m.fc(m.b(m.bn(m.a(x)).relu()).relu().mean((2, 3)))), (torch.zeros(1, 3, 8, 8),)
    )
    keep = selection(analyse(program), 0, 0.5)
    found = resource("file_size", program, Context()).of(keep)
    assert found == pytest.approx(weights_size(remove_units(program, keep)), rel=0.01)


def test_some_terms_are_those_of_all():
    net = NETS["concat"]
    program = trace(net.build(), net.inputs())
    for name in ("macs", "params", "memory", "file_size"):
        found = resource(name, program, Context())
        widths = found.model.widths(found.model.everything) * 0.5
        which = np.array([2, 0, 2])
        np.testing.assert_array_equal(found.terms.each(widths, which), found.terms.each(widths)[which])
        both = found.terms.each(np.stack([widths, widths * 2], 1), which)
        np.testing.assert_allclose(both[:, 1], found.terms.each(widths * 2)[which])
        np.testing.assert_allclose(both[:, 0], found.terms.each(widths)[which])
        assert tuple(found.units or {"": 1.0}) == TAKES[name]


def test_an_unknown_resource_has_a_hint():
    net = NETS["chain"]
    with pytest.raises(PrunecError, match="unknown resource 'mac'\nhint: did you mean 'macs'"):
        resource("mac", trace(net.build(), net.inputs()), Context())


def test_shares_are_shares_of_the_traced_model():
    net = NETS["chain"]
    traced = trace(net.build(), net.inputs())
    slim = remove_units(traced, selection(analyse(traced), 0, 0.5))
    for name in ("macs", "memory", "file_size"):
        whole = resource(name, traced, Context()).now
        assert baseline(name, slim, Context(traced=traced)) == whole > resource(name, slim, Context()).now
        assert baseline(name, slim, Context()) == resource(name, slim, Context()).now

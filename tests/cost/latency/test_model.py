"""What latency is predicted for a program, and what a compile tells of it.

Nothing here depends on how fast the machine is: times come from a meter whose clock is a formula.
"""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from nets import NETS, Made, conv
from oracle import selection
from timing import NODES, Formula, modelled

from prunec.compiler import compile
from prunec.compiler.cost.latency import model as latency_model_module
from prunec.compiler.cost.latency import table as latency_table
from prunec.compiler.cost.latency.model import kept_units, latency_resource
from prunec.compiler.cost.latency.table import NetworkTime
from prunec.compiler.cost.model import cost_model
from prunec.compiler.cost.resources import TAKES, resource
from prunec.compiler.groups.analysis import analyse
from prunec.compiler.pass_base import Context
from prunec.compiler.report import figures
from prunec.compiler.report.html import report_html
from prunec.compiler.rewrite.shrink import remove_units
from prunec.compiler.tracing.trace import trace
from prunec.models.digits import cnn


@pytest.mark.parametrize("name", sorted(NETS))
def test_the_program_as_it_is_takes_what_was_measured(name):
    program = trace(NETS[name].build(), NETS[name].inputs())
    meter = Formula()
    model = modelled(program, meter)
    found = model.resource()
    assert found.now == pytest.approx(meter.network(program).seconds, rel=1e-9)
    for share in (0.3, 1.0):
        keep = selection(analyse(program), 0, share)
        assert 0 <= found.of(keep) <= found.now * (1 + 1e-9)
    widths = cost_model(program).widths(keep)
    which = np.arange(0, len(model.charges), 2)
    assert found.terms.each(widths, which) == pytest.approx(found.terms.each(widths)[which])
    both = found.terms.each(np.stack([widths, cost_model(program).fixed], 1), which)
    assert both[:, 0] == pytest.approx(found.terms.each(widths, which))
    assert both[:, 1] == pytest.approx(found.terms.each(cost_model(program).fixed, which))
    assert tuple(found.units or {}) == TAKES["latency"]


EXACT = [
    "chain",
    "concat",
    "depthwise",
    "depthwise_multiplier",
    "grouped_transposed",
    "transposed",
    "functional_conv",
    "functional_depthwise",
    "flatten_linear",
    "shared_module",
]


@pytest.mark.parametrize("name", EXACT)
def test_a_slim_program_takes_what_is_predicted(name):
    """The formula is a product of widths, which tables hold exactly: so the prediction is what the slim one takes, but
    for values that have one size and different widths, which share their time."""
    program = trace(NETS[name].build(), NETS[name].inputs())
    meter = Formula()
    found = modelled(program, meter).resource()
    for seed, share in enumerate((0.3, 0.6)):
        keep = selection(analyse(program), seed, share)
        slim = remove_units(program, keep)
        assert found.of(keep) == pytest.approx(meter.network(slim).seconds, rel=0.03)
        assert (kept_units(program, slim) == keep).all()


def test_layers_of_one_shape_are_measured_once():
    made = Made({f"c{i}": conv(8, 8) for i in range(4)}, lambda m, x: m.c3(m.c2(m.c1(m.c0(x)))))
    meter = Formula()
    program = trace(made, (torch.zeros(1, 8, 6, 6),))
    meter.network = lambda program: NetworkTime(NODES, 6.0)
    model = modelled(program, meter)
    assert sum(charge.layer is not None for charge in model.charges) == 4
    # The first reads the image and the last writes the output: the widths that may change are of three kinds.
    assert len(meter.asked) == 3 * latency_table.SWEEPS


def test_the_resource_is_named_as_a_plan_names_it(monkeypatch):
    monkeypatch.setattr(latency_model_module, "Measured", lambda meter: Formula())
    program = trace(cnn().eval(), (torch.zeros(1, 1, 8, 8),))
    found = resource("latency", program, Context())
    assert (found.name, found.whole, found.units) == ("latency", False, {"s": 1.0})
    assert found.now == latency_resource(program, Context()).now


# -- in a compile --------------------------------------------------------------------------------------------------

PLAN = {
    "plan": 1,
    "inputs": [[1, 1, 8, 8]],
    "passes": [{"score": "l1"}, {"select": {"budget": {"latency": "50%"}}}, "shrink"],
}


@pytest.fixture
def formula(monkeypatch):
    monkeypatch.setattr(latency_model_module, "Measured", lambda meter: Formula())


def test_the_report_compares_predicted_and_measured(formula, tmp_path):
    result = compile(cnn((16, 32)).eval(), PLAN)
    assert (
        0.45 < result.report["latency"]["predicted"]["after"] / result.report["latency"]["predicted"]["before"] <= 0.5
    )
    report = result.write(tmp_path / "out")
    assert min(report.latency.measured.before, report.latency.measured.after) > 0
    assert report.to_dict() == json.loads((tmp_path / "out" / "report.json").read_text())
    assert figures.foretold(report)
    assert figures.foretold(report) in report_html(report)
    assert {"predicted latency", "measured latency"} <= {figure.name for figure in figures.figures(report)}


def test_with_an_onnx_file_that_is_what_is_measured(formula, tmp_path):
    report = compile(cnn((16, 32)).eval(), {**PLAN, "export": ["onnx"]}).write(tmp_path / "out")
    assert report.latency.measured == report.onnx.latency
    names = [figure.name for figure in figures.figures(report)]
    assert "predicted latency" in names
    assert "measured latency" not in names


def test_a_budget_in_milliseconds(formula):
    program = trace(cnn((16, 32)).eval(), (torch.zeros(1, 1, 8, 8),))
    now = latency_resource(program, Context()).now
    passes = [{"score": "l1"}, {"select": {"budget": {"latency": f"{600 * now:.6f}ms"}}}, "shrink"]
    found = compile(cnn((16, 32)).eval(), {**PLAN, "passes": passes}).report["latency"]["predicted"]
    assert 0.55 * now < found["after"] <= 0.6 * now


def test_without_such_a_budget_nothing_is_predicted():
    plan = {**PLAN, "passes": [{"score": "l1"}, {"select": {"ratio": 0.5}}, "shrink"]}
    result = compile(cnn((16, 32)).eval(), plan)
    assert "latency" not in result.report
    assert figures.foretold(result.findings) == ""

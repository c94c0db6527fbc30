"""The correlation of criteria with the oracle: the arithmetic, on trained networks, and from the command line."""

from __future__ import annotations

import csv
import math
from pathlib import Path

import numpy as np
import pytest

from prunec.compiler.cli import main as cli
from prunec.compiler.driver.compile import load_program
from prunec.compiler.groups.analysis import analyse
from prunec.compiler.pass_base import Context
from prunec.compiler.plan.plan import Plan
from prunec.models import digits
from prunec.models.data import digits as digit_images
from prunec.passes.calibration.calibration import Calibration
from prunec.passes.studies.rank import ALL, correlations, oracle, tried_units, within_groups

MLP = {
    "model": {
        "factory": "prunec.models.digits:mlp",
        "weights": str(digits.WEIGHTS / "digits_mlp.safetensors"),
    },
    "inputs": [[1, 1, 8, 8]],
}
PLAN = f"""\
plan: 1
model: {{factory: prunec.models.digits:mlp, weights: {MLP["model"]["weights"]}}}
inputs: [[1, 1, 8, 8]]
data: prunec.models.data:digits
passes:
  - score: {{criterion: taylor, samples: 256, normalize: l2}}
"""


def by_hand(figures, truth) -> tuple[float, float]:
    """Spearman's and Kendall's correlation, counted out: mean ranks, and pairs that agree, tau-b."""
    ranks = [[sum(y < x for y in side) + sum(y == x for y in side) / 2 for x in side] for side in (figures, truth)]
    pairs = [(i, j) for i in range(len(truth)) for j in range(i)]
    signs = [[int(side[i] > side[j]) - int(side[i] < side[j]) for i, j in pairs] for side in (figures, truth)]
    told = [sum(sign != 0 for sign in side) for side in signs]
    return np.corrcoef(*ranks)[0, 1], float(np.dot(*signs)) / math.sqrt(told[0] * told[1])


@pytest.mark.parametrize(
    "figures",
    [[0.01, 0.2, 0.05, 0.09], [1.9, 1.2, 2.2, 1.4], [1.0, 1.0, 2.0, 2.0], [0.0, math.inf, 1.0, math.inf]],
    ids=["in order", "against it", "ties", "infinite"],
)
def test_the_arithmetic(figures):
    truth = np.array([0.02, 0.31, 0.04, 0.11])
    (row, raw, _) = correlations("c", {"g": np.array(figures)}, {"g": truth})
    assert (row.spearman, row.kendall) == pytest.approx(by_hand(figures, truth))
    assert (raw.spearman, raw.kendall) == pytest.approx(by_hand(figures, truth))
    assert (row.group, raw.group, row.units) == ("g", ALL, 4)


@pytest.mark.parametrize(
    "figures", [[1.0, 1.0, 1.0], [1.0, 2.0], [1.0, math.nan, 2.0]], ids=["all equal", "too few", "no number"]
)
def test_what_tells_no_order_has_no_correlation(figures):
    rows = list(correlations("c", {"g": np.array(figures)}, {"g": np.arange(float(len(figures)))}))
    assert all(math.isnan(row.spearman) and math.isnan(row.kendall) for row in rows)
    assert math.isnan(within_groups(rows, "spearman"))


def test_normalising_makes_groups_comparable_and_what_is_not_told_is_left_out():
    truth = {"a": np.array([1.0, 2.0, 3.0]), "b": np.array([10.0, 21.0, 33.0]), "c": np.ones(3)}
    figures = {"a": np.array([100.0, 200.0, 300.0]), "b": np.array([1.0, 2.1, 3.3])}
    rows = {(row.group, row.normalize): row for row in correlations("c", figures, truth)}
    assert [rows[name, "none"].spearman for name in ("a", "b")] == pytest.approx([1, 1])
    assert rows[ALL, "none"].spearman < 0
    assert rows[ALL, "l2"].spearman == pytest.approx(1)
    assert rows[ALL, "none"].units == 6


def test_units_are_drawn_by_the_seed():
    program = load_program(Plan.from_dict({"plan": 1, **MLP}))
    free = {group.name: np.flatnonzero(group.free) for group in analyse(program).groups.values() if group.free.any()}
    drawn = tried_units(program, list(analyse(program).groups), 7, Context(seed=1))
    assert {name: units.size for name, units in drawn.items()} == dict.fromkeys(free, 7)
    assert all(set(units) <= set(free[name]) for name, units in drawn.items())
    again = tried_units(program, list(free), 7, Context(seed=1))
    other = tried_units(program, list(free), 7, Context(seed=2))
    assert all((drawn[name] == again[name]).all() for name in free)
    assert any((drawn[name] != other[name]).any() for name in free)
    everything = tried_units(program, list(free), None, Context())
    assert all((everything[name] == free[name]).all() for name in free)


def test_the_oracle_of_drawn_units_is_theirs():
    program = load_program(Plan.from_dict({"plan": 1, **MLP}))
    context, calibration = Context(data=digit_images()), Calibration(samples=64)
    groups = [group.name for group in analyse(program).groups.values() if group.free.any()]
    drawn = tried_units(program, groups, 5, context)
    some, _ = oracle(program, drawn, calibration, context)
    whole, samples = oracle(program, tried_units(program, groups, None, context), calibration, context)
    assert samples == 64
    for name, units in drawn.items():
        np.testing.assert_allclose(some[name], whole[name][units], atol=1e-12)


# -- the command ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("plans")
    (folder / "plan.yaml").write_text(PLAN)
    criteria = "l1,l2,fpgm,taylor,oracle,random,{tile: {columns: 4}},{tile: {columns: 8}}"
    assert cli.run(["rank", str(folder / "plan.yaml"), "--criteria", criteria, "-o", str(folder / "rank")]) == 0
    return folder / "rank"


@pytest.fixture(scope="module")
def table(written) -> dict[tuple[str, str, str], dict[str, str]]:
    with (written / "rank.csv").open() as file:
        return {(row["criterion"], row["group"], row["normalize"]): row for row in csv.DictReader(file)}


def overall(table, criterion: str, how: str = "l2", kind: str = "spearman") -> float:
    return float(table[criterion, "all groups", how][kind])


def test_the_oracle_agrees_with_itself(table):
    for key, row in table.items():
        if key[0] == "oracle":
            assert (float(row["spearman"]), float(row["kendall"])) == pytest.approx((1, 1))
    assert {row["units"] for key, row in table.items() if key[1] == "all groups"} == {"80"}


def test_taylor_is_above_norms_of_weights(table):
    """Measured on 256 images: Spearman 0.87 against 0.67, 0.64 and 0.60; Kendall 0.71 against 0.49, 0.47 and 0.43."""
    for kind in ("spearman", "kendall"):
        norms = [overall(table, name, kind=kind) for name in ("l1", "l2", "fpgm")]
        assert overall(table, "taylor", kind=kind) > max(norms) + 0.1


def test_random_is_near_zero(table):
    """Of 80 units, a correlation by chance has a standard deviation of 0.11."""
    assert abs(overall(table, "random", "none")) < 0.33


def test_criteria_of_one_name_are_told_apart(table):
    assert {key[0] for key in table if key[0].startswith("tile")} == {
        'tile {"columns":4}',
        'tile {"columns":8}',
    }


def test_the_page_and_the_picture(written):
    assert {path.name for path in written.iterdir()} == {".prunec-manifest.json", "rank.csv", "rank.html", "rank.png"}
    assert "taylor" in (written / "rank.html").read_text()
    assert (written / "rank.png").read_bytes().startswith(b"\x89PNG")


def test_the_console_lists_the_best_first(written, tmp_path, capsys):
    plan = str(written.parent / "plan.yaml")
    arguments = ["--criteria", "[random, taylor]", "--units", "12", "--samples", "50", "--split", "val"]
    assert cli.run(["rank", plan, *arguments, "--groups", "layers.fc1", "-o", str(tmp_path / "r")]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert " ".join(lines[0]) == "MLP: rank correlation with the oracle over 12 units, on 50 samples"
    assert [line[0] for line in lines[2:4]] == ["taylor", "random"]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--criteria", "l1,taylr"], "--criteria:1:5: criteria[1] must be the name of a criterion, got 'taylr'\n"),
        (["--criteria", "{tile: {cols: 4}}"], "--criteria:1:10: unknown key 'cols'\n"),
        (["--criteria", " "], "--criteria:1:1: criteria must be a list of at least 1, got []\n"),
        (["--groups", "layers.fc3"], "nothing may go in the groups that were asked for\n"),
        (["--set", "data=none:here"], "--set:1:6: no module named 'none'\n"),
        (["--units", "1"], "Usage: "),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_arguments_are_told(tmp_path, monkeypatch, capsys, arguments, expected):
    monkeypatch.chdir(tmp_path)
    Path("plan.yaml").write_text(PLAN)
    assert cli.run(["rank", "plan.yaml", *arguments]) == 1
    out, err = capsys.readouterr()
    assert err.startswith(expected)
    assert out == ""
    assert not Path("rank").exists()

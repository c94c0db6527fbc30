"""The page: complete, self-contained, safe with any name, and readable for few groups and for many."""

from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest
from example_reports import FULL, rounds

from prunec.compiler import compile
from prunec.compiler.ir.program import Note
from prunec.compiler.report.html import SKYLINE, Rows, report_html, skyline, table_page
from prunec.compiler.report.report import Change, Evaluation
from prunec.models.convnet import convnet
from prunec.models.data import random
from prunec.models.digits import cnn

VOID = {"meta", "rect", "br", "img", "link", "input"}


class Page(HTMLParser):
    """The tags with their attributes, and the text; unbalanced tags are an error."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.open: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] != "style" and data.strip():
            self.texts.append(" ".join(data.split()))

    def named(self, tag: str, css: str = "") -> list[dict[str, str | None]]:
        return [found for name, found in self.tags if name == tag and css in (found.get("class") or "").split(" ")]


@pytest.fixture(scope="module")
def report():
    plan = {
        "plan": 1,
        "inputs": [[1, 1, 8, 8]],
        "passes": [{"score": "l1"}, {"select": {"ratio": 0.5, "protect": ["conv1"]}}, "shrink", "fold_bn"],
    }
    return compile(cnn((16, 32)), plan, data=random((1, 8, 8), samples=20)).findings


@pytest.fixture
def full(report):
    """With what is measured when the artifacts are written."""
    return replace(report, origin=FULL.origin, weights=FULL.weights, onnx=FULL.onnx)


def test_everything_that_was_measured_has_a_card(full):
    page = Page(report_html(full))
    assert len(page.named("div", "card")) == 7
    for text in ("Channels of every group", "Multiplications, layer by layer", "Passes", "Left alone, and why"):
        assert text in page.texts
    for text in ("58.6 kB", "was 118 kB", "-50.3%", "65.0 µs", "-50.0%", "2.5e-07", "3.1e-07"):
        assert text in page.texts


def test_what_wrote_the_onnx_file_is_told(full):
    assert (
        "Opset 20, IR version 10; takes any batch size. Written directly from the graph."
        in Page(report_html(full)).texts
    )
    export = replace(full.onnx.export, writer="torch", fallback="GRU at 'steps': the direct writer doesn't know it")
    page = Page(report_html(replace(full, onnx=replace(full.onnx, export=export))))
    assert any("Written by torch's exporter: GRU at 'steps'" in text for text in page.texts)


def test_what_was_not_measured_has_none(report):
    page = Page(report_html(replace(report, metric=None)))
    assert len(page.named("div", "card")) == 3
    assert "ONNX file" not in page.texts


def test_what_nobody_may_overlook_stands_in_a_box_of_its_own(report):
    page = Page(report_html(replace(report, alarms=("accuracy < 10%",), warnings=("a warning",))))
    assert len(page.named("div", "alarm")) == 1
    assert len(page.named("div", "warning")) == 2
    assert "accuracy < 10%" in page.texts
    assert not Page(report_html(report)).named("div", "alarm")


def test_why_there_is_no_accuracy(report):
    page = Page(report_html(replace(report, metric=None, evaluation=Evaluation("test", 8, "no labels"))))
    assert "accuracy: not measured: no labels" in page.texts


def test_where_it_comes_from_and_how_it_is_used(full):
    page = Page(report_html(full))
    text = " ".join(page.texts)
    for part in (
        "plans/small.yaml",
        "nets:small",
        f"SHA-256 {'ab' * 32}",
        "2026-11-27 03:11 UTC",
        "torch 2.9.0",
        "samples of the split",
    ):
        assert part in text
    assert "from model import load model = load() outputs = model(x)" in text


def test_every_value_of_the_checks_has_its_name_for_narrow_pages(full):
    page = Page(report_html(full))
    cells = [found["data-name"] for tag, found in page.tags if tag == "td" and "data-name" in found]
    assert len(cells) == 7 * len(full.passes)
    assert cells[:7] == ["#", "pass", "time", "check", "MACs after", "parameters after", "result of the check"]


@pytest.mark.parametrize(("count", "wide", "narrow"), [(7, 7, 7), (24, 24, 24), (75, 75, 19), (150, 75, 19)])
def test_as_many_nodes_are_named_as_fit(count, wide, narrow):
    columns = skyline(Change({f"layer{i}": 10 for i in range(count)}, {}))
    assert sum(column.label != "none" for column in columns) == wide
    assert sum(column.label == "" for column in columns) == narrow


def test_a_table_page_holds_its_picture_and_shows_names_as_text():
    table = Rows("Worst first", ("group", "lost"), [("<b>conv1</b>", "1 pt")], ("lost",))
    page = Page(table_page("Net: a study", "On 5 samples.", b"png", [table]))
    assert [each["src"] for each in page.named("img")] == ["data:image/png;base64,cG5n"]
    assert "b" not in {tag for tag, _ in page.tags}
    assert [found.get("class") for tag, found in page.tags if tag == "td"] == [None, "n"]
    for text in ("Net: a study", "On 5 samples.", "Worst first", "<b>conv1</b>"):
        assert text in page.texts


def test_a_compile_without_passes_has_a_page():
    report = compile(convnet(), {"plan": 1, "inputs": [[1, 1, 28, 28]]}).findings
    page = Page(report_html(report))
    assert "Passes" not in page.texts
    assert "+0.0%" in page.texts


def test_the_page_needs_nothing_from_elsewhere(full):
    text = report_html(full)
    assert not re.search(r"https?:|\bsrc=|@import|url\(|<script|<link", text)
    assert "default-src 'none'" in text


def test_names_and_reasons_are_text_and_never_markup(full):
    hostile = replace(
        full,
        model="<script>alert(1)</script>",
        groups=(replace(full.groups[0], name='"><img src=x onerror=alert(1)>'), *full.groups[1:]),
        warnings=("weights < & > differ",),
        passes=(replace(full.passes[0], notes=(Note("<b>fc</b>", "<i>because</i>"),)), *full.passes[1:]),
    )
    page = Page(report_html(hostile))
    assert not {"script", "img"} & {tag for tag, _ in page.tags}
    for text in ("<script>alert(1)</script>", "weights < & > differ", "<b>fc</b>", "<i>because</i>"):
        assert text in page.texts


def test_every_group_has_its_bar(report):
    page = Page(report_html(report))
    bars = page.named("div", "bar")
    assert [bar["title"] for bar in bars] == [
        "conv1: 16 of 16 channels",
        "block1.conv1: 8 of 16 channels",
        "conv2: 16 of 32 channels",
        "block2.conv1: 16 of 32 channels",
        "fc: 10 of 10 channels; 10 of 10 units: reaches the model's output",
    ]
    assert "many" not in str(page.named("div", "bars")[0]["class"])


def test_many_groups_stand_in_columns(full):
    groups = tuple(replace(full.groups[i % 5], name=f"layer{i}") for i in range(150))
    page = Page(report_html(replace(full, groups=groups)))
    assert len(page.named("div", "bar")) == 150
    assert page.named("div", "many")


def test_the_skyline_has_a_column_for_each_node_in_the_graphs_order():
    columns = skyline(Change({"a": 100, "b": 50, "gone": 10}, {"a": 25, "b": 50, "new": 5}))
    assert [(c.name, c.before, c.after) for c in columns] == [
        ("a", 100, 25),
        ("b", 50, 50),
        ("gone", 10, 0),
        ("new", 0, 5),
    ]
    width, height = SKYLINE
    assert [c.tall for c in columns] == [height, height / 2, height / 10, 0]
    assert columns[0].short == height / 4
    assert columns[-1].x + columns[-1].width <= width


def test_rounds_are_drawn():
    page = Page(report_html(rounds(4)))
    assert "Rounds of repeat" in page.texts
    assert len(page.named("polyline")) == 2
    assert len(page.named("line", "dot")) == 10
    assert len(page.named("line", "lost")) == 2
    assert len(page.named("line", "bound")) == 1
    for text in ("accuracy", "99.00%", "95.00%", "MACs left", "100.00%", "round 4: 95.00%, given up"):
        assert text in page.texts
    numbers = [found for tag, found in page.tags if tag == "tr"]
    assert len(numbers) > 4
    assert "The numbers of all 4 rounds" in page.texts
    assert any("2 passes, 3.13 s" in text for text in page.texts)
    cells = [found["data-name"] for tag, found in page.tags if tag == "td" and "data-name" in found]
    assert len(cells) == 7 * 2


def test_rounds_without_a_metric_have_one_curve():
    report = rounds(3)
    went = report.passes[0].rounds
    rows = tuple(replace(row, metric=None) for row in went.rows)
    bare = replace(report.passes[0], rounds=replace(went, rows=rows, metric="", floor=None))
    page = Page(report_html(replace(report, passes=(bare, *report.passes[1:]))))
    assert len(page.named("polyline")) == 1
    assert "accuracy" not in page.texts


def test_a_plan_without_rounds_has_no_such_section(report):
    assert not any(text.startswith("Rounds of") for text in Page(report_html(report)).texts)

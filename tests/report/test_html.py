"""The page: complete, self-contained, safe with any name, and readable for few groups and for many."""

from __future__ import annotations

import copy
import re
from html.parser import HTMLParser

import pytest

from prunec.compiler import compile
from prunec.compiler.report import figures
from prunec.compiler.report.html import SKYLINE, report_html, skyline
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
    return compile(cnn((16, 32)), plan, data=random((1, 8, 8), samples=20)).report


@pytest.fixture
def full(report):
    """With what `save` adds."""
    return {
        **copy.deepcopy(report),
        "weights": {"before": 117_912, "after": 58_600},
        "onnx": {
            "opset": 20,
            "ir_version": 10,
            "bytes": {"before": 120_000, "after": 60_000},
            "dynamic_batch": True,
            "static_reason": "",
            "differences": {"1": 2.5e-07, "3": 3.1e-07},
            "max_difference": 3.1e-07,
            "float64_note": "",
            "latency": {"before": 0.00013, "after": 0.000065},
        },
    }


def test_everything_that_was_measured_has_a_card(full):
    page = Page(report_html(full))
    assert len(page.named("div", "card")) == 7
    for text in ("Channels of every group", "Multiplications, layer by layer", "Passes", "Left alone, and why"):
        assert text in page.texts
    for text in ("58.6 kB", "was 118 kB", "-50.3%", "65.0 µs", "-50.0%", "2.5e-07", "3.1e-07"):
        assert text in page.texts


def test_what_was_not_measured_has_none(report):
    bare = {key: value for key, value in report.items() if key != "accuracy"}
    page = Page(report_html(bare))
    assert len(page.named("div", "card")) == 3
    assert "ONNX file" not in page.texts


def test_a_compile_without_passes_has_a_page():
    report = compile(convnet(), {"plan": 1, "inputs": [[1, 1, 28, 28]]}).report
    page = Page(report_html(report))
    assert "Passes" not in page.texts
    assert "+0.0%" in page.texts


def test_the_page_needs_nothing_from_elsewhere(full):
    text = report_html(full)
    assert not re.search(r"https?:|\bsrc=|@import|url\(|<script|<link", text)
    assert "default-src 'none'" in text


def test_names_and_reasons_are_text_and_never_markup(full):
    full["model"] = "<script>alert(1)</script>"
    full["groups"][0]["name"] = '"><img src=x onerror=alert(1)>'
    full["warnings"] = ["weights < & > differ"]
    full["passes"][0]["notes"] = [{"subject": "<b>fc</b>", "reason": "<i>because</i>"}]
    page = Page(report_html(full))
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
    groups = full["groups"]
    full["groups"] = [{**groups[i % 5], "name": f"layer{i}"} for i in range(150)]
    page = Page(report_html(full))
    assert len(page.named("div", "bar")) == 150
    assert page.named("div", "many")


def test_the_skyline_has_a_column_for_each_node_in_the_graphs_order():
    columns = skyline({"before": {"a": 100, "b": 50, "gone": 10}, "after": {"a": 25, "b": 50, "new": 5}})
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


@pytest.mark.parametrize(
    ("text", "value", "expected"),
    [
        (figures.count, 125_485_696, "125 M"),
        (figures.count, 5_210, "5.21 k"),
        (figures.count, 999, "999"),
        (figures.count, 0, "0"),
        (figures.count, 4_089_200_000, "4.09 G"),
        (figures.size, 117_912, "118 kB"),
        (figures.size, 17, "17 B"),
        (figures.duration, 0.0000542, "54.2 µs"),
        (figures.duration, 14.6, "14.6 s"),
        (figures.duration, 0.0, "0 µs"),
        (figures.duration, 2.0, "2 s"),
        (figures.count, 5_000, "5.00 k"),
        (figures.percent, 0.99444, "99.44%"),
    ],
)
def test_figures_in_words(text, value, expected):
    assert text(value) == expected


def test_a_gain_is_known_from_a_loss(full):
    better = {figure.name: figure.better for figure in figures.figures(full)}
    full["accuracy"] = {"before": 0.9, "after": 0.9}
    assert better["MACs"] is True
    assert {f.name: f.better for f in figures.figures(full)}["accuracy"] is None
    full["accuracy"] = {"before": 0.9, "after": 0.8}
    assert {f.name: (f.better, f.change) for f in figures.figures(full)}["accuracy"] == (False, "-10.00 points")


def test_notes_are_gathered_by_their_reason():
    notes = [{"subject": s, "reason": r} for s, r in (("a", "x"), ("b", "y"), ("c", "y"))]
    assert list(figures.gathered(notes)) == [("y", ["b", "c"]), ("x", ["a"])]

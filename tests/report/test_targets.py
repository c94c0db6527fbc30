"""The table of exports: sizes, differences, times of both models, files in int8, and what failed with its way out."""

from __future__ import annotations

from dataclasses import replace

from example_reports import FULL

from prunec.compiler.report.console import show_report
from prunec.compiler.report.html import report_html
from prunec.compiler.report.targets import COLUMNS, target_columns, target_lines, target_rows, tells


def test_a_row_for_each_target_and_for_its_files_in_int8():
    rows = target_rows(FULL.targets)
    assert rows == [
        (
            "onnx",
            "model.onnx",
            "120 kB -> 60.0 kB",
            "3.1e-07",
            "130 µs -> 65.0 µs",
            "100 µs -> 50.0 µs",
            "onnxruntime 1.31.1",
        ),
        ("  int8", "model.int8.onnx", "20.0 kB", "", "40.0 µs", "", "accuracy 98.00% -> 97.50%"),
        ("coreml", "model.mlpackage", "70.0 kB", "not executed", "", "", "coremltools 9.0"),
        ("ncnn", "failed", "", "", "", "", "ncnn"),
    ]
    assert {len(row) for row in rows} == {len(COLUMNS)}


def test_files_in_int8_that_can_not_be_run_are_told_so():
    onnx, coreml, _ = FULL.targets
    _, row = target_rows((replace(coreml, int8=replace(onnx.int8, latency=(), before=None, after=None)),))
    assert row == ("  int8", "model.int8.onnx", "20.0 kB", "not executed", "", "", "")


def test_a_batch_that_the_plan_does_not_name_has_a_column():
    onnx, coreml, ncnn = FULL.targets
    assert target_columns(FULL.targets) == COLUMNS
    assert target_columns([replace(onnx, batch=4, example=4)]) == COLUMNS
    reports = onnx, replace(coreml, batch=1, example=4), ncnn
    assert target_columns(reports) == ("target", "file", "batch", *COLUMNS[2:])
    assert [row[:3] for row in target_rows(reports)] == [
        ("onnx", "model.onnx", ""),
        ("  int8", "model.int8.onnx", ""),
        ("coreml", "model.mlpackage", "1"),
        ("ncnn", "failed", ""),
    ]
    assert '<th class="n">batch</th>' in report_html(replace(FULL, targets=reports))


def test_what_the_table_has_no_room_for():
    assert target_lines(FULL.targets) == [
        "coreml: not executed: it runs on macOS alone",
        "ncnn: no form of erfinv; it begins with head (Erfinv)",
        "hint: leave ncnn out of the exports",
    ]


def test_one_onnx_file_needs_no_table():
    (onnx, *_) = FULL.targets
    assert not tells(replace(FULL, targets=(replace(onnx, int8=None),)))
    assert not tells(replace(FULL, targets=()))
    assert tells(replace(FULL, targets=(onnx,)))
    assert tells(replace(FULL, targets=(replace(onnx, int8=None, error="no"),)))
    assert tells(replace(FULL, onnx=None, targets=(replace(onnx, int8=None),)))


def test_console_and_page_show_it(tmp_path, capsys):
    (tmp_path / "model.mlpackage").mkdir()
    show_report(FULL, tmp_path)
    shown = capsys.readouterr().out
    assert "120 kB -> 60.0 kB" in shown
    assert "hint: leave ncnn out of the exports" in shown
    assert "what ncnn's tools printed:\nignore erfinv" in shown
    assert "model.mlpackage" in shown.splitlines()[-3]
    page = report_html(FULL)
    assert "<h2>Runtimes</h2>" in page
    assert "100 µs -&gt; 50.0 µs" in page
    assert "no form of erfinv" in page
    assert [target.target for target in FULL.failed] == ["ncnn"]

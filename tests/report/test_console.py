"""What the console prints: lines as they stand, errors in parts, tables whole."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

from example_reports import FULL, rounds
from rich.text import Text

from prunec.compiler.errors import PlanError, Span, VerifyError
from prunec.compiler.report.console import few, made_table, say, show_bug, show_error, show_report, table
from prunec.compiler.report.report import Evaluation


def test_text_is_no_markup_and_is_not_broken(capsys):
    line = "[bold]x[/bold] :key: " + "word " * 60
    say(line)
    assert capsys.readouterr().out == line + "\n"


def test_an_error_is_printed_as_it_words_itself(capsys):
    error = PlanError("no [such] key", at=Span("plan.yaml", 1, 3, 2, "  ab: 1"), hint="write a")
    show_error(error)
    printed = capsys.readouterr()
    assert (printed.out, printed.err) == ("", f"{error}\n")


def test_a_fault_of_the_compiler_is_owned(capsys):
    show_error(VerifyError("it differs"))
    assert capsys.readouterr().err == "it differs\nthis is a bug in prunec or in a pass; nothing was written\n"


def raised() -> Exception:
    try:
        raise KeyError("first\nsecond")
    except KeyError as error:
        return error


def test_the_traceback_of_a_bug_goes_to_a_file(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    show_bug(raised(), debug=False)
    printed = capsys.readouterr().err
    assert printed.startswith("this is a bug in prunec: KeyError: ")
    found = re.search(r"this traceback: (\S+)", printed)
    assert found is not None
    assert "in raised" in Path(found[1]).read_text()


def test_or_is_shown_when_debugging(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    show_bug(raised(), debug=True)
    printed = capsys.readouterr().err
    assert "in raised" in printed
    assert printed.index("Traceback") < printed.index("this is a bug")
    assert not list(tmp_path.iterdir())


def test_numbers_stand_to_the_right(capsys):
    table("a title", ("name", "size"), [("one", "1"), ("three", Text("1,000"))], right=("size",))
    lines = [line.rstrip() for line in capsys.readouterr().out.splitlines()]
    assert lines == ["a title", "name      size", "one          1", "three    1,000"]
    assert made_table("", ("a",), []).title is None


def test_piped_tables_cut_and_break_nothing(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    name = "layer1.0." * 30 + "conv"
    table("", ("name", "why"), [(name, "because " * 40), ("b", "c")])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3
    assert lines[1].startswith(name)
    assert not any(line != line.rstrip() for line in lines)


def test_on_a_terminal_names_are_wrapped_and_never_cut(capsys, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "40")
    name = "".join(chr(ord("a") + i % 26) for i in range(200))
    table("", ("name", "why"), [(name, "x")])
    out = re.sub(r"\x1b\[[\d;]*m", "", capsys.readouterr().out)
    assert max(map(len, out.splitlines())) <= 40
    assert name in "".join(line.split(" ")[0] for line in out.splitlines()[1:])


def test_alarms_come_last_and_loud(capsys, tmp_path):
    show_report(replace(FULL, evaluation=Evaluation("test", 8, "no labels")), tmp_path)
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == "WARNING: accuracy fell"
    assert "warning: weights differ" in lines
    assert "accuracy: not measured: no labels" in lines


def test_lists_of_names_are_whole_where_nobody_watches(monkeypatch):
    names = ["a", "b", "c"]
    assert few(names, 2) == "a, b, c"
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert few(names, 2) == "a, b and 1 more"
    assert few(names, 3) == "a, b, c"


def printed(report, tmp_path, capsys) -> list[str]:
    show_report(report, tmp_path)
    return [re.sub("  +", "  ", line.strip()) for line in capsys.readouterr().out.splitlines()]


def test_each_round_is_a_line_below_its_pass(capsys, tmp_path):
    lines = printed(rounds(), tmp_path, capsys)
    first = lines.index("pass  time  did  check")
    assert lines[first + 1 : first + 5] == [
        "repeat  3 s  3 rounds, 20 units removed",
        "round 1  1 s  10 units removed, MACs 80.0%, accuracy 98.00%"
        "  differs by 1.0e-07 at most (float32, batches of 2 and 3)",
        "round 2  1 s  10 units removed, MACs 60.0%, accuracy 97.00%"
        "  differs by 2.0e-07 at most (float32, batches of 2 and 3)",
        "round 3  1 s  10 units removed, MACs 40.0%, accuracy 96.00%, given up"
        "  differs by 3.0e-07 at most (float32, batches of 2 and 3)",
    ]
    assert lines[first + 5].startswith("shrink  ")
    assert "repeat: round 3: accuracy is 96.00%, below the floor of 97.00%: it is given up" in lines


def test_of_many_rounds_the_first_and_the_last_are_shown(capsys, tmp_path):
    lines = printed(rounds(40, given_up=False), tmp_path, capsys)
    names = [line.split("  ")[0] for line in lines if line.startswith(("round ", "32 more"))]
    assert names == [*(f"round {n}" for n in (1, 2, 3, 4)), "32 more", *(f"round {n}" for n in (37, 38, 39, 40))]
    assert len([line for line in printed(rounds(9), tmp_path, capsys) if line.startswith("round ")]) == 9


def test_what_every_round_left_alone_is_told_once(capsys, tmp_path):
    assert printed(rounds(5), tmp_path, capsys).count("score: fc: has no scale") == 1

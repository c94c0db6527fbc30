"""A pytest plugin: tests of passes as text, in files that end in `.case`.

    [case drops_a_middle_identity] eliminate
    program Model {
      input %x : f32[1, 3]
      module same = Identity()
      %same = same(%x) : f32[1, 3]
      return %same
    }
    [out]
    program Model {
      input %x : f32[1, 3]
      return %x
    }

The header's tail is an entry of a plan's `passes`, or a list of entries that run in order; without one the program is
only read and written. After `[out]` stands what must come out: a program or `unchanged`, with a line
`declined: SUBJECT: REASON` for every note that must be among the passes' notes; or `error: MESSAGE` alone. A rewriting
pass is verified as in a compile.

`pytest --update` writes what came out into the file, to be reviewed like code. The plugin comes with the package, so
another package tests its passes by putting `.case` files among its tests. This module imports pytest alone: it is
loaded into every test run of an environment that has `prunec`.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from prunec.compiler.ir.program import Note, Program


_CASE = re.compile(r"\[case (?P<name>\w+)\](?P<passes>.*)")
_OUT = "[out]"
_UNCHANGED = "unchanged"
_DECLINED = "declined: "
_ERROR = "error: "
_REWRITTEN = pytest.StashKey[list[str]]()


@dataclass(frozen=True)
class Case:
    """One case of a file; the lines are those of the file."""

    name: str
    passes: str
    given: str
    expected: str
    lines: tuple[int, int, int]
    """Where the header and `[out]` stand and the case ends, from 0."""


@dataclass(frozen=True)
class Outcome:
    """What running a case gave; `given` is the canonical text of the program that went in."""

    given: str
    result: str = ""
    notes: tuple[str, ...] = ()
    error: str | None = None

    def section(self, expected: str) -> str:
        """What stands after `[out]`; notes beside a changed program are kept where the old text had some."""
        if self.error is not None:
            return f"{_ERROR}{self.error}\n"
        changed = self.result != self.given
        body = self.result if changed else f"{_UNCHANGED}\n"
        if changed and f"\n{_DECLINED}" not in f"\n{expected}":
            return body
        declined = "".join(f"{_DECLINED}{note}\n" for note in self.notes)
        return declined if declined and not changed else body + declined


class CaseError(Exception):
    """A case failed; the message is the whole report."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update", action="store_true", help="rewrite the [out] sections of the .case files that differ")


def pytest_collect_file(file_path: Path, parent: pytest.Collector) -> pytest.Collector | None:
    return CaseFile.from_parent(parent, path=file_path) if file_path.suffix == ".case" else None


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    for line in config.stash.get(_REWRITTEN, []):
        terminalreporter.write_line(f"rewrote {line}")


class CaseFile(pytest.File):
    """A file of cases."""

    def collect(self) -> Iterator[pytest.Item]:
        try:
            cases = parse_cases(self.path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise self.CollectError(f"{self.path}:{error}") from error
        for case in cases:
            yield CaseItem.from_parent(self, name=case.name, case=case)


class CaseItem(pytest.Item):
    """One case as a test."""

    def __init__(self, *, case: Case, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.case = case

    def runtest(self) -> None:
        outcome = run_case(self.case, str(self.path))
        complaint = compare(self.case, outcome)
        if complaint is None:
            return
        if not self.config.getoption("--update"):
            raise CaseError(complaint)
        update(self.path, self.case, outcome)
        self.config.stash.setdefault(_REWRITTEN, []).append(self.nodeid)

    def repr_failure(self, excinfo: pytest.ExceptionInfo[BaseException], style: Any = None) -> Any:
        if isinstance(excinfo.value, CaseError):
            return str(excinfo.value)
        return super().repr_failure(excinfo, style)

    def reportinfo(self) -> tuple[Path, int, str]:
        return self.path, self.case.lines[0], f"case {self.name}"


def parse_cases(text: str) -> list[Case]:
    """The cases of a file's text. Raises `ValueError` on another form; its message begins with the line's number."""
    lines = text.splitlines(keepends=True)
    starts = [number for number, line in enumerate(lines) if line.startswith("[case")]
    for number, line in enumerate(lines[: min(starts, default=len(lines))]):
        if line.split("#")[0].strip():
            raise ValueError(f"{number + 1}: expected '[case NAME] PASS', got '{line.strip()}'")
    cases: dict[str, Case] = {}
    for start, end in pairwise([*starts, len(lines)]):
        case = _parse_case(lines, start, end)
        if case.name in cases:
            raise ValueError(f"{start + 1}: expected a new name, got the case '{case.name}' a second time")
        cases[case.name] = case
    return list(cases.values())


def _parse_case(lines: list[str], start: int, end: int) -> Case:
    match = _CASE.fullmatch(lines[start].rstrip())
    if match is None:
        raise ValueError(f"{start + 1}: expected '[case NAME] PASS', got '{lines[start].strip()}'")
    outs = [number for number in range(start, end) if lines[number].strip() == _OUT]
    if len(outs) != 1:
        raise ValueError(f"{start + 1}: expected one line '{_OUT}' in the case '{match['name']}', got {len(outs)}")
    given, expected = "".join(lines[start + 1 : outs[0]]), "".join(lines[outs[0] + 1 : end])
    return Case(match["name"], match["passes"].strip(), given, expected, (start, outs[0], end))


def run_case(case: Case, file: str) -> Outcome:
    """Read the program, run the passes, write the result; what `prunec` refuses on purpose is an outcome too."""
    from prunec.compiler.errors import PrunecError, TextError, VerifyError  # noqa: PLC0415  (the plugin must stay light)
    from prunec.compiler.text.parser import from_text  # noqa: PLC0415
    from prunec.compiler.text.printer import to_text  # noqa: PLC0415

    given = case.given
    try:
        program = from_text("\n" * (case.lines[0] + 1) + given, file)  # errors count the file's lines
    except TextError as error:
        if not case.expected.startswith(_ERROR):  # a slip of the case's author, which no update may bless
            raise CaseError(str(error)) from error
        return Outcome(given, error=error.message)
    try:
        given = _round_trip(to_text(program))
        program, notes = _run_passes(program, _plan_entries(case, file))
        result = _round_trip(to_text(program))
    except VerifyError:  # a bug in a pass is never what a case expects
        raise
    except PrunecError as error:
        return Outcome(given, error=error.message)
    return Outcome(given, result, tuple(map(str, notes)))


def _plan_entries(case: Case, file: str) -> list[Any]:
    """The header's tail as the list that a plan has. Raises `CaseError` where it isn't YAML."""
    from prunec.compiler.errors import PlanError  # noqa: PLC0415  (the plugin must stay light)
    from prunec.compiler.plan.source import parse  # noqa: PLC0415

    try:
        entries = parse(case.passes, file).data
    except PlanError as error:  # a slip of the case's author, which no update may bless
        raise CaseError(f"{file}:{case.lines[0] + 1}: the case's header: {error.message}") from error
    if entries is None:
        return []
    return entries if isinstance(entries, list) else [entries]


def _run_passes(program: Program, entries: list[Any]) -> tuple[Program, tuple[Note, ...]]:
    """Run the passes in order, and verify those that rewrite; with the notes of all."""
    from prunec.compiler.errors import PassError  # noqa: PLC0415  (the plugin must stay light)
    from prunec.compiler.pass_base import Context  # noqa: PLC0415
    from prunec.compiler.plan.plan import Plan  # noqa: PLC0415
    from prunec.compiler.verify.verify import verify  # noqa: PLC0415

    notes: tuple[Note, ...] = ()
    for entry in Plan.from_dict({"plan": 1, "passes": entries}).passes:
        before, made = program, entry.pass_
        missing = sorted(made.required() - program.facts.keys())
        if missing:
            raise PassError(
                f"pass '{made.name}' needs {missing[0]}, which neither the program nor a pass before it gives"
            )
        result = made.run(before, Context())
        program, notes = result.program, (*notes, *result.notes)
        if made.rewrites:
            verify(program, made.reference(before, program), pass_name=made.name)
    return program, notes


def _round_trip(text: str) -> str:
    """The text; raises `CaseError` where reading and writing it gives another."""
    from prunec.compiler.text.parser import from_text  # noqa: PLC0415
    from prunec.compiler.text.printer import to_text  # noqa: PLC0415  (the plugin must stay light)

    again = to_text(from_text(text))
    if again != text:
        raise CaseError("the text of the program doesn't read as itself:\n" + _diff(text, again, "written", "read"))
    return text


def compare(case: Case, outcome: Outcome) -> str | None:
    """What is wrong with a case, as a report; `None` where all is as expected."""
    given, expected = _bare(case.given), _bare(case.expected)
    if outcome.error is None and given != outcome.given:
        return "the program isn't in canonical form:\n" + _diff(given, outcome.given, "given", "canonical")
    lines = expected.splitlines(keepends=True)
    declined = [line for line in lines if line.startswith(_DECLINED)]
    body = "".join(line for line in lines if not line.startswith(_DECLINED)) or f"{_UNCHANGED}\n"
    missing = [line for line in declined if line.removeprefix(_DECLINED).rstrip() not in outcome.notes]
    got = outcome.section("")
    got_body = f"{_UNCHANGED}\n" if got.startswith(_DECLINED) else got
    if expected and body == got_body and not missing:
        return None
    return "what came out isn't what was expected:\n" + _diff(expected, outcome.section(expected), "expected", "got")


def _bare(section: str) -> str:
    """A section without comments and empty lines."""
    from prunec.compiler.text.parser import without_comment  # noqa: PLC0415  (the plugin must stay light)

    lines = (line if line.startswith((_DECLINED, _ERROR)) else without_comment(line) for line in section.splitlines())
    return "".join(f"{line.rstrip()}\n" for line in lines if line.strip())


def _diff(old: str, new: str, old_name: str, new_name: str) -> str:
    lines = difflib.unified_diff(old.splitlines(), new.splitlines(), old_name, new_name, n=3, lineterm="")
    return "\n".join(lines)


def update(path: Path, case: Case, outcome: Outcome) -> None:
    """Write the outcome into the file. Comments stay before a case, and in a section that was right already."""
    text = path.read_text(encoding="utf-8")
    now = next(found for found in parse_cases(text) if found.name == case.name)  # earlier updates moved the lines
    lines = text.splitlines(keepends=True)
    header, out, end = now.lines
    right = outcome.error is not None or _bare(now.given) == outcome.given
    given = lines[header + 1 : out] if right else [outcome.given]
    kept = end
    while kept > out + 1 and not _bare(lines[kept - 1]):
        kept -= 1
    new = [*lines[: header + 1], *given, lines[out], outcome.section(now.expected), *lines[kept:]]
    path.write_text("".join(new), encoding="utf-8")

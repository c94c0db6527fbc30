"""The case-file plugin, run on files of its own with passes of its own."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from types import SimpleNamespace

import pytest

from prunec.compiler.errors import PassError
from prunec.compiler.ir.program import Note, Program
from prunec.compiler.pass_base import Context, Pass, PassResult
from prunec.compiler.plan import entries as entries_module
from prunec.compiler.testing.case_files import CaseError, parse_cases, run_case
from prunec.compiler.text.parser import from_text
from prunec.compiler.verify.reference import Same
from prunec.compiler.verify.verify import verify


class Unrelu(Pass):
    """Takes out the modules of the given names and lets their input through, which is not exact."""

    name = "unrelu"
    shorthand = "only"
    only: tuple[str, ...] = ()

    def run(self, program: Program, context: Context) -> PassResult:
        del context
        if "missing" in self.only:
            raise PassError("'missing' is no module", hint="name one")
        graph = program.copy_graph()
        notes = []
        for node in graph.find_nodes(op="call_module"):
            if node.target not in self.only:
                notes.append(Note(node.name, "not named"))
                continue
            node.replace_all_uses_with(node.args[0])
            graph.erase_node(node)
        state = {name: value for name, value in program.state.items() if name not in self.only}
        return PassResult(program.derive(graph=graph, state=state), tuple(notes))


class Rewriting(Unrelu):
    """The same, with the claim that it keeps the function."""

    name = "rewriting"
    rewrites = True


PASSES = {cls.name: cls for cls in (Unrelu, Rewriting)}

GIVEN = """\
program Model {
  input %x : f32[2, 4]
  module relu = ReLU()
  %relu = relu(%x) : f32[2, 4]
  return %relu
}
"""
EMPTY = """\
program Model {
  input %x : f32[2, 4]
  return %x
}
"""


LOOSE = GIVEN.replace(" : f32[2, 4]\n  return", "\n  return")
MISSPELT = GIVEN.replace("ReLU", "Relu")


@pytest.fixture(scope="module")
def _warm():
    """Import all that a case needs: `pytester` forgets what its run imports, and some of torch loads only once."""
    (sample,) = parse_cases(case("", "unchanged\n"))
    assert run_case(sample, "warm.case").error is None
    program = from_text(GIVEN)
    verify(program, Same(program), pass_name="none")


@pytest.fixture
def run(pytester, monkeypatch, _warm):
    """Run one file of cases; gives the file and the run's result."""
    toys = SimpleNamespace(names=lambda: tuple(PASSES), named=PASSES.__getitem__)
    monkeypatch.setattr(entries_module, "PASSES", toys)

    def run(text: str, *options: str):
        file = pytester.path / "toy.case"
        file.write_text(text, encoding="utf-8")
        # Hypothesis imports itself anew at the end of every such run, which takes seconds.
        return file, pytester.runpytest_inprocess("-p", "no:cacheprovider", "-p", "no:hypothesispytest", *options)

    return run


def case(header: str, expected: str, given: str = GIVEN, name: str = "one") -> str:
    return f"[case {name}] {header}\n{given}[out]\n{expected}"


RIGHT = {
    "a change": case("unrelu: {only: [relu]}", EMPTY),
    "a bare option": case("unrelu: [relu]", EMPTY),
    "a bare name": case("unrelu", "unchanged\n"),
    "no pass": case("", "unchanged\n"),
    "a list of passes": case("[unrelu, unrelu: [relu]]", EMPTY),
    "a note": case("unrelu", "declined: relu: not named\n"),
    "a change and a note": case("[unrelu, unrelu: [relu]]", f"{EMPTY}declined: relu: not named\n"),
    "an error of the pass": case("unrelu: [missing]", "error: 'missing' is no module\n"),
    "an error of the options": case("unrelu: {onyl: [relu]}", "error: passes.0.unrelu.onyl: unknown key 'onyl'\n"),
    "an error of the text": case("", "error: expected a class of torch.nn, got 'Relu'\n", MISSPELT),
    "comments": "# the file\n\n"
    + case("unrelu: [relu]", EMPTY.replace("{", "{  # out"), GIVEN.replace("{", "{  # in")),
    "a verified rewrite": case("rewriting", "unchanged\n"),
}


@pytest.mark.parametrize("text", RIGHT.values(), ids=RIGHT)
def test_a_right_case_passes(run, text):
    file, result = run(text)
    result.assert_outcomes(passed=1)
    file, result = run(text, "--update")
    result.assert_outcomes(passed=1)
    assert file.read_text() == text
    result.stdout.no_fnmatch_line("rewrote*")


WRONG = {
    "a change that doesn't come": (
        case("unrelu", EMPTY),
        ["*what came out isn't what was expected:", "-program Model {", "+declined: relu: not named"],
    ),
    "a change that comes": (case("unrelu: [relu]", "unchanged\n"), ["-unchanged", "+program Model {", "+  return %x"]),
    "another note": (
        case("unrelu", "declined: relu: too small\n"),
        ["-declined: relu: too small", "+declined: relu: not named"],
    ),
    "no expectation": (case("unrelu", ""), ["+declined: relu: not named"]),
    "another error": (
        case("unrelu: [missing]", "error: none\n"),
        ["-error: none", "+error: 'missing' is no module"],
    ),
    "no error": (case("unrelu", "error: none\n"), ["-error: none", "+declined: relu: not named"]),
    "loose text": (
        case("", "unchanged\n", LOOSE),
        ["*the program isn't in canonical form:", "-  %relu = relu(%x)", "+  %relu = relu(%x) : f32[[]2, 4[]]"],
    ),
    "a slip in the text": (
        case("", "unchanged\n", MISSPELT),
        [
            "*toy.case:4:17: expected a class of torch.nn, got 'Relu'",
            "    module relu = Relu()",
            "                  ^^^^",
        ],
    ),
    "a rewrite that lies": (case("rewriting: [relu]", EMPTY), ["*VerifyError: *rewriting*"]),
}


@pytest.mark.parametrize(("text", "lines"), WRONG.values(), ids=WRONG)
def test_a_wrong_case_fails_with_a_diff(run, text, lines):
    file, result = run(text)
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(lines)
    assert file.read_text() == text


def test_update_rewrites_what_differs_and_nothing_else(run):
    right = case("", "unchanged\n", name="right").replace("{\n", "{  # kept\n", 1)
    before = [
        "# the file\n" + case("unrelu: [relu]", "\n# about the next\n", name="new"),
        case("unrelu", EMPTY + "\n", name="old"),
        right + "\n",
        case("unrelu: [missing]", "unchanged\n\n", name="error"),
        case("[unrelu, unrelu: [relu]]", "declined: relu: too small\n", LOOSE, name="loose"),
    ]
    after = [
        "# the file\n" + case("unrelu: [relu]", f"{EMPTY}\n# about the next\n", name="new"),
        case("unrelu", "declined: relu: not named\n\n", name="old"),
        right + "\n",
        case("unrelu: [missing]", "error: 'missing' is no module\n\n", name="error"),
        case("[unrelu, unrelu: [relu]]", f"{EMPTY}declined: relu: not named\n", name="loose"),
    ]
    file, result = run("".join(before), "--update")
    result.assert_outcomes(passed=5)
    assert file.read_text() == "".join(after)
    result.stdout.fnmatch_lines([f"rewrote toy.case::{name}" for name in ("new", "old", "error", "loose")])
    result.stdout.no_fnmatch_line("rewrote *right")
    _, again = run("".join(after))
    again.assert_outcomes(passed=5)


def test_update_blesses_no_slip_in_the_text_and_no_lie(run):
    text = case("", "", MISSPELT) + "\n" + case("rewriting: [relu]", "", name="two")
    file, result = run(text, "--update")
    result.assert_outcomes(failed=2)
    assert file.read_text() == text


BROKEN = [
    ("program Model {\n", "1: expected '[case NAME] PASS', got 'program Model {'"),
    ("[case no-name] x\n[out]\n", "1: expected '[case NAME] PASS', got '[case no-name] x'"),
    ("\n[case one] x\nprogram\n", "2: expected one line '[out]' in the case 'one', got 0"),
    ("[case one] x\n[out]\n[out]\n", "1: expected one line '[out]' in the case 'one', got 2"),
    ("[case one] x\n[out]\n[case one] y\n[out]\n", "3: expected a new name, got the case 'one' a second time"),
]


@pytest.mark.parametrize(("text", "message"), BROKEN, ids=[message for _, message in BROKEN])
def test_a_file_in_another_form_is_an_error(text, message):
    with pytest.raises(ValueError) as caught:  # noqa: PT011  (the message is compared whole)
        parse_cases(text)
    assert str(caught.value) == message


def test_a_broken_file_is_reported_at_collection(run):
    _, result = run("program Model {\n")
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*toy.case:1: expected '[[]case NAME[]] PASS', got 'program Model {'"])


def test_the_plugin_is_light():
    code = """
        import sys
        import prunec.compiler.testing.case_files
        heavy = {"torch", "numpy", "yaml", "pydantic"} & set(sys.modules)
        assert not heavy, heavy
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=True)


TWO = """\
program Model {
  input %x : f32[1, 4]
  module conv = Linear(4, 6)
  module out = Linear(6, 2)
  %conv = conv(%x) : f32[1, 6]
  %out = out(%conv) : f32[1, 2]
  return %out
  FACT
}
"""

FACTS = [
    ("shrink", "selection conv = 0", "the selection of 'conv' must be a list of units"),
    ("shrink", "selection conv = [0.5]", "the selection of 'conv' must be a list of units"),
    ("shrink", "selection conv = [[1]]", "the selection of 'conv' must be a list of units"),
    ("shrink", "selection = 3", "the selection must be lists of units by group"),
    ("shrink", "selection conv = [-1]", "the selection names unit -1 of 'conv', which has units 0 to 5"),
    ("shrink", "", "pass 'shrink' needs selection, which neither the program nor a pass before it gives"),
    ("merge", "", "pass 'merge' needs clusters, which neither the program nor a pass before it gives"),
    ("merge", "clusters conv = 0", "the clusters of 'conv' must be lists of units"),
    ("merge", "clusters conv = [[]]", "the clusters of 'conv' must be lists of units"),
    ("merge", "clusters conv = ['ab']", "the clusters of 'conv' must be lists of units"),
    ("merge", "clusters = [1]", "the clusters must be lists of units by group"),
    ("merge", "clusters conv = [[0, 99]]", "the clusters name unit 99 of 'conv', which has units 0 to 5"),
    ("merge", "clusters conv = ((0, 1), (1, 2))", "the clusters of 'conv' name a unit twice"),
    ("merge", "clusters none = [[0, 1]]", "the clusters name group 'none', which isn't there"),
    ("select: 50%", "scores conv = [1]", "the scores of 'conv' must be 6 numbers, one a unit"),
    ("select: 50%", "scores conv = 1", "the scores of 'conv' must be 6 numbers, one a unit"),
    ("select: 50%", "scores = 1", "the scores must be lists of numbers by group"),
]


@pytest.mark.parametrize(("header", "fact", "message"), FACTS, ids=[f"{h} {f}" for h, f, _ in FACTS])
def test_a_fact_that_a_pass_cannot_use_is_its_error(header, fact, message):
    (made,) = parse_cases(case(header, "unchanged\n", TWO.replace("FACT", fact)))
    assert run_case(made, "f.case").error == message


def test_clusters_are_merged_however_they_are_written():
    same = "value conv.weight = [[1, 0, 0, 0], [1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1], [1, 1, 0, 0]]"
    text = TWO.replace("  %conv =", f"  {same}\n  value conv.bias = [0, 0, 0, 0, 0, 0]\n  %conv =")
    for fact in ("[[0, 1]]", "((0, 1),)", "[(0, 1)]"):
        (made,) = parse_cases(case("merge", "unchanged\n", text.replace("FACT", f"clusters conv = {fact}")))
        assert "Linear(4, 5)" in run_case(made, "f.case").result


@pytest.mark.parametrize(
    "header", ["{a: b: c}", "[shrink", "shrink: *a", "!!python/object:os.system x", "'", "&a [*a]"]
)
def test_a_header_that_is_no_yaml_is_the_authors_slip(header):
    (made,) = parse_cases(case(header, "error: anything\n"))
    with pytest.raises(CaseError, match=r"^f\.case:1: the case's header: "):
        run_case(made, "f.case")

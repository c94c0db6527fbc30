"""Whatever foreign code raises is told as its fault, with its place; a real Ctrl-C still stops the program."""

from __future__ import annotations

import asyncio
import importlib
import os
import signal
import threading
from pathlib import Path

import pytest
import torch

from prunec.compiler import user_code
from prunec.compiler.errors import DataError, ModelError, PassError, PlanError, PrunecError, Span
from prunec.compiler.user_code import (
    LONGEST,
    fault,
    is_library,
    is_ours,
    note_plugin,
    printable,
    running,
    told,
    user_span,
)

HERE = Path(__file__)


class Mute(Exception):
    def __str__(self):
        raise SystemExit(0)

    __repr__ = __str__


class NoText(Exception):
    def __str__(self):
        return 3  # type: ignore[return-value]


class Renamed(type):
    @property
    def __name__(cls):
        raise ValueError("no name")


class Nameless(Exception, metaclass=Renamed):
    pass


RAISED = [
    (ValueError("no luck"), "ValueError: no luck"),
    (ValueError(), "ValueError"),
    (KeyError("a"), "KeyError: 'a'"),
    (SystemExit("run prepare.py first"), "SystemExit: run prepare.py first"),
    (SystemExit(3), "SystemExit: 3"),
    (SystemExit(0), "SystemExit: 0"),
    (SystemExit(), "SystemExit"),
    (GeneratorExit("g"), "GeneratorExit: g"),
    (StopIteration(7), "StopIteration: 7"),
    (KeyboardInterrupt(), "KeyboardInterrupt"),
    (asyncio.CancelledError("off"), "CancelledError: off"),
    (EOFError("end"), "EOFError: end"),
    (BrokenPipeError(32, "Broken pipe"), "BrokenPipeError: [Errno 32] Broken pipe"),
    (MemoryError("all of it"), "MemoryError: all of it"),
    (RecursionError("too deep"), "RecursionError: too deep"),
    (BaseException("bare"), "BaseException: bare"),
    (Mute(), "Mute: (its text can't be had: SystemExit)"),
    (NoText(), "NoText: (its text can't be had: TypeError)"),
    (Nameless("x"), "Nameless: x"),
    (
        BaseExceptionGroup("several", [ValueError("a"), SystemExit(2)]),
        "BaseExceptionGroup: several (2 sub-exceptions): ValueError: a; SystemExit: 2",
    ),
    (ValueError("red \x1b[31m, lone \udc80\n  two"), "ValueError: red \\x1b[31m, lone \\udc80\n  two"),
]


@pytest.mark.parametrize(("error", "text"), RAISED, ids=[text[:30] for _, text in RAISED])
def test_whatever_is_raised_is_told(error, text):
    def user():
        raise error

    assert told(error) == text
    with pytest.raises(ModelError) as caught, running("net failed", ModelError, at=Span("plan.yaml", 2, 8)):
        user()
    line = user.__code__.co_firstlineno + 1
    assert caught.value.message == f"net failed: {text} ({HERE}:{line}, in user)"
    assert str(caught.value.at) == "plan.yaml:2:8"
    assert caught.value.__cause__ is error


def deep(x):
    return deep(x)


def test_endless_recursion_is_told():
    with pytest.raises(PlanError) as caught, running("deep failed", at=ANY):
        deep(1)
    assert caught.value.message.startswith("deep failed: RecursionError: maximum recursion depth exceeded")
    assert caught.value.message.endswith(", in deep)")


ANY = Span("p", 1, 1)


def test_errors_of_ours_and_those_let_through_pass():
    with pytest.raises(DataError, match="mine"), running("it failed", ModelError):
        raise DataError("mine")
    with pytest.raises(LookupError, match="theirs"), running("it failed", ModelError, passing=(LookupError,)):
        raise LookupError("theirs")


def test_the_place_is_the_users_innermost_line():
    with pytest.raises(PlanError) as caught, running("the view failed"):
        torch.ones(2).view(3)
    assert caught.value.at is not None
    assert caught.value.at.file == __file__
    assert caught.value.at.text.strip() == "torch.ones(2).view(3)"


def test_a_syntax_error_names_its_own_file(tmp_path):
    path = tmp_path / "net.py"
    path.write_text("a = 1\nb = = 2\n")
    with pytest.raises(PlanError) as caught, running("can't import"):
        compile(path.read_text(), str(path), "exec")
    assert str(caught.value).startswith(f"{path}:2:5: can't import: SyntaxError: invalid syntax")


def test_a_group_is_placed_where_its_first_exception_was_raised():
    def inner():
        raise ValueError("a")

    def user():
        try:
            inner()
        except ValueError as error:
            raise ExceptionGroup("several", [error]) from None

    with pytest.raises(PlanError, match=r"in inner\)$"), running("it failed", at=ANY):
        user()


def test_in_mixed_code_a_fault_of_ours_stays_ours():
    with pytest.raises(AttributeError), running("it failed", mixed=True):
        fault("what", PrunecError, None)  # type: ignore[arg-type]  # ours, and called wrongly
    with pytest.raises(PlanError, match="it failed: ZeroDivisionError"), running("it failed", mixed=True):
        printable(Odd("x"))  # ours, and calls a method of the user's


class Odd(str):
    def __len__(self):
        return 1 // 0


def test_whose_a_file_is():
    assert is_ours(running.__init__.__code__.co_filename)
    assert not is_ours(__file__)
    assert is_library(pytest.__file__)
    assert is_library(asyncio.__file__)
    assert not is_library(__file__)


def test_a_long_text_keeps_its_ends():
    text = printable("a" * 10**6 + "b")
    assert len(text) < LONGEST + 10
    assert text.startswith("aaa")
    assert text.endswith("aab")


# -- Ctrl-C ------------------------------------------------------------------------------------------------------------


def ctrl_c():
    os.kill(os.getpid(), signal.SIGINT)


def test_a_real_ctrl_c_stops_the_program():
    with pytest.raises(KeyboardInterrupt), running("it failed"):
        ctrl_c()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_it_stops_also_where_the_code_makes_another_exception_of_it():
    def user():
        try:
            ctrl_c()
        except KeyboardInterrupt:
            raise SystemExit("stopped") from None

    with pytest.raises(KeyboardInterrupt), running("it failed"), running("inside"):
        user()


def test_what_is_raised_by_itself_afterwards_is_no_ctrl_c():
    with pytest.raises(KeyboardInterrupt), running("it failed"):
        ctrl_c()
    with pytest.raises(PlanError, match="it failed: KeyboardInterrupt"), running("it failed"):
        raise KeyboardInterrupt


def test_under_somebody_elses_handler_it_stops(monkeypatch):
    before = signal.signal(signal.SIGINT, lambda *_: None)
    try:
        with pytest.raises(KeyboardInterrupt), running("it failed"):
            raise KeyboardInterrupt
    finally:
        signal.signal(signal.SIGINT, before)


def test_in_a_thread_no_signal_comes():
    found = []

    def work():
        try:
            with running("it failed"):
                raise KeyboardInterrupt
        except PlanError as error:
            found.append(error.message)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == ["it failed: KeyboardInterrupt"]


def test_where_no_line_of_the_users_raised_it_the_causes_counts():
    def ends():
        raise StopIteration

    def user():
        yield ends()

    with pytest.raises(RuntimeError) as caught:
        list(user())
    caught.value.__traceback__ = None
    span = user_span(caught.value)
    assert span is not None
    assert span.text.strip() == "raise StopIteration"


def test_a_plugin_is_its_authors_own_code_wherever_it_is_installed(tmp_path, monkeypatch):
    file = tmp_path / "site-packages" / "acme_plug.py"
    file.parent.mkdir()
    file.write_text("def fail():\n    raise SystemExit(0)\n")
    monkeypatch.syspath_prepend(file.parent)
    monkeypatch.setattr(user_code, "_PLUGINS", set())
    module = importlib.import_module("acme_plug")
    ours = compile("fail()", user_code.__file__, "exec")  # as if our code called it
    try:
        with pytest.raises(SystemExit), running("the pass failed", mixed=True):
            exec(ours, vars(module))
        note_plugin("acme_plug")
        with pytest.raises(PlanError, match="the pass failed: SystemExit: 0"), running("the pass failed", mixed=True):
            exec(ours, vars(module))
    finally:
        is_library.cache_clear()


class Torn(torch.utils.data.Dataset):
    """A data set with a sample that can't be read."""

    def __len__(self):
        return 2

    def __getitem__(self, index):
        raise ValueError("torn\npage")


def test_what_a_worker_raised_is_told_without_its_traceback():
    loader = torch.utils.data.DataLoader(Torn(), num_workers=1)
    with pytest.raises(DataError) as caught, running("the data failed", DataError):
        next(iter(loader))
    line = Torn.__getitem__.__code__.co_firstlineno + 1
    words = "Caught ValueError in DataLoader worker process 0: ValueError: torn\npage"
    assert caught.value.message == f"the data failed: ValueError: {words} ({__file__}:{line}, in __getitem__)"


def test_notes_beside_an_exception_are_told():
    error = ValueError("no such word")
    error.add_note("look into words.txt")
    assert told(error) == "ValueError: no such word\nlook into words.txt"


@pytest.mark.parametrize("kind", [PrunecError, PlanError, PassError, DataError])
def test_an_error_of_ours_that_a_user_raises_has_its_place(kind):
    with pytest.raises(kind) as found, running("it failed"):
        raise kind("mine")
    assert found.value.at is not None
    assert found.value.at.file == __file__


@pytest.mark.parametrize("kind", [PassError, DataError])
def test_the_place_in_the_plan_goes_before_the_users(kind):
    with pytest.raises(kind) as found, running("it failed", at=Span("plan.yaml", 3, 1)):
        raise kind("mine")
    assert found.value.at is None, "whoever knows the option at fault says where it is"
    known = Span("plan.yaml", 4, 5)
    with pytest.raises(kind) as found, running("it failed"):
        raise kind("mine", at=known)
    assert found.value.at is known

"""Runs code that isn't ours: factories, forwards, data, plug-ins. Whatever it raises is told as its fault.

    with running("nets.py:small failed", PlanError, at=at):
        model = small()

    plan.yaml:2:8: nets.py:small failed: SystemExit: no data set here (nets.py:12, in small)

Such code may raise anything: `SystemExit`, which would end a compile as if it had succeeded, `GeneratorExit`, an
exception whose text can't be had. Each becomes an error of ours, with the innermost place in the user's own files. A
real Ctrl-C still stops the program: while such code runs, the signal is noted when it comes, and so it is told from a
`KeyboardInterrupt` that the code raises itself.
"""

from __future__ import annotations

import importlib.util
import linecache
import os
import re
import signal
import sys
import sysconfig
import threading
import traceback
from collections.abc import Callable
from functools import cache, partial
from types import FrameType, TracebackType
from typing import Any, Final

from prunec.compiler.errors import DataError, PassError, PlanError, PrunecError, Span, VerifyError

LONGEST: Final = 2000
"""Characters of a foreign exception's text that are shown."""

LISTED: Final = 3
"""How many exceptions of a group are named."""


# -- running it ----------------------------------------------------------------------------------------------------


class running:
    """A context for a piece of user code. What it raises becomes a `kind` that says `what`, and is chained.

    The place in the user's own file stands in the message; where there is no `at`, it is the error's own. Errors of
    ours pass as they are. With `mixed`, our own code runs in the context, too, and calls the user's: then an exception
    that comes from no file of the user's passes as well, since that is a bug of ours; so do exceptions of the kinds
    `passing`. `explain` words the error in another way.
    """

    def __init__(
        self,
        what: str,
        kind: type[PrunecError] = PlanError,
        *,
        at: Span | None = None,
        hint: str | None = None,
        mixed: bool = False,
        passing: tuple[type[BaseException], ...] = (),
        explain: Callable[[BaseException], PrunecError] | None = None,
    ) -> None:
        self.explain = explain or partial(fault, what, kind, at=at, hint=hint)
        self.at = at
        self.mixed = mixed
        self.passing: tuple[type[BaseException], ...] = (PrunecError, *passing)
        self._watches = False

    def __enter__(self) -> None:
        self._watches = _watch()

    def __exit__(self, _: Any, error: BaseException | None, trace: TracebackType | None) -> None:
        stopped = _stopped(error, self._watches)
        in_plan = self.at is not None and isinstance(error, PassError | DataError)  # these get their place there
        ours = isinstance(error, VerifyError)  # says which pass, whoever runs the check
        if isinstance(error, PrunecError) and not ours and not in_plan and _raised_by_user(trace):
            error.at = error.at or user_span(error)
        if error is None or isinstance(error, self.passing):
            return
        if stopped:
            if isinstance(error, KeyboardInterrupt):
                return
            raise KeyboardInterrupt from error
        if self.mixed and not is_users_fault(trace):
            return
        raise self.explain(error) from error


def fault(
    what: str, kind: type[PrunecError], error: BaseException, *, at: Span | None = None, hint: str | None = None
) -> PrunecError:
    """An error of ours about a foreign exception, with its place in the user's own file; see `running`."""
    frame = _frame(error)
    span = _of_syntax(error) or _span(frame)
    where = "" if at is None or span is None else f" ({span.file}:{span.line}{_function(frame, span)})"
    return kind(f"{what}: {told(error)}{where}", at=at or span, hint=hint)


# -- a real Ctrl-C -------------------------------------------------------------------------------------------------


class _Signal:
    """Whether the signal of Ctrl-C came since the outermost piece of user code began."""

    came = False


def _noted(number: int, frame: FrameType | None) -> None:
    _Signal.came = True
    signal.default_int_handler(number, frame)


def _watch() -> bool:
    """Note Ctrl-C from now on, where Python's own handler would take it; whether this call is the one that began."""
    if not _in_main_thread() or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        return False
    _Signal.came = False
    signal.signal(signal.SIGINT, _noted)
    return True


def _stopped(error: BaseException | None, watches: bool) -> bool:
    """Whether a real Ctrl-C came while user code ran, or may have come: where somebody else's handler took it.

    `watches` is what `_watch` gave, whose work is undone.
    """
    if not _in_main_thread():
        return False  # a signal is handled in the main thread alone
    handler = signal.getsignal(signal.SIGINT)
    if handler is _noted:
        if watches:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        return _Signal.came
    return isinstance(error, KeyboardInterrupt) and handler is not signal.SIG_IGN


def _in_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()


# -- what was raised, in words -------------------------------------------------------------------------------------


def told(error: BaseException) -> str:
    """Type and text of any exception; of a group, those of the first ones in it, too. Never raises."""
    name, text = name_of(error), text_of(error)
    notes = [printable(note) for note in _notes(error)]
    listed = [told(each) for each in error.exceptions[:LISTED]] if isinstance(error, BaseExceptionGroup) else []
    return ": ".join(part for part in (name, "\n".join([text, *notes]).strip(), "; ".join(listed)) if part)


def _notes(error: BaseException) -> list[str]:
    """What `add_note` has put beside an exception's text."""
    notes = getattr(error, "__notes__", None)
    return [note for note in notes if isinstance(note, str)][:LISTED] if isinstance(notes, list) else []


def name_of(error: BaseException) -> str:
    """The name of an exception's type."""
    return printable(type.__dict__["__name__"].__get__(type(error)))  # a metaclass may have a `__name__` of its own


def text_of(error: BaseException) -> str:
    """The text of any exception, empty where it has none."""
    try:
        text = str(error)
    except BaseException as second:  # the text of an exception is its author's code
        return f"(its text can't be had: {name_of(second)})"
    return printable(_relayed(text.strip()))


_WORKERS: Final = "\nOriginal Traceback (most recent call last):\n"
"""What torch puts into the text of an exception that it brings from another process, before that one's traceback."""


def _relayed(text: str) -> str:
    """The text of an exception from a worker of a `DataLoader`: its last words and their place, for its traceback."""
    head, found, trace = text.partition(_WORKERS)
    if not found:
        return text
    lines = trace.splitlines()
    begin = max((i + 1 for i, line in enumerate(lines) if line.startswith("  ")), default=0)
    frames = re.findall(r'^  File "(.+)", line (\d+), in (.+)$', trace, re.MULTILINE)
    own = next((f" ({file}:{line}, in {name})" for file, line, name in reversed(frames) if not is_library(file)), "")
    return f"{head.rstrip('.')}: {chr(10).join(lines[begin:])}{own}"


def is_out_of_memory(error: BaseException | None) -> bool:
    """Whether an exception, or what caused it, says that memory ran out."""
    while error is not None:
        if isinstance(error, MemoryError) or any(words in text_of(error) for words in _NO_MEMORY):
            return True
        error = error.__cause__
    return False


_NO_MEMORY: Final = ("can't allocate memory", "not enough memory", "CUDA out of memory")
"""What torch says, which has no class of its own for it on the CPU."""


def printable(text: str) -> str:
    """A foreign text as it may be shown: control characters as escapes, and the middle of a long one left out."""
    if len(text) > LONGEST:
        half = LONGEST // 2
        text = f"{text[:half]} ... {text[-half:]}"
    return "".join(c if c.isprintable() or c in "\n\t" else c.encode("unicode_escape").decode() for c in text)


# -- the place in the user's own file ------------------------------------------------------------------------------


def _folder(file: str | None) -> str:
    return os.path.dirname(file or "") + os.sep


@cache
def _foreign() -> tuple[str, ...]:
    """What the names of files begin with that are torch's, its engine's, ours, or no files."""
    # not imported: `prunec --help` has no time for that
    specs = (importlib.util.find_spec(name) for name in ("torch", "lightning_fabric"))
    ours = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    folders = [os.path.join(ours, part) + os.sep for part in ("compiler", "passes")]
    return (*folders, *(_folder(spec.origin) for spec in specs if spec), "<frozen ", "<eval_with_key>")


@cache
def _folders(*keys: str) -> tuple[str, ...]:
    return tuple(sysconfig.get_path(key) + os.sep for key in keys)


@cache
def is_ours(file: str) -> bool:
    """Whether a source file is the compiler's or a pass's."""
    return file.startswith(_foreign()[:2])


@cache
def is_users(file: str) -> bool:
    """Whether a source file is the user's (or a library's that models come from), rather than torch's or ours."""
    return not file.startswith(_foreign())


_PLUGINS: Final[set[str]] = set()


def note_plugin(module: str) -> None:
    """Take an imported module, with the package that it is in, for the user's own code, wherever it is installed."""
    top = sys.modules[module.partition(".")[0]]
    files = [folder + os.sep for folder in getattr(top, "__path__", ())] or [getattr(top, "__file__", None)]
    if not is_ours(getattr(sys.modules[module], "__file__", None) or ""):
        _PLUGINS.update(file for file in files if file)
        is_library.cache_clear()


@cache
def is_library(file: str) -> bool:
    """Whether a source file belongs to Python itself or to an installed package that adds nothing to the compiler."""
    return (_is_installed(file) or _is_pythons(file)) and not file.startswith(tuple(_PLUGINS))


def _is_installed(file: str) -> bool:
    return file.startswith(_folders("purelib", "platlib")) or os.sep + "site-packages" + os.sep in file


def _is_pythons(file: str) -> bool:
    return file.startswith((*_folders("stdlib", "platstdlib"), "<")) and not _is_installed(file)


def is_users_fault(trace: TracebackType | None) -> bool:
    """Whether the innermost frame that is ours or the user's own is the user's."""
    files = [frame.f_code.co_filename for frame, _ in traceback.walk_tb(trace)]
    return next((not is_ours(f) for f in reversed(files) if is_ours(f) or (is_users(f) and not is_library(f))), False)


def _raised_by_user(trace: TracebackType | None) -> bool:
    """Whether the innermost frame is the user's own: an error of ours that our code raises has its place already."""
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    file = trace.tb_frame.f_code.co_filename if trace else ""
    return bool(file) and is_users(file) and not is_library(file)


def user_span(error: BaseException) -> Span | None:
    """The innermost line in an exception's traceback that is the user's own; where there is none, a library's.

    Torch and Python itself don't count. Of a group, the first exception in it is asked; of one that no code of the
    user's raised, its cause.
    """
    return _span(_frame(error))


def _frame(error: BaseException) -> TracebackType | None:
    if isinstance(error, BaseExceptionGroup) and (found := _frame(error.exceptions[0])):
        return found
    behind = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return _innermost(error.__traceback__) or (_frame(behind) if behind else None)


def _innermost(trace: TracebackType | None) -> TracebackType | None:
    own = library = None
    while trace is not None:
        file = trace.tb_frame.f_code.co_filename
        if is_users(file) and not _is_pythons(file):
            own, library = (own, trace) if is_library(file) else (trace, library)
        trace = trace.tb_next
    return own or library


def _span(trace: TracebackType | None) -> Span | None:
    """The line of a traceback's outermost frame."""
    if trace is None:
        return None
    (frame,) = traceback.extract_tb(trace, limit=1)
    start, end = frame.colno or 0, frame.end_colno or 0
    length = end - start if frame.lineno == frame.end_lineno else 1
    text = linecache.getline(frame.filename, frame.lineno or 1).rstrip("\n")
    return Span(frame.filename, frame.lineno or 1, start + 1, max(length, 1), text)


def _function(trace: TracebackType | None, span: Span) -> str:
    code = trace.tb_frame.f_code if trace else None
    return "" if code is None or code.co_filename != span.file or code.co_name[0] == "<" else f", in {code.co_name}"


def _of_syntax(error: BaseException) -> Span | None:
    """The place that a syntax error names: its file never ran."""
    if not isinstance(error, SyntaxError) or not error.lineno or not os.path.isfile(error.filename or ""):
        return None
    return Span(str(error.filename), error.lineno, max(error.offset or 1, 1), 1, (error.text or "").rstrip("\n"))

"""Whose line it was: neither torch's nor ours."""

from __future__ import annotations

import functools
import inspect
import sys

import pytest
import torch
import torchvision
from torch.utils._python_dispatch import TorchDispatchMode

from prunec.compiler import errors
from prunec.compiler.errors import Span
from prunec.compiler.tracing import locations
from prunec.compiler.tracing.locations import ENTERS, OUTERMOST, Scope, in_meta_kernel, user_line
from prunec.compiler.user_code import is_users, user_span


@pytest.mark.parametrize(
    ("file", "users"),
    [
        (__file__, True),
        (torchvision.models.resnet.__file__, True),
        (torch.nn.modules.conv.__file__, False),
        (errors.__file__, False),
        (locations.__file__, False),
        ("<frozen importlib._bootstrap>", False),
        ("<eval_with_key>.3", False),
        ("<stdin>", True),
    ],
    ids=["test", "torchvision", "torch", "errors", "tracing", "frozen", "generated", "typed"],
)
def test_whose_a_file_is(file, users):
    assert is_users(file) is users


def fail(x):
    return torch.ones(2).view(x)  # here


def test_the_innermost_line_of_the_user():
    with pytest.raises(RuntimeError) as caught:
        torch.utils._pytree.tree_map(fail, 3)
    span = user_span(caught.value)
    assert span is not None
    assert span.file == __file__
    assert span.text == "    return torch.ones(2).view(x)  # here"
    assert span.text[span.column - 1 :].startswith("torch.ones(2).view(x)")
    assert span.length == len("torch.ones(2).view(x)")
    assert user_span(ValueError()) is None


def asked():
    return user_line(inspect.currentframe())


def run_forward(function):
    """Called as the function of ours that calls the model."""
    return function()


def test_the_line_that_led_to_a_frame():
    assert run_forward.__name__ == OUTERMOST
    found = run_forward(asked)
    assert found == (__file__, asked.__code__.co_firstlineno + 1)
    assert torch.utils._pytree.tree_map(lambda _: asked(), [1])[0] is not None


def test_beyond_the_outermost_frame_nobody_looks():
    assert run_forward(lambda: user_line(sys._getframe(1))) is None
    assert user_line(None) is None


def _as_torchs(name, body):
    """A function of that name in a file that isn't the user's, which calls what it is given."""
    space = {}
    exec(compile(f"def {name}(function):\n    return {body}\n", torch.nn.modules.conv.__file__, "exec"), space)
    return space[name]


def test_what_a_forward_calls_has_the_line_that_called_it():
    enters, passes = _as_torchs(ENTERS, "function()"), _as_torchs("passes", "function(), function()")
    scopes, lines = [], []

    def deep():
        return user_line(sys._getframe(1), scopes)

    def inner():
        scopes.append(Scope("a.b"))
        return enters(passes_on)

    passes_on = functools.partial(passes, deep)
    for _ in range(2):
        scopes[:] = [Scope("a")]
        lines += run_forward(lambda: enters(functools.partial(passes, inner)))[0]
    assert lines == [(__file__, inner.__code__.co_firstlineno + 2)] * 4


def test_a_whole_line_is_shown_without_its_indent():
    line = fail.__code__.co_firstlineno + 1
    span = Span.of_line((__file__, line))
    assert span is not None
    assert (span.line, span.column, span.length) == (line, 5, len("return torch.ones(2).view(x)  # here"))
    assert Span.of_line(None) is None


def test_kernels_of_torch_are_told_from_the_users_code():
    seen = []

    class Watched(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            seen.append(in_meta_kernel(inspect.currentframe().f_back))
            return function(*args, **(kwargs or {}))

    with Watched():
        torch._refs.softmax(torch.ones(2, 3), 1)
    assert not seen[0], "the test itself calls `ones`"
    assert len(seen) > 2
    assert all(seen[1:])

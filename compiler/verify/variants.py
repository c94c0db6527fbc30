"""One program with many sets of channels masked, or of tensors replaced, run on the same inputs: what they have in
common is run once.

    nodes          x  conv1  relu  conv2  relu  fc
    all kept       o----o-----o------o------o----o
    variant 0                        o------o----o         fc's columns and conv2's rows: from conv2 on
    variant 1           o-----o------o------o----o         conv1's rows: nearly everything

A variant differs from the program from the first node on that reads a tensor of which it loses positions or has
another, or that selects what it reads. It is run from there by the reference interpreter, on values of the run in which
all is kept: no slim model is made for it.
A value that a later operation overwrites is no place to start from; then the variant starts before that value.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from prunec.compiler.errors import VerifyError
from prunec.compiler.ir.modules import module_tensors
from prunec.compiler.ir.program import Axis, Edge, IntArray, Program
from prunec.compiler.verify.interpreter import Interpreter, last_uses, precision_of
from prunec.compiler.verify.masks import Marked, plain
from prunec.compiler.verify.reference import Masked, MaskedInterpreter, Replaced

WHOLE: Final = -1
"""Stands for a variant's number where nothing is masked."""


class Variants:
    """A program and its variants: `changes` says what each loses (axis or edge -> positions), or which tensors it has
    in place of the program's (name -> tensor): the same of all."""

    def __init__(
        self, program: Program, changes: Sequence[Mapping[Axis | Edge, IntArray]] | Sequence[Mapping[str, Tensor]]
    ) -> None:
        dtype = precision_of(program)
        self.nodes = list(program.graph.nodes)
        self.interpreters = [_changed(program, change).interpreter(dtype) for change in changes]
        is_marked = any(isinstance(each, MaskedInterpreter) for each in self.interpreters)
        self.whole = MaskedInterpreter(program, dtype, {}, {}) if is_marked else Interpreter(program, dtype)
        self._dead = last_uses(self.nodes)
        self._starts: dict[int, list[int]] = {}
        self.earliest = _earliest(self.nodes, self._writes(program))
        """[nodes + 1]: the place from which a run is resumed that differs from the whole one from this place on."""
        readers = _first_readers(program, self.nodes)
        places = {node.name: place for place, node in enumerate(self.nodes)}
        for number, interpreter in enumerate(self.interpreters):
            names, edges = list(interpreter.replaced), list[str]()
            if isinstance(interpreter, MaskedInterpreter):
                names, edges = list(interpreter.marks), [reader for reader, _ in interpreter.edges]
            differing = [readers[name] for name in names if name in readers] + [places[reader] for reader in edges]
            first = min(differing, default=len(self.nodes))
            self._starts.setdefault(self.earliest[first], []).append(number)

    def outputs(self, inputs: tuple[Any, ...]) -> Iterator[tuple[int, Any]]:
        """(number of the variant, its outputs), and (`WHOLE`, the program's), in no particular order.

        Raises `StepError` where a node fails, and `VerifyError` where a variant's removed positions don't fit together.
        """
        env: dict[fx.Node, Any] = {}
        for number in self._starts.get(0, ()):
            yield number, _whole(self.interpreters[number].run(inputs))
        outputs = None
        for place, (node, outputs) in enumerate(self.whole.steps(inputs), 1):
            env[node] = outputs
            for spent in self._dead.get(node, ()):
                del env[spent]
            for number in self._starts.get(place, ()):
                yield number, self._finished(number, place, env, outputs)
        yield WHOLE, plain(outputs)

    def _finished(self, number: int, place: int, env: Mapping[fx.Node, Any], value: Any) -> Any:
        """The outputs of a variant that is resumed at `place`, on the values of the whole run."""
        self.interpreters[number].follow(self.whole)
        for _, value in self.interpreters[number].resume(self.nodes[place:], dict(env)):  # noqa: B007  (the last is the output)
            pass
        return _whole(value)

    def _writes(self, program: Program) -> list[tuple[int, int]]:
        """(place of a value, place of a node that overwrites it): seen in a run on the example inputs."""
        found: list[tuple[int, int]] = []
        seen: list[tuple[int, Any, int]] = []
        for place, (_, value) in enumerate(self.whole.steps(program.inputs)):
            changed = [old for old, tensor, version in seen if tensor._version != version]
            if changed:
                found.append((changed[0], place))
                seen = [(old, tensor, tensor._version) for old, tensor, _ in seen]
            leaves = (plain(leaf) for leaf in pytree.tree_leaves(value) if isinstance(leaf, Tensor | Marked))
            seen += [(place, tensor, tensor._version) for tensor in leaves]
        return found


def _changed(program: Program, change: Mapping[Any, Any]) -> Masked | Replaced:
    """The reference of one variant."""
    if any(isinstance(name, str) for name in change):
        return Replaced(program, change)
    return Masked(program, change)


def _whole(outputs: Any) -> Any:
    """The outputs without marks. Raises `VerifyError` where removed channels reach them."""
    if any(isinstance(leaf, Marked) and leaf.has_removed for leaf in pytree.tree_leaves(outputs)):
        raise VerifyError("removed channels reach the model's output")
    return plain(outputs)


def _first_readers(program: Program, nodes: Sequence[fx.Node]) -> dict[str, int]:
    """Each tensor's name -> the place of the first node that reads it."""
    found: dict[str, int] = {}
    for place, node in enumerate(nodes):
        value = program.state.get(str(node.target)) if node.op in ("call_module", "get_attr") else None
        held = module_tensors(str(node.target), value) if isinstance(value, nn.Module) else ()
        for name in (str(node.target), *(name for name, _ in held)):
            found.setdefault(name, place)
    return found


def _earliest(nodes: Sequence[fx.Node], writes: Sequence[tuple[int, int]]) -> list[int]:
    """For each place, the last one at or before it from which a run may be resumed: all inputs come before that, and no
    value from before it is overwritten behind it. 0, a run of the whole graph, where there is none."""
    inputs = [place for place, node in enumerate(nodes) if node.op == "placeholder"]
    first = inputs[-1] + 1 if inputs else 0
    earliest = []
    for place in range(len(nodes) + 1):
        start = place
        while any(old < start <= writer for old, writer in writes):
            start = min(old for old, writer in writes if old < start <= writer)
        earliest.append(start if start >= first else 0)
    return earliest

"""Both programs side by side over the calibration data, halting at each place that is repaired.

    piece 1    dense ------|-------|----       slim ------|-------|----
    piece 2    dense ------|-------|----       slim ------|-------|----
                           conv2   fc                     conv2   fc

At a place all pieces are seen, then the slim program's values change, and all go on from there with these. A piece
keeps the values that are still wanted, as far as memory allows; one that can't be kept is run from the start at each
place.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Final

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from prunec.compiler.data import Batch
from prunec.compiler.ir.inputs import is_batched, tensors_in
from prunec.compiler.ir.program import Program
from prunec.compiler.pass_base import Context, silent
from prunec.compiler.verify.interpreter import Interpreter, StepError, precision_of
from prunec.passes.calibration.calibration import Calibration, bytes_of_a_sample

AT_ONCE: Final = 64
"""The most samples of a piece."""
_PIECE: Final = 2**28
"""About how many bytes all values of one piece may take."""


class Lane:
    """One program on one piece, as far as it has been run."""

    def __init__(self, program: Program, order: Sequence[fx.Node], feeds: Sequence[Any], wanted: set[fx.Node]) -> None:
        self.interpreter = Interpreter(program, precision_of(program))
        self.env: dict[fx.Node, Any] = {}
        self.kept: dict[fx.Node, Tensor] = {}
        """Values that are asked for later, as they were when they were computed."""
        self._wanted, self._at, self._order = wanted, 0, order
        self._place = {node: index for index, node in enumerate(order)}
        given = (pytree.tree_map_only(Tensor, lambda x: self.interpreter.cast(x.clone()), feed) for feed in feeds)
        self._steps = self.interpreter.resume(order, self.env, given)

    def before(self, node: fx.Node) -> None:
        """Run all that stands before a node."""
        while self._at < self._place[node]:
            self._step()

    def value(self, node: fx.Node, *, again: bool = False) -> Tensor:
        """The value of a wanted node, as it is computed; it is asked for once, unless it will be `again`."""
        while self._at <= self._place[node]:
            self._step()
        return self.kept[node] if again else self.kept.pop(node)

    def given(self, node: fx.Node) -> Any:
        """What the node would give now; it stays to be run. Raises `StepError` where it fails."""
        args, kwargs = fx.map_arg((node.args, node.kwargs), lambda n: self.env[n])
        try:
            with torch.no_grad():
                return self.interpreter.call(node, args, dict(kwargs))
        except Exception as error:
            raise StepError(node, error) from error

    def _step(self) -> None:
        node, value = next(self._steps)
        if node in self._wanted:
            self.kept[node] = value.clone()  # what follows may write into it
        self._at += 1

    @property
    def bytes(self) -> int:
        """What the lane's values take."""
        leaves = pytree.tree_leaves((list(self.env.values()), list(self.kept.values())))
        storages = {
            x.untyped_storage().data_ptr(): x.untyped_storage().nbytes() for x in leaves if isinstance(x, Tensor)
        }
        return sum(storages.values())


@dataclass
class Piece:
    """Some samples on their way through both programs."""

    slim: Lane
    dense: Lane
    samples: Sequence[int]
    """For each sample a number that depends on what it is alone."""
    batch: Batch

    @contextmanager
    def running(self) -> Iterator[None]:
        """A context to run it in; raises `DataError` where a model can't take its samples."""
        try:
            yield
        except StepError as error:
            raise self.batch.refused(error) from error

    @property
    def bytes(self) -> int:
        """What the piece's values take."""
        return self.slim.bytes + self.dense.bytes


@dataclass
class Walk:
    """The calibration data's way through both programs. `slim` may change behind each halt."""

    slim: Program
    order: Sequence[fx.Node]
    dense: Program
    calibration: Calibration
    context: Context
    memory: int
    """Bytes that the pieces that wait may take together."""
    known: Sequence[int] = field(init=False)
    """The numbers of all samples, in rising order."""
    _waiting: dict[int, Piece] = field(default_factory=dict)
    _count: int = 0
    """How many pieces there are."""

    def __post_init__(self) -> None:
        self.known = sorted(number for batch in self._batches() for number in numbers_of(batch))

    def halt(self, node: fx.Node, wanted: set[fx.Node]) -> Iterator[Piece]:
        """Every piece, with the slim program run as far as `node`; of the dense one, `wanted` is asked for now or
        later.

        Raises `DataError` where the model can't take the data.
        """
        all_wait = len(self._waiting) == self._count
        batches = [None] * self._count if all_wait else self._batches()
        for index, batch in enumerate(batches):
            piece = self._waiting.pop(index, None) or self._begun(batch, wanted)
            with piece.running():
                piece.slim.before(node)
            yield piece
            if self._taken + piece.bytes <= self.memory:
                self._waiting[index] = piece

    def restart(self) -> None:
        """Run all pieces from the start from now on: what lies before has changed."""
        self._waiting.clear()

    @property
    def _taken(self) -> int:
        return sum(piece.bytes for piece in self._waiting.values())

    def _begun(self, batch: Batch | None, wanted: set[fx.Node]) -> Piece:
        assert batch is not None, "all others wait"
        slim = Lane(self.slim, self.order, feeds_of(self.slim, batch.inputs), set())
        dense = Lane(self.dense, list(self.dense.graph.nodes), feeds_of(self.dense, batch.inputs), wanted)
        return Piece(slim, dense, numbers_of(batch), batch)

    def _batches(self) -> Iterator[Batch]:
        each = bytes_of_a_sample(self.slim) + bytes_of_a_sample(self.dense)
        at_once = max(1, min(AT_ONCE, _PIECE // max(each, 1)))
        context = replace(self.context, progress=silent)
        for index, batch in enumerate(self.calibration.pieces(self.slim, context, each, at_once)):
            self._count = max(self._count, index + 1)
            yield batch


def feeds_of(program: Program, inputs: Any) -> Sequence[Any]:
    """A batch's inputs, one for each placeholder; those at the end that aren't given have their defaults."""
    if isinstance(inputs, Mapping):
        nodes = program.graph.find_nodes(op="placeholder")
        return [inputs.get(str(node.target), *node.args) for node in nodes]
    return tuple(inputs) if isinstance(inputs, tuple | list) else (inputs,)


def floats_of(outputs: Any) -> list[Tensor]:
    """The floating-point tensors among a model's outputs, in float64."""
    return [x.double() for x in tensors_in(outputs) if x.is_floating_point()]


def numbers_of(batch: Batch) -> list[int]:
    """A number for each sample that depends on its values alone: on no order and no batch size."""
    found = [0] * batch.count
    for tensor in tensors_in(batch.inputs):
        if is_batched(tensor, batch.count):
            rows = tensor.detach().cpu().contiguous()
            for index in range(batch.count):
                found[index] = zlib.crc32(rows[index].reshape(-1).view(torch.uint8).numpy().data, found[index])
    return found

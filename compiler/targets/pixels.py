"""What an app would do to pixels before the model, and to outputs behind it, made part of the program.

    preprocess: {scale: 1/255, mean: [m], std: [s], order: bgr, layout: nhwc}       postprocess: {softmax: true}

    before    x: raw pixels [1, 224, 224, 3]  --app-->  [1, 3, 224, 224]  --model-->  logits  --app-->  probabilities
    after     x: raw pixels [1, 224, 224, 3]  ------------------model------------------------->  probabilities

Scale, mean, deviation and order are one 1x1 convolution, which every runtime has: y[c] = (x[order[c]] * scale -
mean[c]) / std[c]. What was folded in is compared with the same arithmetic in numpy, around the program as it was.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from prunec.compiler.errors import ModelError, VerifyError
from prunec.compiler.ir.devices import device_of
from prunec.compiler.ir.graph import output_of
from prunec.compiler.ir.modules import to_meta
from prunec.compiler.ir.ops import op_name
from prunec.compiler.ir.program import Program
from prunec.compiler.verify.compare import relative_difference
from prunec.compiler.verify.interpreter import Interpreter

TOLERANCE: Final = 1e-4
"""The largest relative difference from the arithmetic in numpy, both in float64: the weights of the convolution are
float32, and a mean that is taken off cancels."""

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Pixels:
    """What is done to raw pixels; each list has a number for each channel of the model's, or one for all."""

    scale: float = 1.0
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    swapped: bool = False
    """Whether the pixels' channels come in the opposite order of the model's: blue, green, red for red, green, blue."""
    last: bool = False
    """Whether the pixels have their channels last: [batch, height, width, channels]."""
    integer: bool = False
    """Whether the pixels are uint8."""

    def order(self, channels: int) -> list[int]:
        """The pixels' channel for each of the model's."""
        return list(range(channels))[:: -1 if self.swapped else 1]

    def applied(self, raw: Array) -> Array:
        """The model's input for raw pixels, in float64."""
        found = raw.astype(np.float64)
        found = found.transpose(0, 3, 1, 2) if self.last else found
        mean, std = (np.asarray(values, np.float64).reshape(1, -1, 1, 1) for values in (self.mean, self.std))
        found = found[:, ::-1] if self.swapped else found
        scaled: Array = (found * self.scale - mean) / std
        return scaled

    def raw(self, given: Tensor) -> Tensor:
        """The raw pixels that the model's input comes from; of integers the nearest."""
        mean, std = (torch.tensor(values, dtype=given.dtype).reshape(1, -1, 1, 1) for values in (self.mean, self.std))
        found = (given * std.to(given) + mean.to(given)) / self.scale
        found = found.flip(1) if self.swapped else found
        found = found.permute(0, 2, 3, 1).contiguous() if self.last else found
        return found.round().clamp(0, 255).to(torch.uint8) if self.integer else found


@dataclass(frozen=True)
class Folded:
    """What is folded in before and behind a model."""

    pixels: Pixels | None = None
    input: str | None = None
    """The input that holds the pixels; the first that is an image where it is None."""
    softmax: bool = False

    def into(self, program: Program) -> Program:
        """The program that takes raw pixels and gives probabilities.

        Raises `ModelError` where the program has no such input or output, and `VerifyError` where the result isn't
        what the arithmetic says.
        """
        if self.pixels is None and not self.softmax:
            return program
        program = program.deployed
        graph = program.copy_graph()
        state, inputs = dict(program.state), list(program.inputs)
        place = None
        if self.pixels is not None:
            place = self._place(program)
            inputs[place] = _prepare(graph, state, program, place, self.pixels)
        if self.softmax:
            _add_softmax(graph, state)
        made = program.with_graph(graph, state).derive(inputs=tuple(inputs))
        self._check(program, made, place)
        return made

    def _place(self, program: Program) -> int:
        """The place of the input that holds the pixels. Raises `ModelError`."""
        names = [str(node.target) for node in program.graph.find_nodes(op="placeholder")]
        images = [
            name
            for name, value in zip(names, program.inputs, strict=True)
            if isinstance(value, Tensor) and value.ndim == 4 and value.is_floating_point()
        ]
        found = self.input or next(iter(images), None)
        if found not in images:
            said = f"'{found}' is no image" if found else "no input is an image: [batch, channels, height, width]"
            hint = f"images: {', '.join(images)}" if images else "leave it out"
            raise ModelError(f"preprocess: {said}", keys=("preprocess", "input")[: 2 if self.input else 1], hint=hint)
        return names.index(found)

    def _check(self, before: Program, after: Program, place: int | None) -> None:
        """Compare with the arithmetic around the program as it was. Raises `VerifyError`."""
        inputs = list(after.inputs)
        if place is not None and self.pixels is not None:
            applied = self.pixels.applied(inputs[place].numpy(force=True))
            inputs[place] = torch.from_numpy(np.ascontiguousarray(applied)).to(device_of(before))
        got, expected = (
            _tensors(Interpreter(program, torch.float64).run(given))
            for program, given in ((after, after.inputs), (before, tuple(inputs)))
        )
        if self.softmax:
            powers = np.exp(expected[0] - expected[0].max(1, keepdims=True))
            expected[0] = powers / powers.sum(1, keepdims=True)
        difference = relative_difference(got, expected)
        if not difference <= TOLERANCE:
            raise VerifyError(f"what is folded in for pixels and probabilities differs by {difference:.1e}")

    def raw(self, program: Program, inputs: Sequence[Any]) -> tuple[Any, ...]:
        """The inputs that the folded program takes, for those of the `program` as it was."""
        if self.pixels is None:
            return tuple(inputs)
        found = list(inputs)
        found[self._place(program)] = self.pixels.raw(found[self._place(program)])
        return tuple(found)

    def logits(self, outputs: Any) -> Any:
        """The outputs with logarithms for probabilities, which are logits again but for a constant."""
        if not self.softmax:
            return outputs
        leaves, structure = pytree.tree_flatten(outputs)
        first = next(index for index, leaf in enumerate(leaves) if isinstance(leaf, Tensor))
        leaves[first] = leaves[first].clamp(min=torch.finfo(leaves[first].dtype).tiny).log()
        return pytree.tree_unflatten(leaves, structure)


def _tensors(outputs: Any) -> list[Array]:
    return [leaf.numpy(force=True) for leaf in pytree.tree_leaves(outputs) if isinstance(leaf, Tensor)]


def _prepare(graph: fx.Graph, state: dict[str, Any], program: Program, place: int, pixels: Pixels) -> Tensor:
    """Put the steps before the model into the graph; the example of the new input."""
    given = program.inputs[place]
    channels = given.shape[1]
    for name, values in (("mean", pixels.mean), ("std", pixels.std)):
        if len(values) not in (1, channels):
            message = f"preprocess: {name} has {len(values)} numbers, and the image {channels} channels"
            raise ModelError(message, keys=("preprocess", name))
    node = list(graph.find_nodes(op="placeholder"))[place]
    last = list(graph.find_nodes(op="placeholder"))[-1]
    raw = pixels.raw(given)
    users = list(node.users)
    name = _free("preprocess", program)
    state[name] = _convolution(pixels, channels, given)
    now, value = node, raw
    if pixels.integer:
        value = value.to(given.dtype)
        with graph.inserting_after(last):
            now = last = graph.call_method("to", (now, given.dtype))
        now.meta["val"] = to_meta(value)
    if pixels.last:
        value = value.permute(0, 3, 1, 2)
        with graph.inserting_after(last):
            now = last = graph.call_method("permute", (now, 0, 3, 1, 2))
        now.meta["val"] = to_meta(value)
    with graph.inserting_after(last):
        now = graph.call_module(name, (now,))
    now.meta["val"] = to_meta(given)
    node.meta["val"] = to_meta(raw)
    for user in users:
        user.replace_input_with(node, now)
    return raw


def classes_of(program: Program) -> int | None:
    """How many classes the first output has: [batch, classes, ...]; None where it has none."""
    leaves = pytree.tree_leaves(output_of(program.deployed.graph).args[0])
    value = next((leaf.meta["val"] for leaf in leaves if isinstance(leaf, fx.Node)), None)
    return int(value.shape[1]) if isinstance(value, Tensor) and value.ndim > 1 else None


def _free(name: str, program: Program) -> str:
    """A name that no layer and no node of the program has."""
    taken = {str(node.target) for node in program.graph.nodes} | {node.name for node in program.graph.nodes}
    while name in taken or any(other.startswith(f"{name}.") for other in taken):
        name += "_"
    return name


def _convolution(pixels: Pixels, channels: int, like: Tensor) -> nn.Conv2d:
    """y[c] = (x[order[c]] * scale - mean[c]) / std[c]."""
    made = nn.Conv2d(channels, channels, 1, device=like.device, dtype=like.dtype).eval()
    mean, std = (np.broadcast_to(np.asarray(values, np.float64), (channels,)) for values in (pixels.mean, pixels.std))
    weight = np.zeros((channels, channels, 1, 1))
    weight[np.arange(channels), pixels.order(channels), 0, 0] = pixels.scale / std
    assert made.bias is not None, "it has a bias"
    made.weight.data = torch.from_numpy(weight).to(like)
    made.bias.data = torch.from_numpy(-mean / std).to(like)
    return made.requires_grad_(False)


def _add_softmax(graph: fx.Graph, state: Mapping[str, Any]) -> None:
    """Softmax over the classes of the first output. Raises `ModelError` where it has none."""
    output = output_of(graph)
    leaves, structure = pytree.tree_flatten(output.args[0])
    first = next((index for index, leaf in enumerate(leaves) if isinstance(leaf, fx.Node)), None)
    value = None if first is None else leaves[first].meta["val"]
    if first is None or not isinstance(value, Tensor) or value.ndim < 2 or not value.is_floating_point():
        message = "postprocess: softmax needs an output of classes: [batch, classes, ...]"
        raise ModelError(message, keys=("postprocess", "softmax"))
    called = leaves[first]
    if called.op != "placeholder" and (
        isinstance(state.get(str(called.target)), nn.Softmax)
        if called.op == "call_module"
        else called.op in ("call_function", "call_method") and op_name(called) == "softmax"
    ):
        message = "postprocess: the output is a softmax already"
        raise ModelError(message, keys=("postprocess", "softmax"), hint="leave out softmax")
    with graph.inserting_before(output):
        made = graph.call_function(torch.softmax, (leaves[first], 1))
    made.meta["val"] = value
    leaves[first] = made
    output.args = (pytree.tree_unflatten(leaves, structure),)

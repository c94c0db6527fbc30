"""Which dimension of each value holds the batch; and a check that no view cuts samples apart.

    [N, 64, 8, 8].view(-1, 64 * 4 * 4)      [4N, 1024]: four rows an image, and a classifier that runs without complaint

Folding the batch with other dimensions and unfolding it later is common and right (windows, heads, frames), and so is
giving back all positions of all images as rows. The fault is a view whose `-1` stands where the batch was, that cuts
through an image's features, and whose factor reaches the model's output. A trace alone doesn't show it: the graph is
run for another batch size, on the meta device.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import fx, nn

from prunec.compiler.errors import ModelError, Span
from prunec.compiler.ir.graph import call
from prunec.compiler.ir.inputs import batch_of, is_batched, map_tensors, tensors_in
from prunec.compiler.ir.modules import is_scripted, to_meta
from prunec.compiler.ir.program import Program
from prunec.compiler.tracing.meta_model import meta_copy
from prunec.compiler.tracing.shape_inference import on_zeros

_VIEWS = frozenset({"view", "reshape", torch.reshape})


def check_batch(program: Program) -> None:
    """Raise ModelError where one image in gives several rows out, because of a view that cuts images apart.

    Cheap unless an output has a multiple of the batch's rows behind such a view; then the graph is run once more, on
    the meta device, for another batch size, which settles whether they are rows of the batch.
    """
    batch = batch_of(program.inputs)
    suspects = [node for node in program.graph.nodes if batch and _cuts(node, batch)]
    outputs = _outputs(program) if suspects else []
    if not batch or not any(_factor(_rows(node.meta["val"]), batch) for node in outputs):
        return
    other = _values(program, batch + 1)
    for view in suspects:
        factor = _factor(_rows(other.get(view)), batch + 1)
        if factor and any(_follows(view, node, other, batch) for node in outputs):
            raise _fault(program, view, factor)


def batch_places(program: Program) -> dict[fx.Node, tuple[int, int]]:
    """For each value, the dimension that holds the samples, and how many rows of it one sample has.

        x [2, 3, 8, 8]   (0, 1)      windows of x [8, 3, 4, 4]   (0, 4)      x.transpose(0, 1) [3, 2, 8, 8]   (1, 1)

    The graph is run for another batch size, on the meta device. A value in which no dimension or more than one follows
    the batch is left out; so is what comes after a node that takes one batch size alone.
    """
    batch = batch_of(program.inputs)
    places: dict[fx.Node, tuple[int, int]] = {}
    if not batch:
        return places
    for node, other in _values(program, batch + 1).items():
        known = node.meta.get("val")
        if not isinstance(known, torch.Tensor) or not isinstance(other, torch.Tensor) or known.ndim != other.ndim:
            continue
        changed = [d for d in range(known.ndim) if known.shape[d] != other.shape[d]]
        if len(changed) == 1 and known.shape[changed[0]] % batch == 0:
            places[node] = changed[0], int(known.shape[changed[0]]) // batch
    return places


def _cuts(node: fx.Node, batch: int) -> bool:
    """Whether a node is a view to `-1` rows that merges more than leading dimensions, and has more rows than its
    operand, whose first dimension is the batch."""
    if node.target not in _VIEWS or not node.args or not isinstance(node.args[0], fx.Node):
        return False
    first = node.args[1] if len(node.args) > 1 else ()
    target = first if isinstance(first, tuple | list) else node.args[1:]
    given, made = node.args[0].meta["val"].shape, node.meta["val"].shape
    rows_first = len(target) > 1 and target[0] == -1 and len(given) > 1 and int(given[0]) == batch
    kept_whole = tuple(given[len(given) - len(made) + 1 :]) == tuple(made[1:])
    return bool(rows_first) and not kept_whole and _factor(int(made[0]), batch) is not None


def _outputs(program: Program) -> list[fx.Node]:
    """The tensors that the program gives back."""
    output = next(iter(reversed(program.graph.nodes)))
    return [node for node in output.all_input_nodes if isinstance(node.meta["val"], torch.Tensor)]


def _factor(rows: int | None, batch: int) -> int | None:
    """How many rows an image has, where it has more than one."""
    return rows // batch if rows and rows > batch and rows % batch == 0 else None


def _rows(value: Any) -> int | None:
    return int(value.shape[0]) if isinstance(value, torch.Tensor) and value.dim() else None


def _follows(view: fx.Node, output: fx.Node, other: Mapping[fx.Node, Any], batch: int) -> bool:
    """Whether the output has several rows an image at both batch sizes, and comes from the view."""
    factor = _factor(_rows(output.meta["val"]), batch)
    if factor is None or _factor(_rows(other.get(output)), batch + 1) != factor:
        return False
    return view in _sources(output)


def _sources(node: fx.Node) -> set[fx.Node]:
    """The node and all that it is computed from."""
    found, waiting = {node}, [node]
    while waiting:
        new = [source for source in waiting.pop().all_input_nodes if source not in found]
        found.update(new)
        waiting.extend(new)
    return found


def _values(program: Program, batch: int) -> dict[fx.Node, Any]:
    """Every node's value on the meta device for another batch size, up to the first node that can't take it."""
    return dict(_steps(program, batch))


def _steps(program: Program, batch: int) -> Iterator[tuple[fx.Node, Any]]:
    """Each node with its value, where every input has `batch` samples."""
    values: dict[fx.Node, Any] = {}
    example = batch_of(program.inputs)
    inputs = iter(map_tensors(lambda x: _resized(to_meta(x.detach()), example, batch), program.inputs))
    for node in program.graph.nodes:
        if node.op == "output":
            return
        try:
            values[node] = next(inputs) if node.op == "placeholder" else _step(program, node, values)
        except (RuntimeError, ValueError, IndexError):
            return  # a model that takes one batch size alone can't be asked about another
        yield node, values[node]


def _resized(x: torch.Tensor, example: int | None, batch: int) -> torch.Tensor:
    """A meta tensor with `batch` samples in place of the example's; unchanged where its first dimension is no batch."""
    same = is_batched(x, example)
    return torch.empty(batch, *x.shape[1:], dtype=x.dtype, device="meta") if same else x


def _step(program: Program, node: fx.Node, values: Mapping[fx.Node, Any]) -> Any:
    args, kwargs = fx.node.map_arg((node.args, node.kwargs), values.__getitem__)
    state = program.state.get(str(node.target)) if isinstance(node.target, str) else None
    with torch.no_grad():
        if node.op == "get_attr":
            return to_meta(state.detach()) if isinstance(state, torch.Tensor) else program.training
        if node.op == "call_module":
            assert isinstance(state, nn.Module), f"{node.target} is a leaf module"
            return on_zeros(state, args, kwargs) if is_scripted(state) else meta_copy(state).root(*args, **kwargs)
        return call(node, args, kwargs)


def _fault(program: Program, view: fx.Node, factor: int) -> ModelError:
    source = view.args[0]
    assert isinstance(source, fx.Node), "a view has an operand"
    given, made = source.meta["val"].shape, view.meta["val"].shape
    literal, right = math.prod(made[1:]), math.prod(given[1:])
    scope = view.meta.get("scope") or program.name
    inputs = ", ".join(str(list(x.shape)) for x in tensors_in(program.inputs))
    return ModelError(
        f"{scope}: {view.name} turns N rows into {factor}N: {list(given)} has {right} values an image, and the view "
        f"asks for {literal}, so -1 becomes {made[0]} (the input is {inputs})",
        at=Span.of_line(view.meta.get("at")),
        hint=f"flatten whole images, `x.flatten(1)` or view(x.size(0), -1), for a layer that takes {right} features; "
        f"or give inputs of the size that the model was made for",
    )

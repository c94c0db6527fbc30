"""`torch.vmap` in a forward: traced as the operations on whole batches that it comes down to.

    torch.vmap(lambda t: t @ t.T)(x)        x [2, 8, 7]        transpose = x.transpose(1, 2); bmm(x, transpose)

Inside of it, tensors are such that no graph knows. So torch's own tracer (`make_fx`) runs it first, which sees what
comes out below; then each operation is called again by its public name, and recorded like any other.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import fx
from torch._functorch import apis
from torch.utils import _pytree as pytree

_IMPLEMENTATION = "vmap_impl"
"""The function of torch that runs what `torch.vmap` has made."""


class _Tracer(Protocol):
    """What is needed of the tracer."""

    active: bool
    froze: bool

    def to_value(self, value: Any) -> Any:
        """A value on the meta device."""
        ...


@contextmanager
def vmaps_sent_to(tracer: _Tracer) -> Iterator[None]:
    """Trace this thread's calls of vmapped functions as what they come down to."""
    thread, original = threading.get_ident(), vars(apis)[_IMPLEMENTATION]

    def called(
        function: Callable[..., Any],
        in_dims: Any,
        out_dims: Any,
        randomness: str,
        chunk: Any,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        if threading.get_ident() != thread or not tracer.active or torch._C._functorch.maybe_current_level():
            return original(function, in_dims, out_dims, randomness, chunk, *args, **kwargs)
        flat, spec = pytree.tree_flatten((args, kwargs))
        places = [i for i, leaf in enumerate(flat) if isinstance(leaf, torch.Tensor)]

        def run(*tensors: torch.Tensor) -> Any:
            given = list(flat)
            for place, tensor in zip(places, tensors, strict=True):
                given[place] = tensor
            args, kwargs = pytree.tree_unflatten(given, spec)
            return original(function, in_dims, out_dims, randomness, None, *args, **kwargs)  # chunks save memory alone

        from torch.fx.experimental.proxy_tensor import make_fx  # noqa: PLC0415  (loads slowly, and few models need it)

        tracer.froze = True  # sizes are plain numbers in there
        with torch._C.DisableTorchFunction():
            found = make_fx(run)(*(tracer.to_value(flat[place]) for place in places))
        return _replay(found, [flat[place] for place in places])

    setattr(apis, _IMPLEMENTATION, called)
    try:
        yield
    finally:
        setattr(apis, _IMPLEMENTATION, original)


def _replay(found: fx.GraphModule, tensors: list[torch.Tensor]) -> Any:
    """Call a graph's operations on the tensors, by their public names."""
    given = iter(tensors)
    values: dict[fx.Node, Any] = {}
    for node in found.graph.nodes:
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), values.__getitem__)
        if node.op == "placeholder":
            values[node] = next(given)
        elif node.op == "get_attr":
            values[node] = getattr(found, str(node.target))
        elif node.op == "output":
            return args[0]
        else:
            values[node] = _public(node.target)(*args, **kwargs)
    raise AssertionError("a graph has an output")


def _public(target: Any) -> Callable[..., Any]:
    """The function or method of torch that an operation of its inner set is; where there is none, the operation."""
    if not isinstance(target, torch._ops.OpOverload):
        return target  # type: ignore[no-any-return]
    name = target._schema.name.partition("::")[2]
    if name in _OTHERS:
        return _OTHERS[name]
    homes = (home for home in (torch, torch.Tensor, F) if hasattr(home, name))
    return getattr(next(homes, None), name, target)


def _convolution(
    x: Any, weight: Any, bias: Any, stride: Any, padding: Any, dilation: Any, transposed: bool, extra: Any, groups: int
) -> Any:
    rank = len(stride)
    if transposed:
        return getattr(F, f"conv_transpose{rank}d")(x, weight, bias, stride, padding, extra, groups, dilation)
    return getattr(F, f"conv{rank}d")(x, weight, bias, stride, padding, dilation, groups)


_OTHERS: Mapping[str, Callable[..., Any]] = {
    "convolution": _convolution,
    "_unsafe_view": torch.reshape,
    "_softmax": lambda x, dim, _: F.softmax(x, dim),
    "_log_softmax": lambda x, dim, _: F.log_softmax(x, dim),
    "alias": torch.Tensor.detach,
    "index": lambda x, places: x[tuple(slice(None) if place is None else place for place in places)],
}
"""Operations of the inner set whose public names are others."""

"""What a plan can set a budget for: macs, params, file_size, memory, latency; each a function of the widths.

The value of a resource is `max over rows r of sum over terms t of A[r, t] * term_t(widths) + fixed`, where a term looks
at a few widths of the cost model only:

    resource    in            rows                   a term
    macs        operations    one                    a product's share of multiply-accumulates
    params      elements      one                    a parameter
    file_size   bytes         one                    a saved tensor; header and tables of indices count in full
    memory      elements      one for each step      a value that is alive then, of one sample
    latency     seconds       one                    a layer, read off a measured table of onnxruntime's;
                                                     `latency in ncnn` of another runtime's

So a solver sees linear rows over terms, and a search needs to look at those terms alone that hold a width which
changed. Another resource is a row in RESOURCES: a function of a program and a context that gives a `Resource`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import numpy as np
import torch
from scipy.sparse import csr_matrix

from prunec.compiler.cost.model import cost_model, elements_of, sum_of_products
from prunec.compiler.cost.resource import LATENCY, RUNTIME, Factory, Resource, runtime_of
from prunec.compiler.errors import PrunecError, nearest
from prunec.compiler.groups.analysis import Analysis
from prunec.compiler.ir.gc_pause import gc_paused
from prunec.compiler.ir.program import IntArray, Program
from prunec.compiler.labels.flow import Product
from prunec.compiler.pass_base import Context

_HEADER: Final = len('{"__metadata__":{"format":"pt"}}') + 8
"""A safetensors file starts with eight bytes of length, then JSON, filled up to a multiple of eight."""


def resource(name: str, program: Program, context: Context) -> Resource:
    """A resource of a program; made once for each program. Raises `PrunecError` for an unknown name."""
    runtime = runtime_of(name)
    if runtime is not None:
        return program.cached(f"resource {name}", lambda: _latency(program, context, runtime))
    if name not in RESOURCES:
        raise PrunecError(f"unknown resource '{name}'", hint=nearest(name, RESOURCES))
    return program.cached(f"resource {name}", lambda: RESOURCES[name](program, context))


def suffixes(name: str) -> tuple[str, ...]:
    """The suffixes of an amount of the resource: `TAKES`, for the latency in any runtime."""
    return TAKES[LATENCY if runtime_of(name) else name]


def baseline(name: str, program: Program, context: Context) -> float:
    """The amount that the traced model uses, of which `50%` in a plan is a share; the program's where none is known."""
    return resource(name, program if context.traced is None else context.traced, context).now


def _one_row(terms: int) -> csr_matrix:
    return csr_matrix(np.ones((1, terms)))


def _macs(program: Program, context: Context) -> Resource:
    model = cost_model(program)
    return Resource("macs", model, model.macs_terms, _one_row(len(model.macs_terms.names)))


def _params(program: Program, context: Context) -> Resource:
    model = cost_model(program)
    return Resource("params", model, model.params_terms, _one_row(len(model.params_terms.names)))


def _file_size(program: Program, context: Context) -> Resource:
    model = cost_model(program)
    terms = sum_of_products(model.known, _saved(model.analysis))
    rows, fixed = _one_row(len(terms.names)), float(_described(program))
    return Resource("file_size", model, terms, rows, fixed, units={"": 1.0, "B": 1.0})


def _saved(analysis: Analysis) -> list[Product]:
    """The bytes of every tensor in a weight file. A tied tensor is saved under each of its names; label flow knows one
    of them, by which all lose positions."""
    bound = {axis.tensor for axis in analysis.flow.bindings}
    program = analysis.program
    home = {id(tensor): name for name, tensor in program.tensors.items() if name in bound}
    products = []
    for name, tensor in program.saved.items():
        found = elements_of(analysis, name if name in bound else home.get(id(tensor), name), tensor)
        products.append(found._replace(node=name, coefficient=found.coefficient * tensor.element_size()))
    return products


def _described(program: Program) -> int:
    """The length of a safetensors file's header. Its numbers get shorter as tensors shrink, by little: that is left
    out. Wide dtypes come first, then names in order, as safetensors has it."""
    place, length = 0, _HEADER
    for name, tensor in sorted(program.saved.items(), key=lambda item: (-item[1].element_size(), item[0])):
        end = place + tensor.numel() * tensor.element_size()
        shape = ",".join(map(str, tensor.shape))
        kind = "BF16" if tensor.dtype in (torch.bool, torch.bfloat16) else "F32"
        length += len(f',"{name}":{{"dtype":"{kind}","shape":[{shape}],"data_offsets":[{place},{end}]}}')
        place = end
    return -(-length // 8) * 8


def _memory(program: Program, context: Context) -> Resource:
    model = cost_model(program)
    each = 1.0 / _bytes_of_an_element(program)
    rows = _alive(model.births, model.deaths)
    return Resource("memory", model, model.memory_terms, rows, units={"": 1.0, "B": each}, diminishing=False)


def _latency(program: Program, context: Context, runtime: str = RUNTIME) -> Resource:
    from prunec.compiler.cost.latency.model import latency_resource  # noqa: PLC0415  (imports onnx and onnxruntime)

    return latency_resource(program, context, runtime)


RESOURCES: Final[Mapping[str, Factory]] = {
    "macs": _macs,
    "params": _params,
    "file_size": _file_size,
    "memory": _memory,
    "latency": _latency,
}
"""Everything that a budget can be set for."""

TAKES: Final[Mapping[str, tuple[str, ...]]] = {
    "macs": ("",),
    "params": ("",),
    "file_size": ("", "B"),
    "memory": ("", "B"),
    "latency": ("s",),
}
"""Resource -> the suffixes of its `units`, known without making it: a plan is refused before anything is measured."""


@gc_paused()
def _alive(births: IntArray, deaths: IntArray) -> csr_matrix:
    """[steps, values]: which values are alive at a step, for the steps that can be the worst one.

    While nothing dies, more and more is alive: only a step at which something is read for the last time can be worst.
    """
    steps = np.unique(deaths)
    first, last = np.searchsorted(steps, births), np.searchsorted(steps, deaths)
    count = last - first + 1
    column = np.repeat(np.arange(births.size), count)
    row = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count) + np.repeat(first, count)
    return csr_matrix((np.ones(row.size), (row, column)), shape=(steps.size, births.size))


def _bytes_of_an_element(program: Program) -> int:
    """The size of an activation's element: that of the widest floating-point dtype among the graph's values."""
    found = [node.meta.get("val") for node in program.graph.nodes]
    sizes = [x.element_size() for x in found if isinstance(x, torch.Tensor) and x.is_floating_point()]
    return max(sizes, default=4)

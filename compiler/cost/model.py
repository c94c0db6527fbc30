"""What a program costs, in closed form in its widths: a selection is costed without building the model.

Every cost is a sum of terms `coefficient * width * width ...`, where a width is the number of positions of one array of
labels that are kept. The widths of a selection are one sparse product, `fixed + counts @ keep`, and so is everything
that follows from them.

    macs      multiply-accumulates of one sample, in convolutions, linear layers and contractions; a convolution has
              C_out * C_in / groups * k_h * k_w * H_out * W_out, a linear layer in * out
    params    elements of parameters
    memory    elements of the values that are alive at once, at the worst node, for one sample; the picked
              copies of parameter-free values that a slim program may need (`labels.parameter_free`) aren't foreseen

Of a program of both modes, MACs and memory are those of eval mode; parameters are those of both. What is alive when is
found when memory is first asked for.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch
from scipy.sparse import csr_matrix
from torch import fx, nn
from torch.utils import _pytree as pytree

from prunec.compiler.groups.analysis import Analysis, analyse
from prunec.compiler.groups.balance import NO_UNIT
from prunec.compiler.ir.gc_pause import gc_paused
from prunec.compiler.ir.inputs import batch_of
from prunec.compiler.ir.modules import module_tensors
from prunec.compiler.ir.ops import elements, shape_of_argument
from prunec.compiler.ir.program import Axis, BoolArray, FloatArray, IntArray, Program
from prunec.compiler.ir.train_eval import by_mode, needed
from prunec.compiler.labels.flow import Product


@dataclass(frozen=True, slots=True)
class Cost:
    """What one program costs, for one sample: multiply-accumulates, elements of parameters, elements alive at once."""

    macs: int
    params: int
    memory: int

    def to_dict(self) -> dict[str, int]:
        """Plain numbers, for reports."""
        return {"macs": self.macs, "params": self.params, "memory": self.memory}


@dataclass(frozen=True)
class Terms:
    """A sum of products: term i is `coefficient[i] * prod(width[factors[i]])`; width 0 is always 1."""

    names: tuple[str, ...]
    coefficient: FloatArray
    factors: IntArray
    """[terms, factors of the longest product]: numbers of widths; shorter products are filled up with 0."""

    def each(self, widths: FloatArray, which: IntArray | None = None) -> FloatArray:
        """The value of every term, or of those numbered `which`; if `widths` has columns, so has the result."""
        numbers = slice(None) if which is None else which
        products = widths[self.factors[numbers]].prod(axis=1)
        return np.asarray((self.coefficient[numbers] * products.T).T)


Value = tuple[fx.Node, tuple[IntArray, ...]]
"""A node that computes a tensor, and the arrays of labels along the dimensions of it that can lose positions."""


@dataclass(frozen=True)
class CostModel:
    """What a program and every selection of its units costs."""

    analysis: Analysis
    counts: csr_matrix
    """[widths, units]: how many positions of the width each unit holds."""
    fixed: FloatArray
    """[widths]: how many positions of the width belong to no unit."""
    macs_terms: Terms
    params_terms: Terms
    known: WidthNumbers = field(repr=False)
    """Array of labels -> the number of its width, for the arrays of all parameters and values."""

    values: Sequence[Value] = field(repr=False)
    """The values of eval mode, with the widths of each."""

    @cached_property
    def memory_terms(self) -> Terms:
        """The elements of every value."""
        return sum_of_products(self.known, _elements(self.values, _batch(self.analysis.program)))

    @cached_property
    def births(self) -> IntArray:
        """[values]: the step at which each value of `memory_terms` is made."""
        return self._lives[0]

    @cached_property
    def deaths(self) -> IntArray:
        """[values]: the step at which it is last read."""
        return self._lives[1]

    @cached_property
    def _lives(self) -> tuple[IntArray, IntArray]:
        return _lives(self.analysis.program.graph, self.values)

    def widths(self, keep: BoolArray) -> FloatArray:
        """Every width, when the units in `keep` stay."""
        return np.asarray(self.fixed + self.counts @ self.analysis.settled(keep).astype(np.float64))

    def macs(self, keep: BoolArray) -> int:
        """Multiply-accumulates of one sample."""
        return round(float(self.macs_terms.each(self.widths(keep)).sum()))

    def params(self, keep: BoolArray) -> int:
        """Elements of parameters."""
        return round(float(self.params_terms.each(self.widths(keep)).sum()))

    def memory(self, keep: BoolArray) -> int:
        """The largest number of elements that are alive at once."""
        sizes = self.memory_terms.each(self.widths(keep))
        change = np.zeros(int(self.deaths.max(initial=0)) + 2)
        np.add.at(change, self.births, sizes)
        np.add.at(change, self.deaths + 1, -sizes)
        return round(float(np.cumsum(change).max(initial=0.0)))

    def cost(self, keep: BoolArray) -> Cost:
        """All three."""
        return Cost(self.macs(keep), self.params(keep), self.memory(keep))

    @cached_property
    def everything(self) -> BoolArray:
        """[units], all true: the selection that keeps every unit."""
        return np.ones(self.analysis.size, dtype=bool)

    def by_node(self, keep: BoolArray | None = None) -> Mapping[str, int]:
        """Node -> its multiply-accumulates, for nodes that have any; of a selection, or of the whole program."""
        values = self.macs_terms.each(self.widths(self.everything if keep is None else keep))
        found: dict[str, float] = {}
        for name, value in zip(self.macs_terms.names, values, strict=True):
            found[name] = found.get(name, 0.0) + float(value)
        return {name: round(value) for name, value in found.items()}


class WidthNumbers:
    """Numbers arrays of labels by identity: one array is one width. Width 0 is always 1."""

    def __init__(self, analysis: Analysis) -> None:
        self.analysis = analysis
        self.index: dict[int, int] = {}
        self.arrays: list[IntArray] = []

    def of(self, labels: IntArray) -> int:
        """The number of an array; a new one where it wasn't seen before."""
        if id(labels) not in self.index:
            self.arrays.append(labels)
            self.index[id(labels)] = len(self.arrays)
        return self.index[id(labels)]

    def matrix(self) -> tuple[csr_matrix, FloatArray]:
        """`counts` and `fixed` of a `CostModel`."""
        rows = np.repeat(np.arange(1, len(self.arrays) + 1), [a.size for a in self.arrays])
        flat = np.concatenate([a.ravel() for a in self.arrays]) if self.arrays else np.zeros(0, np.int64)
        units = self.analysis.units(flat)
        size = len(self.arrays) + 1
        fixed = np.bincount(rows[units == NO_UNIT], minlength=size).astype(np.float64)
        fixed[0] = 1.0
        placed = units != NO_UNIT
        shape = (size, self.analysis.size)
        return csr_matrix((np.ones(int(placed.sum())), (rows[placed], units[placed])), shape=shape), fixed


@gc_paused()
def cost_model(program: Program) -> CostModel:
    """The cost model of a program; made once for each program."""
    return program.cached("cost model", lambda: _build(analyse(program)))


def cost(program: Program) -> Cost:
    """What the whole program costs."""
    model = cost_model(program)
    return model.cost(model.everything)


def _build(analysis: Analysis) -> CostModel:
    widths, program = WidthNumbers(analysis), analysis.program
    batch = _batch(program)
    counted = {node.name for node in needed(program.graph, "eval")}
    multiplied = [product for product in analysis.flow.macs if product.node in counted]
    macs = sum_of_products(widths, [_flattened(analysis, product, batch) for product in multiplied])
    params = sum_of_products(widths, _params(analysis))
    values = _values(analysis)
    for _, lines in values:
        for labels in lines:
            widths.of(labels)
    for binding in analysis.flow.bindings.values():
        widths.of(binding.labels)
    counts, fixed = widths.matrix()
    return CostModel(analysis, counts, fixed, macs, params, widths, values)


def _batch(program: Program) -> int:
    return batch_of(program.inputs) or 1


def _flattened(analysis: Analysis, product: Product, batch: int) -> Product:
    """The product for one sample; of a width along several dimensions, only the one that can shrink is a factor."""
    lines = tuple(analysis.line(labels) for labels in product.widths)
    fixed = elements([w.size for w in product.widths]) / elements([line.size for line in lines])
    return Product(product.node, product.coefficient * fixed / batch, lines)


def sum_of_products(widths: WidthNumbers, products: Sequence[Product]) -> Terms:
    """A term for each product, by the numbers of its widths."""
    rows = [[widths.of(labels) for labels in product.widths] for product in products]
    longest = max(map(len, rows), default=0)
    factors = np.array([row + [0] * (longest - len(row)) for row in rows], dtype=np.int64)
    coefficients = np.array([product.coefficient for product in products], dtype=np.float64)
    return Terms(tuple(p.node for p in products), coefficients, factors.reshape(len(rows), longest))


def _params(analysis: Analysis) -> list[Product]:
    return [elements_of(analysis, name, tensor) for name, tensor in _parameters(analysis.program)]


def elements_of(analysis: Analysis, name: str, tensor: torch.Tensor) -> Product:
    """The number of elements of a parameter or buffer, as a product of widths."""
    bindings = analysis.flow.bindings
    mine = [Axis(name, d) for d in range(tensor.ndim)]
    axes = [bindings[axis] for axis in mine if axis in bindings and axis not in analysis.flow.by_group]
    total = elements([b.labels.size for b in axes])
    return Product(name, tensor.numel() / max(total, 1), tuple(b.labels for b in axes))


def _parameters(program: Program) -> list[tuple[str, nn.Parameter]]:
    found: dict[int, tuple[str, nn.Parameter]] = {}
    for name, value in program.state.items():
        tensors = module_tensors(name, value) if isinstance(value, nn.Module) else ((name, value),)
        for key, tensor in tensors:
            if type(tensor) is not torch.Tensor and isinstance(tensor, nn.Parameter):
                found.setdefault(id(tensor), (key, tensor))
    return list(found.values())


def _values(analysis: Analysis) -> list[Value]:
    """What is computed in eval mode. A view is a value of its own."""
    graph = analysis.program.graph
    counted = needed(graph, "eval")
    return [
        (node, tuple(map(analysis.line, analysis.flow.fields(node))))
        for node in graph.nodes
        if isinstance(node.meta.get("val"), torch.Tensor)
        and node.op not in ("output", "get_attr")
        and node.target is not by_mode
        and node in counted
    ]


def _elements(values: Iterable[Value], batch: int) -> list[Product]:
    """The number of elements of each value, of one sample, as a product of widths."""
    return [
        Product(node.name, elements(shape_of_argument(node)) / batch / elements([w.size for w in lines]), lines)
        for node, lines in values
    ]


def _lives(graph: fx.Graph, values: Iterable[Value]) -> tuple[IntArray, IntArray]:
    """[values], twice: the step at which each is made, and that at which it is last read."""
    counted = needed(graph, "eval")
    order = {node: step for step, node in enumerate(node for node in graph.nodes if node in counted)}
    births = [order[node] for node, _ in values]
    deaths = [max((order[u] for u in _readers(node) if u in order), default=order[node]) for node, _ in values]
    return np.array(births, dtype=np.int64), np.array(deaths, dtype=np.int64)


def _readers(node: fx.Node) -> Iterator[fx.Node]:
    """The nodes that read a value's data in eval mode. A node that chooses by mode hands eval mode's value on."""
    for user in node.users:
        if user.target is by_mode:
            yield from _readers(user) if user.args[0] is node else ()
        elif _reads_data(user):
            yield user


def _reads_data(user: fx.Node) -> bool:
    """Whether a node reads more than a size, which may be asked for before the value is freed."""
    if type(user.meta.get("val")) is torch.Tensor:
        return True
    return any(isinstance(x, torch.Tensor) for x in pytree.tree_leaves(user.meta.get("val"))) or user.op == "output"

"""`factorise`: a convolution or linear layer as two thinner ones, by what it gives on calibration data.

    conv [64 -> 128, 3x3]   ->   conv.0 [64 -> 24, 3x3, no bias], conv.1 [24 -> 128, 1x1]
    fc   [512 -> 256]       ->   fc.0   [512 -> 60, no bias],     fc.1   [60 -> 256]

    - factorise: {budget: {macs: 50%}}              ranks by remaining errors, all layers together
    - factorise: {error: 1%}                        each layer as thin as loses no more of its target's variance
    - factorise: {ranks: {conv2: 24, fc: 60}}       spelled out, as a lock does

The two layers of a rank are the nearest to the old one on the layer's own inputs (`repairing/low_rank.py`). Where a
residual sum directly follows, errors are shares of the sum's variance. A layer stays whole where two would cost more.
Grouped convolutions, layers that share their weights, and functions with a weight of their own are left alone.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Final

import numpy as np
import torch
from pydantic import Field, StrictInt, model_validator
from torch import Tensor, fx, nn

from prunec.compiler.errors import PassError, nearest
from prunec.compiler.groups.patterns import match_names
from prunec.compiler.ir.modules import clone_module
from prunec.compiler.ir.program import Note, Program, State, shape_of
from prunec.compiler.pass_base import Allowance, Context, Pass, PassResult
from prunec.compiler.plan.options import Fraction01, wrong
from prunec.compiler.verify.reference import Reference, Replaced
from prunec.passes.calibration.calibration import Calibration
from prunec.passes.repairing.audit import audit_factors
from prunec.passes.repairing.calls import CONVS, LINEARS
from prunec.passes.repairing.inputs import bytes_of_moments, in_lots, look
from prunec.passes.repairing.layers import Layer, Search
from prunec.passes.repairing.low_rank import Spectrum
from prunec.passes.selection.amounts import Budgets, fits
from prunec.passes.selection.budgets import met

Count = Annotated[StrictInt, Field(ge=1)]
_HALVINGS: Final = 40


class Factorise(Pass):
    """Write layers as two thinner ones each, by low rank."""

    name: ClassVar[str] = "factorise"
    rewrites: ClassVar[bool] = True
    shorthand: ClassVar[str | None] = "error"

    budget: Budgets | None = Field(
        default=None, min_length=1, description="what may be left: a share of the traced model's, or an amount"
    )
    error: Fraction01 | None = Field(
        default=None, description="the share of its target's variance that each layer may lose"
    )
    ranks: dict[str, Count] | None = Field(default=None, description="the rank of each layer, by its module's name")
    only: tuple[str, ...] = Field(default=(), description="glob patterns of the layers to look at; all by default")
    protect: tuple[str, ...] = Field(default=(), description="glob patterns of layers that stay whole")
    multiple_of: Count = Field(default=1, description="ranks are multiples of this")
    samples: Count = Field(default=512, description="how many samples are looked at; labels aren't")
    split: str = Field(default="train", description="the split of the data that they are of")
    may_fall_short: bool = Field(
        default=False, description="`budget`: where it is out of reach, go as far as it goes and warn, don't fail"
    )

    @model_validator(mode="after")
    def _one_amount(self) -> Factorise:
        """Refuse two ways of saying how much."""
        said = [name for name in ("budget", "error", "ranks") if getattr(self, name) is not None]
        if len(said) > 1:
            raise wrong(f"must name one of 'budget', 'error' and 'ranks', not '{said[0]}' and '{said[1]}'")
        for name, text in (self.budget or {}).items():
            fits(name, text)
        return self

    def in_round(self, allowance: Allowance) -> Pass:
        """The pass with the round's budget, unless it says itself how much goes."""
        if self.budget or self.error is not None or self.ranks:
            return self
        return self.model_copy(update={"budget": dict(allowance.left), "may_fall_short": True})

    def resources(self) -> frozenset[str]:
        """The resources that have a budget."""
        return frozenset(self.budget or {})

    def check(self, program: Program) -> None:
        """Raise `PassError` for names and patterns of layers that the program doesn't have."""
        self._layers(program)

    def ready(self, program: Program, context: Context) -> None:
        """Raise `PassError` without data, or where nothing says how much; `DataError` where data don't fit."""
        self._calibration.ready(program, context, "factorise")

    @property
    def _calibration(self) -> Calibration:
        return Calibration(samples=self.samples, split=self.split)

    def run(self, program: Program, context: Context) -> PassResult:
        """Give the program with two layers in place of each that is worth it. Raises `PassError` where the budget is
        out of reach."""
        if self.budget is None and self.error is None and self.ranks is None:
            raise PassError("factorise must name a 'budget', an 'error' or 'ranks'")
        layers, notes = self._layers(program)
        found = {
            name: _Choice.of(name, layer, spectrum, self.multiple_of)
            for name, layer, spectrum in self._seen(layers, program, context)
        }
        ranks, warnings = self._ranks(found, program, context)
        after = _factorised(program, {name: (found[name], rank) for name, rank in ranks.items()})
        rows = {
            name: {
                "rank": rank,
                "of": len(found[name].spectrum.basis),
                "error": float(f"{found[name].spectrum.error[rank]:.3g}"),
            }
            for name, rank in ranks.items()
        }
        return PassResult(after, notes, {"factorised": rows, "samples": self.samples}, warnings)

    def resolved(self, result: PassResult) -> tuple[Pass, ...]:
        """The pass with its ranks spelled out."""
        rows = result.details["factorised"]
        ranks = {name: row["rank"] for name, row in rows.items()}
        told = {"samples": self.samples, "split": self.split}
        return (Factorise.model_validate({"ranks": ranks, **told}),) if ranks else ()

    def reference(self, before: Program, after: Program) -> Reference:
        """The program as it was, with the product of the two layers in place of each weight."""
        new = after.tensors
        tensors = {
            name: new[name] for name, x in before.tensors.items() if name in new and not torch.equal(x, new[name])
        }
        for name, weight in before.tensors.items():
            owner, _, key = name.rpartition(".")
            if name in new or f"{owner}.1.weight" not in new:
                continue
            if key == "bias":
                tensors[name] = new[f"{owner}.1.bias"]
            else:
                first, second = (new[f"{owner}.{i}.weight"].detach().double() for i in (0, 1))
                product = torch.einsum("or,r...->o...", second.flatten(1), first)
                tensors[name] = product.reshape(weight.shape).to(weight.dtype)
        return Replaced(before, tensors)

    def audit(self, program: Program, result: PassResult, context: Context) -> None:
        """On some samples, that two layers give a projection of what one gave."""
        audit_factors(program, result.program, self._calibration, context)

    # -- which layers --------------------------------------------------------------------------------------------------

    def _layers(self, program: Program) -> tuple[dict[str, Layer], tuple[Note, ...]]:
        """The layers that may be factorised, by their modules' names; and why others aren't."""
        if program.deployed is not program:
            return {}, (Note("the model", "isn't factorised, since it runs in both modes"),)
        search = Search(program, program).found(everywhere=True)
        known, notes = dict[str, Layer](), [*search.notes]
        for layer in search.layers:
            module = program.state.get(str(layer.node.target)) if layer.node.op == "call_module" else None
            name = str(layer.node.target)
            if module is not None and layer.form.turned:
                notes.append(Note(name, "a transposed convolution isn't factorised"))
            elif type(module) not in (*CONVS, *LINEARS):
                notes.append(Note(layer.weight, "a function's weight isn't factorised"))
            elif getattr(module, "groups", 1) > 1:
                notes.append(Note(name, "a grouped convolution isn't factorised"))
            else:
                known[name] = layer
        kept = match_names(self.protect, known, "protect")
        wanted = match_names(self.only, known, "only") if self.only else frozenset(known)
        if self.ranks is not None:
            odd = next((name for name in self.ranks if name not in known), None)
            if odd is not None:
                message = f"ranks: there is no layer '{odd}' that can be factorised"
                raise PassError(message, keys=("ranks", odd), hint=nearest(odd, known))
            wanted = frozenset(self.ranks)
        return {name: layer for name, layer in known.items() if name in wanted - kept}, tuple(notes)

    def _seen(
        self, layers: Mapping[str, Layer], program: Program, context: Context
    ) -> Iterator[tuple[str, Layer, Spectrum]]:
        """Each layer with what its outputs are made of; as many at a time as memory holds the moments of."""
        for lot in in_lots(layers, lambda name: bytes_of_moments(layers[name], program)):
            seen = look([layers[name] for name in lot], program, self._calibration, context)
            yield from ((name, layers[name], Spectrum.of(seen[layers[name].part.key(program)])) for name in lot)

    # -- how thin ------------------------------------------------------------------------------------------------------

    def _ranks(
        self, found: Mapping[str, _Choice], program: Program, context: Context
    ) -> tuple[dict[str, int], tuple[str, ...]]:
        """Layer -> its rank, for those that don't stay whole."""
        if self.ranks is not None:
            wide = next((n for n, rank in self.ranks.items() if rank > found[n].most), None)
            if wide is not None:
                message = f"ranks: '{wide}' can have at most rank {found[wide].most}"
                raise PassError(message, keys=("ranks", wide))
            return dict(self.ranks), ()
        if self.error is not None:
            return _worth({name: each.within(self.error) for name, each in found.items()}), ()
        assert self.budget is not None, "nothing else says how much"
        return self._meeting(found, program, context, self.budget)

    def _meeting(
        self, found: Mapping[str, _Choice], program: Program, context: Context, budget: Mapping[str, float | str]
    ) -> tuple[dict[str, int], tuple[str, ...]]:
        """The ranks that lose least for what they save, with the lowest price of a share of the cost that meets the
        budget."""
        counted = "params" if "macs" not in budget else "macs"
        whole = sum(each.whole[counted] for each in found.values())

        def at(price: float) -> dict[str, int]:
            return _worth({name: each.at(price / whole, counted) for name, each in found.items()})

        def fits_at(price: float) -> bool:
            ranks = at(price)
            return met(budget, _factorised(program, {n: (found[n], rank) for n, rank in ranks.items()}), context)

        low, high = -9.0, 9.0
        if not found or not fits_at(10**high):
            message = "the budget can't be met by factorising layers"
            if not self.may_fall_short:
                raise PassError(message, keys=("budget",), hint="cut channels as well: score, select, shrink")
            return at(10**high) if found else {}, (f"factorise: {message}",)
        for _ in range(_HALVINGS):
            middle = (low + high) / 2
            low, high = (low, middle) if fits_at(10**middle) else (middle, high)
        return at(10**high), ()


@dataclass(frozen=True)
class _Choice:
    """A layer, and what each of its ranks costs."""

    layer: Layer
    spectrum: Spectrum
    costs: Mapping[str, np.ndarray[Any, Any]]
    """Resource -> [ranks]: what two layers of rank 0, 1, 2, ... cost."""
    whole: Mapping[str, float]
    """Resource -> what the layer costs."""
    step: int

    @staticmethod
    def of(name: str, layer: Layer, spectrum: Spectrum, step: int) -> _Choice:
        p, o = spectrum.weight.shape
        shape = shape_of(layer.node)
        places = math.prod(shape) // o // max(shape[layer.batch[0]] // layer.batch[1], 1)
        ranks = np.arange(min(p, o) + 1)
        costs = {"params": (p + o) * ranks, "macs": places * (p + o) * ranks}
        return _Choice(layer, spectrum, costs, {"params": p * o, "macs": places * p * o}, step)

    @property
    def most(self) -> int:
        """The largest rank."""
        return min(self.spectrum.weight.shape)

    def _useful(self) -> np.ndarray[Any, Any]:
        """The ranks that are cheaper than the whole layer."""
        ranks = np.arange(self.step, self.most + 1, self.step)
        return ranks[self.costs["params"][ranks] < self.whole["params"]]

    def within(self, error: float) -> int:
        """The smallest useful rank that loses no more than that; 0 for the whole layer."""
        ranks = self._useful()
        fine = ranks[self.spectrum.error[ranks] <= error]
        return int(fine[0]) if fine.size else 0

    def at(self, price: float, counted: str) -> int:
        """The rank with the least of error + price * cost; 0 for the whole layer."""
        ranks = self._useful()
        if not ranks.size:
            return 0
        total = self.spectrum.error[ranks] + price * self.costs[counted][ranks]
        best = int(np.argmin(total))
        return int(ranks[best]) if total[best] < price * self.whole[counted] else 0


def _worth(ranks: Mapping[str, int]) -> dict[str, int]:
    return {name: rank for name, rank in ranks.items() if rank}


# -- the rewrite -------------------------------------------------------------------------------------------------------


def _factorised(program: Program, chosen: Mapping[str, tuple[_Choice, int]]) -> Program:
    """The program with two layers in place of each of these."""
    if not chosen:
        return program
    graph, mapping = program.copy_graph_with_map()
    state: dict[str, State] = dict(program.state)
    for name, (choice, rank) in chosen.items():
        old = choice.layer.node
        module: Any = state[name]
        first, second, shift = _modules(module, choice.spectrum, rank, choice.layer.bias == f"{name}.bias")
        state[f"{name}.0"], state[f"{name}.1"] = first, second
        if choice.layer.norm is not None and choice.layer.bias and choice.layer.bias != f"{name}.bias":
            norm: Any = state[str(choice.layer.norm.target)]
            mean = norm.running_mean.double() - shift
            state[str(choice.layer.norm.target)] = clone_module(norm, {"running_mean": mean.to(norm.running_mean)})
        _put(graph, mapping[old], name, rank, conv=type(module) in CONVS)
    return program.with_graph(graph, state)


def _modules(module: Any, spectrum: Spectrum, rank: int, biased: bool) -> tuple[nn.Module, nn.Module, Tensor]:
    """Both layers, and what is to be added to their outputs where the second one has no bias for it."""
    one, two, shift = spectrum.split(rank)
    weight, conv = module.weight, type(module) in CONVS
    size = {"out_channels" if conv else "out_features": rank}
    own: dict[str, Any] = {"weight": one.T.reshape(rank, *weight.shape[1:]).to(weight), "bias": None}
    first = clone_module(module, own, **size)
    outputs = len(weight)
    second: Any = nn.Linear(rank, outputs, bias=biased, device="meta")
    if conv:
        second = type(module)(rank, outputs, 1, bias=biased, device="meta")
    two = two.T.reshape(outputs, rank, *[1] * (weight.ndim - 2))
    second.weight = nn.Parameter(two.to(weight), requires_grad=weight.requires_grad)
    if biased:
        bias = module.bias.detach().double() + shift
        second.bias = nn.Parameter(bias.to(module.bias), requires_grad=module.bias.requires_grad)
    return first, second.train(module.training), shift


def _put(graph: fx.Graph, node: fx.Node, name: str, rank: int, *, conv: bool) -> None:
    """Two calls in place of one; the second has its name, so that what follows is called as before."""
    value = node.meta["val"]
    dim = 1 if conv and value.ndim > 2 else value.ndim - 1
    with graph.inserting_before(node):
        first = graph.call_module(f"{name}.0", node.args, node.kwargs)
    shape = list(value.shape)
    shape[dim] = rank
    first.meta = {**node.meta, "val": value.new_empty(shape)}
    node.target, node.args, node.kwargs = f"{name}.1", (first,), {}

"""`repair`: what is left of a pruned network is refit in closed form, on a few unlabelled samples; nothing is trained.

- repair: least_squares        weights and biases, so that each layer gives on its slim inputs what the dense layer gave
- repair: bias                 biases alone, so that the means of the outputs are the dense network's
- repair: batch_norm           the running statistics of batch norms, estimated anew
- repair: {method: least_squares, samples: 256, layers: readers}
- repair: {method: bias, data: none}      by what batch norms know of their outputs

The dense network is the model as it was traced. Layers are repaired in the order of the graph, each on what the slim
network gives it then, so that later ones also make up for what earlier ones could not.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Any, ClassVar, Final, Literal

import torch
from pydantic import Field, StrictInt, model_validator
from torch import fx

from prunec.compiler.errors import PassError
from prunec.compiler.ir.modules import with_own_tensors
from prunec.compiler.ir.program import Note, Program
from prunec.compiler.pass_base import Attachment, Context, Pass, PassResult, silent
from prunec.compiler.plan.options import wrong
from prunec.compiler.verify.reference import Reference, Replaced
from prunec.passes.calibration.calibration import Bytes, Calibration, bytes_of_a_sample
from prunec.passes.repairing.audit import RepairAudit
from prunec.passes.repairing.drawn import Drawn
from prunec.passes.repairing.layers import NORMS, Found, Layer, Search, called
from prunec.passes.repairing.outputs import Step, longest_step, partial_step
from prunec.passes.repairing.refit import Bias, LeastSquares, Place, Statistics
from prunec.passes.repairing.values import WIDEST, RefitValues, Values, values_of
from prunec.passes.repairing.walk import Walk

_TOLD_BY: Final = 4
"""So many samples at once tell which layers give values of attention heads."""
_KEPT: Final = "old weights"

Count = Annotated[StrictInt, Field(ge=1)]


class Repair(Pass):
    """Refit what is left, without training."""

    name: ClassVar[str] = "repair"
    trains: ClassVar[bool] = True
    refits: ClassVar[bool] = True
    drops: ClassVar[frozenset[str]] = frozenset({"scores", "class_evidence"})
    shorthand: ClassVar[str | None] = "method"

    method: Literal["least_squares", "bias", "batch_norm"] = Field(
        default="least_squares", description="what is refit: weights and biases, biases, or batch norms' statistics"
    )
    layers: Literal["all", "readers"] = Field(
        default="all",
        description="least squares of all layers behind the first loss, or of those alone that have lost inputs",
    )
    samples: Count = Field(default=512, description="how many samples are looked at; labels aren't")
    split: str = Field(default="train", description="the split of the data that they are of")
    data: Literal["plan", "none"] = Field(
        default="plan",
        description="`bias`, `batch_norm`: what is looked at: samples of the plan's data, or nothing but what batch "
        "norms themselves know of their outputs",
    )
    rows: Count = Field(default=32_000, description="least squares: about how many output positions of a layer count")
    memory: Bytes = Field(
        default=2**30, description="bytes for values between two layers; samples beyond are run anew for each layer"
    )

    @model_validator(mode="after")
    def _needs_data(self) -> Repair:
        if self.data == "none" and self.method == "least_squares":
            raise wrong("must not say 'data: none' for least_squares, which needs samples: bias and batch_norm don't")
        return self

    def ready(self, program: Program, context: Context) -> None:
        """Raise `PassError` without data, `DataError` where they don't fit the model."""
        if self.data == "none":
            if not any(type(part) in NORMS for part in program.state.values()):
                hint = "repair before fold_bn, or give some samples: labels aren't needed"
                raise PassError("repair without data goes by batch norms, and the model has none", hint=hint)
            return
        if context.inputs is not None:
            raise PassError("a region of the model can't be repaired by itself: the data are of the whole model")
        self._calibration.ready(program, context, "repair")

    @property
    def _calibration(self) -> Calibration:
        return Calibration(samples=self.samples, split=self.split)

    def run(self, program: Program, context: Context) -> PassResult:
        """Give the program with other values in its weights. Raises as `ready` does."""
        self.ready(program, context)
        assert context.traced is not None, "a compile knows what it has traced"
        facts = {name: fact for name, fact in program.facts.items() if name not in self.drops}
        made = program.derive(state=with_own_tensors(program.state), facts=facts)
        slim, dense = made.deployed, context.traced.deployed
        search = Search(slim, dense)
        found = search.found(sums=self.data == "plan")
        if self.data == "none":
            return self._drawn(program, made, Drawn(slim, dense, found), found)
        work = _Work(self, search, found, context)
        places = work.places()
        if not places:
            none = "nothing to repair: no layer reads fewer channels than in the traced model"
            why = none if not found.lost else f"none of the {found.lost} layers that have lost inputs can be repaired"
            return PassResult(program, tuple(found.notes), warnings=(f"repair: {why}",))
        rows = work.run(places)
        notes, told = (*found.notes, *work.notes), work.warnings()
        details = {"method": self.method, "repaired": rows, "samples": len(work.known)}
        details |= {"values": work.pairs} if work.pairs else {}
        if not rows:
            told = (*told, f"repair: nothing was repaired; the first reason: {work.notes[0]}")
            return PassResult(made, notes, details, told)
        step = longest_step(
            program.deployed, slim, dense, self._calibration, context, shorten=self.method != "batch_norm"
        )
        if step is not None:
            if step.share < 1:
                self._audit(program, made, work.pairs, context)  # what isn't taken is looked at here, or by nobody
                made, rows = partial_step(program, made, step.share), rows if step.share else {}
            details |= {"repaired": rows, "outputs": step.to_dict()}
            told = (*told, *_farther(self.method, step))
        return PassResult(made, notes, details, told, attachments=_table(self.method, rows))

    def _drawn(self, program: Program, made: Program, drawn: Drawn, found: Found) -> PassResult:
        """The repair by what batch norms know."""
        rows = drawn.run(self.method)
        notes = (*found.notes, *drawn.notes)
        if not rows:
            why = "nothing to repair: no layer behind a batch norm reads fewer channels than in the traced model"
            return PassResult(program, notes, warnings=(f"repair: {why}",))
        return PassResult(made, notes, {"method": self.method, "repaired": rows, "samples": 0})

    def reference(self, before: Program, after: Program) -> Reference:
        """The program as it was, with the refitted tensors put in."""
        old, new = before.tensors, after.tensors
        return Replaced(before, {name: new[name] for name in old if not torch.equal(old[name], new[name])})

    def audit(self, program: Program, result: PassResult, context: Context) -> None:
        """On some samples, that layers give what they should rather than what they gave; of none, nothing is said."""
        if self.data == "plan" and result.details.get("outputs", {}).get("step", 1) == 1:
            self._audit(program, result.program, result.details.get("values", {}), context)

    def _audit(self, before: Program, after: Program, values: Mapping[str, str], context: Context) -> None:
        anew = self.method == "batch_norm"
        RepairAudit(before, after, self._calibration, context, anew, self.rows, values).check()


class _Work:
    """One repair of a program, whose values it changes in place."""

    def __init__(self, options: Repair, search: Search, found: Found, context: Context) -> None:
        self.options, self.search, self.found, self.context = options, search, found, context
        self.slim, self.dense = search.slim, search.dense
        self.notes: list[Note] = []
        self.known: Sequence[int] = ()
        self.left_out, self.first_left_out = set[int](), ""
        """The numbers of samples that make values infinite or NaN, and the first place where one did."""
        self.pairs: dict[str, str] = {}
        """Layers that give values -> the projections with which they were refit."""

    def places(self) -> list[tuple[fx.Node, Layer | Values | None]]:
        """The nodes that are repaired, in their order; None for a batch norm."""
        if self.options.method == "batch_norm":
            return [(node, None) for node in self.found.norms]
        all_of_them = self.options.method == "least_squares" and self.options.layers == "all"
        layers = [layer for layer in self.found.layers if all_of_them or layer.lost]
        if self.options.method == "bias":
            layers = [layer for layer in layers if layer.bias is not None]
        found: list[tuple[fx.Node, Layer | Values | None]] = [(layer.node, layer) for layer in layers]
        if all_of_them and layers:
            found += [(pair.node, pair) for pair in self._values()]
        place = {node: index for index, node in enumerate(self.found.order)}
        return sorted(found, key=lambda each: place[each[0]])

    def _values(self) -> Iterator[Values]:
        """The values of attention heads that are refit together with their projections."""
        context, each = replace(self.context, progress=silent), bytes_of_a_sample(self.slim)
        pieces = self.options._calibration.pieces(self.slim, context, each, _TOLD_BY)
        for pair in values_of(self.search, self.found, pieces):
            if pair.features(self.slim) * len(pair.heads) <= WIDEST:
                yield pair
            else:
                why = f"its values stay: heads that read more than {WIDEST:,} numbers together aren't refit"
                self.notes.append(Note(called(pair.node), why))

    def run(self, places: Sequence[tuple[fx.Node, Layer | Values | None]]) -> dict[str, Any]:
        """Repair them one after the other; give figures of each by name."""
        walk = Walk(
            self.slim, self.found.order, self.dense, self.options._calibration, self.context, self.options.memory
        )
        self.known = walk.known
        rows: dict[str, Any] = {}
        begun, seen = dict[Hashable, Place](), Counter[Hashable]()
        """By the key of a weight that several layers share: what is gathered of them, and how many were seen."""
        left = [_target(what) for _, what in places]
        for done, (node, what) in enumerate(places):
            name = what.name if isinstance(what, Values) else called(node)
            self.context.progress("repair", done, len(places), name)
            place = self._place(node, what, walk, begun)
            wanted = {target for target in left[done:] if target is not None}
            for piece in walk.halt(node, wanted):
                with torch.no_grad(), piece.running():
                    place.see(piece)
            if isinstance(what, Layer) and what.calls > 1:
                key = what.part.key(self.slim)
                seen[key] += 1
                begun[key] = place
                if seen[key] < what.calls:
                    continue
                walk.restart()  # its earlier calls give other values now
            figures = place.finish()
            if place.left_out:
                self.left_out, self.first_left_out = self.left_out | place.left_out, self.first_left_out or name
            if figures is None or figures is False:
                few = "too few samples make finite values" if place.left_out else "too few samples"
                why = few if place.is_scarce else "some samples make its values infinite or NaN"
                self.notes.append(Note(name, f"isn't repaired: {why}"))
                continue
            rows[name] = _row(figures)
            if isinstance(what, Values) and rows[name]["ridge"] != _KEPT:
                self.pairs[called(what.node)] = called(what.reader.node)
        self.context.progress("repair", len(places), len(places))
        return rows

    def warnings(self) -> tuple[str, ...]:
        """What the user must see of the samples."""
        count = sum(number in self.left_out for number in self.known)
        if not count:
            return ()
        of = f"{count} of {len(self.known)} samples {'makes' if count == 1 else 'make'} values infinite or NaN"
        return (f"repair: {of}, first at {self.first_left_out}; these values are left out",)

    def _place(self, node: fx.Node, layer: Layer | Values | None, walk: Walk, begun: Mapping[Hashable, Place]) -> Place:
        if layer is None:
            return Statistics(node, self.slim)
        if isinstance(layer, Values):
            return RefitValues(layer, self.slim, walk.known, self.options.rows)
        known = begun.get(layer.part.key(self.slim))
        if isinstance(known, LeastSquares | Bias):
            known.move(layer)
            return known
        if self.options.method == "bias":
            return Bias(layer, self.slim)
        return LeastSquares(layer, self.slim, walk.known, self.options.rows)


def _target(what: Layer | Values | None) -> fx.Node | None:
    """The dense value that a place asks for."""
    return what.reader.target if isinstance(what, Values) else None if what is None else what.target


def _farther(method: str, step: Step) -> tuple[str, ...]:
    """The warning of a repair that isn't good for the outputs."""
    if step.is_nearer:
        return ()
    shorter = f"{step.share:.0%} of the step is taken: {step.after:.3g}" if step.share else "nothing is changed"
    done = "" if step.share == 1 else f", so {shorter}"
    better = "" if method == "least_squares" else "; least_squares does more"
    return (
        f"repair: {method} takes the outputs farther from the dense model's on these samples "
        f"(error {step.before:.3g} -> {step.whole:.3g}){done}{better}",
    )


def _table(method: str, rows: Mapping[str, Mapping[str, Any]]) -> tuple[Attachment, ...]:
    """The figures of least squares as a table."""
    if method != "least_squares" or not rows:
        return ()
    lines = ["layer,ridge,error left", *(f"{name},{row['ridge']},{row['error_left']}" for name, row in rows.items())]
    caption = "Each layer's ridge, and the share of its error on samples held out that is left."
    return (Attachment("repair.csv", ("\n".join(lines) + "\n").encode(), "Repaired layers", caption),)


def _row(figures: Any) -> dict[str, Any]:
    """What the report tells of one place."""
    if figures is True:
        return {}
    ratio = figures.after / figures.before if figures.before > 0 else 0.0
    ridge = _KEPT if figures.ridge is None else float(f"{figures.ridge:.3g}")
    return {"ridge": ridge, "error_left": float(f"{ratio:.3g}")}

"""`block`: tiles of weight matrices become zero, and stay zero through every training.

- block: {tile: [4, 4], keep: 50%}                         the smaller half of each layer's tiles goes
- block: {tile: [8, kernel], keep: 50%, mode: balanced}    equally many stay in every row of tiles
- block: {keep: 70%, mode: rows}                           whole filters
- block: {into: groups=4}                                  a quarter stays, so that `regroup` makes grouped layers
- finetune: 5                                              holds the zeros
- shrink                                                   removes rows and columns whose tiles are all gone
- regroup

A layer's weight is seen as a matrix with a row for each output and, for each input, as many columns as its kernel has
elements: M [C_out, C_in * k * k]; so are parameters that a forward multiplies with itself (`F.linear(x, w)`). A tile is
so many rows high and so many columns wide: `kernel` for the columns of one input, `all` for the whole row. Layers that
are left alone (grouped and recurrent ones, weights that are computed first) are told.

global      the tiles with the lowest scores go, of each layer; of all layers together with `scope: network`
balanced    equally many stay in every row of tiles
tile        within every tile, the weakest of its rows or columns go, whichever loses less
rows        tiles are as wide as the matrix: filters, where they are one row high

score       l1, l2, max: norms of a tile's weights; obd, obd_fisher: the sum of 1/2 h_ii w_i^2 over them, with the
            Hessian or the empirical Fisher information of the loss

The fact `selection` names the channels that nothing writes or nothing reads any more; of the former, biases, scales and
shifts become zero, too. `shrink` removes them. What zeros are left are sparsity, which by itself makes nothing faster.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar, Final, Literal

import numpy as np
import torch
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StrictInt, model_validator
from torch import Tensor, nn

from prunec.compiler.errors import PassError
from prunec.compiler.groups.analysis import analyse, hand_on
from prunec.compiler.ir.modules import clone_module, module_tensors
from prunec.compiler.ir.program import Note, Program, State
from prunec.compiler.pass_base import Context, Pass, PassResult
from prunec.compiler.plan.options import Fraction01, wrong
from prunec.compiler.rewrite.regroup import parts_of
from prunec.compiler.verify.reference import Reference, Replaced, Same
from prunec.passes.calibration.calibration import Calibration
from prunec.passes.criteria.base import Setting
from prunec.passes.criteria.curvature import Damage, Obd, ObdFisher, damage_of_elements
from prunec.passes.tiles.dead_units import masks_of_units, may_go, removable, unwritten
from prunec.passes.tiles.grids import Grid, given, packed
from prunec.passes.tiles.grouping import balanced_groups
from prunec.passes.tiles.matrices import Matrix, left_alone, matrices, meant
from prunec.passes.tiles.patterns import (
    balanced_tiles,
    global_tiles,
    spread,
    tile_sums,
    within_tiles,
)
from prunec.passes.training.masks import masks_of, with_masks

Count = Annotated[StrictInt, Field(ge=1)]
_SECOND_ORDER: Final[Mapping[str, type[Damage]]] = {"obd": Obd, "obd_fisher": ObdFisher}


class Into(BaseModel):
    """What the layers are to become."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    groups: Annotated[StrictInt, Field(ge=2)] = Field(description="groups of the layers that `regroup` makes")


def _into(value: object) -> object:
    if isinstance(value, str):
        name, sign, number = value.partition("=")
        if name.strip() != "groups" or not sign or not number.strip().isdecimal():
            raise wrong("must be groups=N, or {groups: N}")
        return {"groups": int(number)}
    return value


class Block(Pass):
    """Zero tiles of weight matrices, and hold them at zero."""

    name: ClassVar[str] = "block"
    rewrites: ClassVar[bool] = True
    gives: ClassVar[frozenset[str]] = frozenset({"selection"})
    shorthand: ClassVar[str | None] = "keep"

    tile: tuple[Count, Count | Literal["kernel", "all"]] | None = Field(
        default=None,
        description="rows and columns of a tile; 4 x 4 where nothing is said, one kernel with `into`, one filter in "
        "the mode rows",
        examples=[[4, 4], [1, "kernel"]],
    )
    keep: Fraction01 = Field(default=0.5, description="the share of the tiles that stay; with `into`, groups decide")
    mode: Literal["global", "balanced", "tile", "rows"] = Field(
        default="global", description="what is compared: all tiles, those of a row, the lines of a tile, whole rows"
    )
    scope: Literal["layer", "network"] = Field(
        default="layer", description="`global`, `rows`: whether tiles are compared within their layer or in all of them"
    )
    score: Literal["l1", "l2", "max", "obd", "obd_fisher"] = Field(
        default="l1", description="what makes a tile important: a norm, or the sum of its weights' second-order losses"
    )
    into: Annotated[Into | None, BeforeValidator(_into)] = Field(
        default=None,
        description="choose what stays so that the layers can become grouped ones: groups=4",
        examples=["groups=4"],
    )
    only: tuple[str, ...] = Field(default=(), description="glob patterns of the layers; all where none is named")
    protect: tuple[str, ...] = Field(default=(), description="glob patterns of layers that are left alone")
    samples: Count | None = Field(default=None, description="second order: how many samples are looked at; 1024")
    probes: Count = Field(default=8, description="`obd`: random vectors that the estimate averages over")
    masks: dict[str, Grid] | None = Field(default=None, description="a lock's: the tiles of each layer")

    @model_validator(mode="after")
    def _options_fit(self) -> Block:
        said = self.model_fields_set
        if self.masks is not None and said - {"masks"}:
            raise wrong("must not say anything beside 'masks', which says all")
        if self.into is not None and (extra := sorted(said & {"keep", "mode", "scope", "tile"})):
            raise wrong(f"must not name '{extra[0]}' beside 'into', which decides what stays")
        if self.scope == "network" and self.mode not in ("global", "rows"):
            raise wrong(f"must not name 'scope: network' for the mode {self.mode}, which compares within a layer")
        if self.scope == "network" and self.score not in _SECOND_ORDER:
            raise wrong(
                "must not name 'scope: network' for a norm, which has the scale of its layer",
                hint="score: obd_fisher is of the loss, whatever the layer",
            )
        if self.mode == "rows" and self.tile is not None and self.tile[1] != "all":
            raise wrong("must have tiles as wide as the matrix in the mode rows: tile: [1, all]")
        if self.mode == "tile" and self.score == "max":
            raise wrong("must not go by 'max' in the mode tile, which compares sums")
        if not self.keep:
            raise wrong("must keep some tiles: keep: 50%")
        return self

    # -- before any work -------------------------------------------------------------------------------------------

    def check(self, program: Program) -> None:
        """Raise `PassError` for patterns and layers that there aren't, and where no layer can become a grouped one."""
        if self.masks is not None:
            given(program, self.masks)
        else:
            self._chosen(program)

    def ready(self, program: Program, context: Context) -> None:
        """Raise `PassError` where the score needs data that there aren't, `DataError` where they don't fit."""
        if self.score in _SECOND_ORDER and self.masks is None:
            self._criterion.ready(self._setting(program, context))

    # -- the work --------------------------------------------------------------------------------------------------

    def run(self, program: Program, context: Context) -> PassResult:
        """Give the program with zeros in the tiles that go, the masks that hold them, and the fact `selection`."""
        notes: list[Note] = []
        if self.masks is not None:
            stays = given(program, self.masks)
        else:
            found, notes = self._chosen(program, again=context.round is not None and context.round.index > 0)
            stays = self._tiles(program, found, context)
        masks = _everywhere(program, stays)
        cut_off = unwritten(analyse(program), masks)
        masks |= _everywhere(program, masks_of_units(analyse(program), cut_off))
        for name, before in masks_of(program).items():
            masks[name] = masks[name] & before.to(masks[name].device) if name in masks else before
        after = with_masks(_masked(program, masks), masks)
        selection = removable(analyse(after), cut_off)
        details = {
            "sparsity": {name: 1 - _share(left) for name, left in stays.items()},
            "removable_units": {name: int(units.size) for name, units in selection.items()},
        }
        return PassResult(after.with_facts(selection=selection), tuple(notes), details)

    def resolved(self, result: PassResult) -> tuple[Pass, ...]:
        """The pass with its tiles spelled out."""
        masks, found = masks_of(result.program), matrices(result.program)
        return (Block(masks={m.layer: packed(m.of(masks[m.tensor])) for m in found.values() if m.tensor in masks}),)

    def reference(self, before: Program, after: Program) -> Reference:
        """The old program with zeros where the masks say so, put in line by line."""
        tensors = {}
        for name, stays in masks_of(after).items():
            tensors[name] = before.tensors[name].detach().clone()
            for line, row in zip(tensors[name], stays, strict=True):
                line[~row] = 0.0
        return Replaced(before, tensors) if tensors else Same(before)

    # -- which tiles stay ------------------------------------------------------------------------------------------

    def _chosen(self, program: Program, *, again: bool = False) -> tuple[dict[str, Matrix], list[Note]]:
        """The matrices of the layers that are meant, and notes on those that aren't changed. None is an error, but for
        a round `again`: earlier ones may have changed all layers already."""
        every, others = matrices(program), left_alone(program)
        if not every and not again:
            message = "this model has no layer whose weight is a matrix: a convolution or a linear layer"
            raise PassError(message, hint=_told(others))
        tensors = {name: matrix.tensor for name, matrix in every.items()} | {name: name for name in others}
        wanted = meant(tensors, self.only, self.protect)
        found = {name: matrix for name, matrix in every.items() if name in wanted}
        beside = {name: reason for name, reason in others.items() if name in wanted}
        if not found and not again:
            raise PassError("no layer is left to change", keys=("only",), hint=_told(beside))
        notes = [Note(name, reason) for name, reason in beside.items()]
        if self.mode == "rows":
            for name, matrix in list(found.items()):
                if not may_go(analyse(program), matrix.writes):
                    notes.append(Note(name, "none of its outputs may go"))
                    del found[name]
            return found, notes
        if self.into is None:
            return found, notes
        groups, uneven = self.into.groups, list[Note]()
        for name, matrix in list(found.items()):
            rows, columns = (parts_of(program, axis) for axis in (matrix.writes, matrix.reads))
            if len(rows) % groups or len(columns) % groups:
                uneven.append(Note(name, f"{len(columns)} inputs and {len(rows)} outputs make no {groups} groups"))
                del found[name]
        if not found and not again:
            raise PassError(f"no layer can have {groups} groups: {uneven[0].reason}", keys=("into",))
        return found, [*notes, *uneven]

    def _tiles(self, program: Program, found: Mapping[str, Matrix], context: Context) -> dict[str, Tensor]:
        """Weight -> which of its elements stay."""
        figures = self._figures(program, found, context)
        norm = "sum" if self.score in _SECOND_ORDER else self.score
        if self.into is not None:
            left = {n: self._grouped(program, m, figures[n], norm, context) for n, m in found.items()}
        elif self.mode == "tile":
            sizes = {name: self._size(matrix) for name, matrix in found.items()}
            left = {n: within_tiles(figures[n], *sizes[n], self.keep, norm) for n in found}
        else:
            left = self._whole_tiles(found, figures, norm)
        return {matrix.tensor: matrix.back(left[name]) for name, matrix in found.items()}

    def _whole_tiles(self, found: Mapping[str, Matrix], figures: Mapping[str, Tensor], norm: str) -> dict[str, Tensor]:
        sizes = {name: self._size(matrix) for name, matrix in found.items()}
        scores = {name: tile_sums(figures[name], *sizes[name], norm) for name in found}
        if self.mode == "balanced":
            grids = {name: balanced_tiles(grid, self.keep) for name, grid in scores.items()}
        elif self.scope == "network":
            grids = dict(zip(scores, global_tiles(list(scores.values()), self.keep), strict=True))
        else:
            grids = {name: global_tiles([grid], self.keep)[0] for name, grid in scores.items()}
        return {name: spread(grid, figures[name].shape, *sizes[name]) for name, grid in grids.items()}

    def _size(self, matrix: Matrix) -> tuple[int, int]:
        """Rows and columns of a tile of this matrix."""
        rows, columns = self.tile or ((1, "all") if self.mode == "rows" else (4, 4))
        width = matrix.kernel * matrix.inputs
        wide = {"kernel": matrix.kernel, "all": width}[columns] if isinstance(columns, str) else columns
        return min(rows, matrix.rows), min(wide, width)

    def _grouped(self, program: Program, matrix: Matrix, figures: Tensor, norm: str, context: Context) -> Tensor:
        """Which elements stay, [rows, columns], when the layer is to have groups."""
        assert self.into is not None
        rows, inputs = (parts_of(program, axis) for axis in (matrix.writes, matrix.reads))
        columns = [(part[:, None] * matrix.kernel + np.arange(matrix.kernel)).ravel() for part in inputs]
        scores = figures[np.stack(rows).ravel()][:, np.stack(columns).ravel()]
        tiles = tile_sums(scores, len(rows[0]), len(columns[0]), norm).numpy(force=True)
        of_row, of_column = balanced_groups(np.maximum(tiles, 0), self.into.groups, context.rng("block", matrix.layer))
        left = torch.zeros_like(figures, dtype=torch.bool)
        for group in range(self.into.groups):
            mine = np.concatenate([rows[r] for r in np.flatnonzero(of_row == group)])
            theirs = np.concatenate([columns[c] for c in np.flatnonzero(of_column == group)])
            left[torch.from_numpy(mine)[:, None], torch.from_numpy(theirs)[None, :]] = True
        return left

    def _figures(self, program: Program, found: Mapping[str, Matrix], context: Context) -> dict[str, Tensor]:
        """Layer -> a figure for every element of its matrix, in float64 on the CPU."""
        if self.score in _SECOND_ORDER:
            names = [matrix.tensor for matrix in found.values()]
            damage = damage_of_elements(self._setting(program, context), names, self._criterion)
            return {name: matrix.of(damage[matrix.tensor]).cpu() for name, matrix in found.items()}
        values = {name: program.tensors[matrix.tensor].detach() for name, matrix in found.items()}
        return {name: matrix.of(values[name]).abs().double().cpu() for name, matrix in found.items()}

    @property
    def _criterion(self) -> Damage:
        return Obd(diagonal=True, probes=self.probes) if self.score == "obd" else ObdFisher(diagonal=True)

    def _setting(self, program: Program, context: Context) -> Setting:
        return Setting(program, (), context, Calibration(samples=self.samples, loss=context.loss))


def _told(others: Mapping[str, str]) -> str:
    """A layer that is left alone, and why; empty where there is none."""
    return next((f"{name}: {reason}" for name, reason in others.items()), "")


def _share(stays: Tensor) -> float:
    return float(stays.double().mean())


def _everywhere(program: Program, stays: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The masks under every name that their tensors have."""
    known = {id(program.tensors[name]): left for name, left in stays.items()}
    return {name: known[id(tensor)] for name, tensor in program.tensors.items() if id(tensor) in known}


def _masked(program: Program, masks: Mapping[str, Tensor]) -> Program:
    """The program with zeros where the masks say so; what isn't masked is shared."""
    made: dict[int, nn.Parameter] = {}
    for name, stays in masks.items():
        old = program.tensors[name]
        zeroed = old.detach().masked_fill(~stays.to(old.device), 0)
        made.setdefault(id(old), nn.Parameter(zeroed, old.requires_grad))
    state: dict[str, State] = dict(program.state)
    for name, value in program.state.items():
        if isinstance(value, nn.Module):
            own = {key: made[id(x)] for key, x in module_tensors("", value) if id(x) in made}
            state[name] = clone_module(value, own) if own else value
        elif id(value) in made:
            state[name] = made[id(value)]
    return hand_on(analyse(program), program.derive(state=state))

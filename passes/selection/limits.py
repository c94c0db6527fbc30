"""A plan's constraints on a selection, worked out for every group.

    barred            the group stays whole (`protect`, or not among `only`)
    keep_at_least     channels that stay
    remove_at_most    the share of units that may go
    take_at_most      the same of one selection: of the units that are there now
    multiple_of       a cut group keeps a multiple of so many channels, in each of its layers where these hold different
                      parts of it (`aligned.py`); a grouped layer, in every group of its own
    heads_at_least    heads that stay, where units are heads
    equal_widths      groups that lose equally many channels

Other shares are shares of the units that a group has in the traced model (`whole`).

Each is a number, or numbers by pattern; the first pattern that names a group counts.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np
from torch import fx, nn

from prunec.compiler.errors import PassError
from prunec.compiler.groups.analysis import Analysis, Group, distinct
from prunec.compiler.groups.balance import NO_UNIT
from prunec.compiler.groups.patterns import matching
from prunec.compiler.ir.ops import argument, op_name, shape_of_argument
from prunec.compiler.ir.program import Axis, IntArray, Program
from prunec.passes.selection.traced import Whole


@dataclass(frozen=True)
class Limits:
    """The constraints by group; a group that isn't named has none."""

    barred: frozenset[str] = frozenset()
    keep_at_least: Mapping[str, float] = field(default_factory=dict)
    remove_at_most: Mapping[str, float] = field(default_factory=dict)
    take_at_most: Mapping[str, float] = field(default_factory=dict)
    multiple_of: Mapping[str, float] = field(default_factory=dict)
    heads_at_least: Mapping[str, float] = field(default_factory=dict)
    tied: tuple[tuple[str, ...], ...] = ()
    rows: Mapping[str, int] = field(default_factory=dict)
    """Group -> how many of its units lie in one row of a grouped layer (`units_of_a_row`)."""
    whole: Whole = field(default_factory=dict)

    def most(self, group: Group) -> int:
        """The most units that may go."""
        channels = -(-int(self.keep_at_least.get(group.name, 1)) // channels_of_a_unit(group))
        stay = max(channels, int(self.heads_at_least.get(group.name, 0)), 1)
        whole = self.whole.get(group.name, group.size)
        share = int(whole * self.remove_at_most.get(group.name, 1.0) + 1e-9) - (whole - group.size)
        now = int(group.size * self.take_at_most.get(group.name, 1.0) + 1e-9)
        return max(min(group.size - stay, share, now), 0)

    def step(self, group: Group) -> int:
        """The number of units that stay must be a multiple of this, if any go."""
        multiple = int(self.multiple_of.get(group.name, 1))
        if multiple <= 1:
            return 1
        row = self.rows.get(group.name, 0)
        if row >= multiple:
            return multiple * (group.size // row)
        return multiple // int(np.gcd(multiple, channels_of_a_unit(group)))


def channels_of_a_unit(group: Group) -> int:
    """How many channels of the group's first writer one unit holds; of what a reader selects, how many of the axis
    with the fewest, since a flatten repeats channels."""
    first = min(group.members, key=lambda m: m.positions.size) if group.incoming else group.writers[0]
    if first.positions.size == group.size:
        return 1
    return max(1, first.positions.size // max(distinct(first.units, group.size).size, 1))


def units_of_a_row(analysis: Analysis) -> dict[str, int]:
    """Group -> how many of its units lie in one row of a grouped convolution, the narrowest counts.

    A row is what one of the layer's groups reads or writes: its kernels work on rows, so a multiple must hold for them.
    Depthwise layers, and those that lose whole rows, aren't among them: their rows keep their width.
    """
    groups = list(analysis.groups.values())
    found: dict[str, int] = {}
    for node in analysis.program.graph.nodes:
        weight, rows = _grouped_weight(analysis.program, node)
        for binding in (analysis.flow.bindings.get(Axis(weight, dim)) for dim in (0, 1) if weight):
            if binding is not None:
                _note_row(analysis, groups, binding.labels, rows, found)
    return found


def _note_row(analysis: Analysis, groups: Sequence[Group], labels: IntArray, rows: int, found: dict[str, int]) -> None:
    """Note how many units of the group that is meant lie in the first of so many rows of labels."""
    units = analysis.units(labels).ravel()
    first = distinct(units[: units.size // rows], analysis.size) if (units != NO_UNIT).all() else units[:0]
    group = groups[analysis.group_of[first[0]]] if first.size > 1 else None
    if group is not None and group.size % first.size == 0:
        found[group.name] = min(first.size, found.get(group.name, first.size))


def _grouped_weight(program: Program, node: fx.Node) -> tuple[str, int]:
    """The weight of a convolution of several groups that isn't depthwise, and their number; ('', 1) for other nodes."""
    module = program.state.get(str(node.target)) if node.op == "call_module" else None
    if isinstance(module, nn.modules.conv._ConvNd):
        grouped = module.groups > 1 and not module.transposed and module.weight.shape[1] > 1
        return (f"{node.target}.weight", module.groups) if grouped else ("", 1)
    if node.op != "call_function" or op_name(node) not in _CONVOLUTIONS:
        return "", 1
    weight, rows = argument(node, 1, "weight"), argument(node, 6, "groups", 1)
    stored = isinstance(weight, fx.Node) and weight.op == "get_attr" and isinstance(rows, int) and rows > 1
    return (str(weight.target), rows) if stored and shape_of_argument(weight)[1] > 1 else ("", 1)


_CONVOLUTIONS: Final = ("conv1d", "conv2d", "conv3d")


def by_group(wanted: float | Mapping[str, float] | None, groups: Mapping[str, Group], option: str) -> dict[str, float]:
    """Group -> its number, for groups that have one. Raises `PassError` for a pattern that names no group."""
    if wanted is None:
        return {}
    if not isinstance(wanted, Mapping):
        return dict.fromkeys(groups, wanted)
    found: dict[str, float] = {}
    for pattern, names in matching(wanted, groups, option=option).items():
        for name in names:
            found.setdefault(name, wanted[pattern])
    return found


def heads_of(analysis: Analysis) -> dict[str, float]:
    """The groups whose units are heads of attention, and how many heads a unit holds."""
    blocks = [b for b in analysis.flow.divided.values() if b.kind == "attention" and b.choice == "heads"]
    heads = {name: int(block.shape.split()[0]) for block in blocks for name in block.names}
    found: dict[str, float] = {}
    for group in analysis.groups.values():
        known = [heads[m.axis.owner] for m in group.writers if m.axis.owner in heads]
        if known:
            found[group.name] = max(known) / group.size
    return found


def least_heads(analysis: Analysis, least: int | None) -> dict[str, float]:
    """Group -> how many units must stay so that `least` heads do, for groups whose units are heads."""
    return {name: -(-least // max(each, 1e-9)) for name, each in heads_of(analysis).items()} if least else {}


def tied_groups(analysis: Analysis, patterns: Iterable[str]) -> tuple[tuple[str, ...], ...]:
    """The groups that each pattern of `equal_widths` names, of those that may be cut.

    Raises `PassError` where a group is named twice, or the groups' widths differ to begin with.
    """
    found: list[tuple[str, ...]] = []
    seen: dict[str, str] = {}
    for index, (pattern, names) in enumerate(matching(list(patterns), analysis.groups, option="equal_widths").items()):
        names = [name for name in names if analysis.groups[name].free.any()]
        widths = {name: analysis.groups[name].size * channels_of_a_unit(analysis.groups[name]) for name in names}
        if len(set(widths.values())) > 1:
            sizes = ", ".join(f"'{name}' has {width}" for name, width in _one_of_each(widths).items())
            message = f"equal_widths: the groups that '{pattern}' means can't be kept equal: {sizes} channels"
            raise PassError(message, keys=("equal_widths", index), hint="name the groups of one width by a pattern")
        for name in names:
            if name in seen:
                message = f"equal_widths: '{pattern}' and '{seen[name]}' both mean the group '{name}'"
                raise PassError(message, keys=("equal_widths", index))
            seen[name] = pattern
        found.append(tuple(names))
    return tuple(names for names in found if len(names) > 1)


def _one_of_each(widths: Mapping[str, int]) -> dict[str, int]:
    """The first name of every width."""
    first: dict[int, str] = {}
    for name, width in widths.items():
        first.setdefault(width, name)
    return {name: width for width, name in first.items()}


def within(units: IntArray, group: Group) -> IntArray:
    """Units by their numbers within the group; empty where they are another group's."""
    local = units - group.start
    return np.asarray(local[(local >= 0) & (local < group.size)], dtype=np.int64)


def pack_size(analysis: Analysis, group: Group) -> int:
    """How many units leave the group at a time; 1 where that isn't the same for all of them."""
    mine = [b for b in analysis.balances if within(b.units, group).size]
    bound = sum(balance.units.size for balance in mine)
    return mine[0].size if bound == group.size and len({balance.size for balance in mine}) == 1 else 1

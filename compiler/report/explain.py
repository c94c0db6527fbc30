"""What `prunec explain` says: the groups of a program, what may be removed from each, and why not the rest.

explanation(program)             plain JSON values, for reports
explain(program)                 the same as a table
explain(program, "layer1.0")     what the name stands for, and of each of its groups in sentences: which layers lose a
                                 unit together, which units may not go and why; every axis that has a part in it
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from rich.console import Group as Stack
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from prunec.compiler.errors import PlanError, nearest
from prunec.compiler.groups.analysis import Analysis, Group, Member, analyse
from prunec.compiler.groups.dependency_graph import Vertex, dependency_graph
from prunec.compiler.groups.lookup import Part, find, near
from prunec.compiler.ir.granularity import Block
from prunec.compiler.ir.program import Program
from prunec.compiler.report.console import console, few, made_table

Names = Mapping[str, str]
"""A name -> what it is, in words."""


@dataclass(frozen=True)
class Answer:
    """What is shown, and the groups that it is about; None where it is about all of them."""

    shown: RenderableType
    groups: tuple[str, ...] | None = None


def explain(program: Program, name: str | None = None, original: Callable[[], Names] = dict) -> Answer:
    """The explanation of all groups, or of what a name stands for: a group, layer, parameter, axis, operation or glob.

    `original` gives names that the model has beside the program's: what its forward doesn't use. Raises `PlanError`
    for a name that stands for nothing, with the nearest ones.
    """
    if name is None:
        found = explanation(program)
        return Answer(_all(found["groups"], found["blocks"], found["totals"]))
    parts = find(program, name)
    if not parts:
        return Answer(Text(_unused(program, name, original())), ())
    own = analyse(program).groups.get(name)
    names = list(dict.fromkeys(group for part in parts for group in part.groups))
    shown = [own.name] if own is not None else names
    said = [Text(sentence) for part in parts for sentence in _about(part)]
    details = [block for group in shown for block in _one(program, analyse(program).groups[group])]
    return Answer(Stack(*said, *details), tuple(shown))


def _unused(program: Program, name: str, original: Names) -> str:
    """What to say of a name that only the original has. Raises `PlanError` where that has none such either."""
    if name in original:
        return f"{name} is {original[name]} that the traced forward doesn't use, so it belongs to no group."
    close = near(program, name, original)
    hint = (
        f"the nearest names: {', '.join(close)}" if len(close) > 1 else nearest(name, close or analyse(program).groups)
    )
    raise PlanError(f"nothing in {program.name} is called '{name}'", hint=hint)


def explanation(program: Program, group: str | None = None) -> dict[str, Any]:
    """What the tables show, as plain values. Raises PlanError for a group that isn't there."""
    analysis = analyse(program)
    if group is not None:
        return {"group": _group(_named(analysis, group), members=True)}
    channels, free_channels = _channels(analysis)
    return {
        "groups": [_group(found, members=False) for found in analysis.groups.values()],
        "blocks": [_block(block, analysis) for block in analysis.flow.divided.values()],
        "totals": {
            "groups": len(analysis.groups),
            "units": analysis.size,
            "free": int(analysis.free.sum()),
            "channels": channels,
            "free_channels": free_channels,
        },
    }


def _named(analysis: Analysis, name: str) -> Group:
    if name not in analysis.groups:
        raise PlanError(f"there is no group '{name}'", hint=nearest(name, analysis.groups))
    return analysis.groups[name]


# -- plain values --------------------------------------------------------------------------------------------------


def _group(group: Group, *, members: bool) -> dict[str, Any]:
    reasons = Counter(reason for reason in group.pinned if reason)
    found: dict[str, Any] = {
        "name": group.name,
        "units": group.size,
        "free": int(group.free.sum()),
        "pinned": [{"reason": reason, "units": units} for reason, units in reasons.most_common()],
        "writers": [str(member.axis) for member in group.writers],
        "readers": [str(member.axis) for member in group.readers],
    }
    return {**found, "members": [_member(member) for member in group.members]} if members else found


def _block(block: Block, analysis: Analysis) -> dict[str, Any]:
    """How a block is divided, and how many units leave its rows at a time."""
    together = [balance.size for balance in analysis.balances if block.node in balance.nodes]
    return {
        "node": block.node,
        "kind": block.kind,
        "shape": block.shape,
        "choice": block.choice or None,
        "leave_together": max(together, default=1),
    }


def _member(member: Member) -> dict[str, Any]:
    return {
        "axis": str(member.axis),
        "role": member.role,
        "cause": member.cause,
        "positions": len(member.positions),
        "positions_per_unit": _ratio(len(member.positions), len(set(member.units.tolist()))),
    }


def _ratio(positions: int, units: int) -> float:
    return round(positions / max(units, 1), 2)


def _channels(analysis: Analysis) -> tuple[int, int]:
    """How many channels the layers write, and how many of them may be removed."""
    written = sum(binding.labels.size for binding in analysis.flow.bindings.values() if binding.role == "writer")
    writers = ((group, member) for group in analysis.groups.values() for member in group.writers)
    free = sum(int(group.free[member.units].sum()) for group, member in writers if member.role == "writer")
    return written, free


# -- tables --------------------------------------------------------------------------------------------------------


_DIVIDED = {
    "heads": "whole heads go",
    "head_width": "the same positions of every head go",
    "same": "the same positions of each go",
    "equal": "each loses as many, whichever these are",
    "free": "each loses what it likes",
    "whole": "a whole one goes",
    "own": "any may go for this reader alone",
    None: "what leaves more units goes",
}


def _all(groups: list[dict[str, Any]], blocks: list[dict[str, Any]], totals: dict[str, int]) -> RenderableType:
    rows = [
        [
            Text(text, "" if group["free"] else "dim")
            for text in (
                group["name"],
                str(group["units"]),
                str(group["free"]),
                _reasons(group),
                few(group["writers"], 2),
                few(group["readers"], 2),
            )
        ]
        for group in groups
    ]
    columns = ("group", "units", "free", "pinned because", "written by", "read by")
    table = made_table("", columns, rows, right=("units", "free"))
    told = [block for block in blocks if block["choice"] != "shared"]
    return Stack(table, *map(_divided, told), Text(f"\n{_summary(totals)}"))


def _divided(block: dict[str, Any]) -> Text:
    packs = f", {block['leave_together']} units at a time" if block["leave_together"] > 1 else ""
    return Text(f"{block['node']}: of {block['shape']}, {_DIVIDED[block['choice']]}{packs}")


def _summary(totals: dict[str, int]) -> str:
    share = totals["free_channels"] / max(totals["channels"], 1)
    return (
        f"{totals['free']} of {totals['units']} units in {totals['groups']} groups may be removed: "
        f"{totals['free_channels']} of {totals['channels']} channels ({share:.0%})"
    )


def _about(part: Part) -> list[str]:
    """What a name stands for, and its part in each group, in sentences; nothing of what is a group by its kind."""
    if part.what == "a group":
        return []
    if not part.groups:
        return [f"{part.name} is {part.what}; it belongs to no group: {part.lacks}."]
    return [f"{part.name} is {part.what}.", *(_in_group(group, axes) for group, axes in part.groups.items())]


def _in_group(group: str, members: Sequence[Member]) -> str:
    """A part in a group: what it does with the channels, and by which axes."""
    if not members:
        return f"  The channels of the group {group} run through it."
    axes = {role: [str(member.axis) for member in members if member.role == role] for role in _VERBS}
    done = [f"{_VERBS[role]} ({', '.join(named)})" for role, named in axes.items() if named]
    return f"  Of the group {group} it {_and(done)}."


_VERBS: Final = {
    "writer": "writes the channels",
    "carrier": "carries the channels on",
    "buffer": "holds a value for each channel",
    "reader": "reads the channels",
}


def _one(program: Program, group: Group) -> list[RenderableType]:
    """A group in sentences, and the table of its axes."""
    free = int(group.free.sum())
    told = f"{group.name}: {_counted(group.size, 'unit')}, {free or 'none'} of which may be removed."
    return [
        Text(""),
        Text(told, "bold"),
        Text(_together(program, group)),
        *(Text(sentence) for sentence in _pins(group)),
        _axes(group),
    ]


def _together(program: Program, group: Group) -> str:
    """Which layers lose a unit together, and at which operations those that write it are tied."""
    roles = {role: _owners(member for member in group.members if member.role == role) for role in _VERBS}
    writers = roles["writer"]
    passed = [name for name in (*roles["carrier"], *roles["buffer"]) if name not in writers]
    read = [name for name in roles["reader"] if name not in passed]
    parts = [f"selected by {_owner(group.writers[0].axis)}" if group.incoming else f"written by {_and(writers)}"]
    parts += [f"carried on by {_and(passed)}"] if passed else []
    parts += [f"read by {_and(read)}"] if read else []
    tied = _ties(program, group) if len(writers) > 1 else ""
    return f"A unit of it is {', '.join(parts)}: where it goes, all of them lose it.{tied}"


def _ties(program: Program, group: Group) -> str:
    """At which operations the channels of several writers meet."""
    graph = dependency_graph(program).subgraph(member.axis for member in group.writers)
    met = [op for left, right, op in graph.edges(keys=True) if _owner(left) != _owner(right)]
    places = dict.fromkeys(_place(program, name) for name in met)
    return f" Its writers are tied to each other at {_and(list(places))}." if places else ""


def _place(program: Program, name: str) -> str:
    """An operation, and the file and line that call it where they are known."""
    at = next((node.meta.get("at") for node in program.graph.nodes if node.name == name), None)
    return f"{name} ({Path(at[0]).name}:{at[1]})" if at else name


def _pins(group: Group) -> list[str]:
    """Why units must stay, the most frequent reason first."""
    found = Counter(reason for reason in group.pinned if reason).most_common()
    return [f"{_all_of(units, group.size)} pinned, because {_because(reason)}." for reason, units in found]


def _all_of(units: int, size: int) -> str:
    if size == 1:
        return "Its only unit is"
    return f"All {size} units are" if units == size else f"{units} of its {size} units {'is' if units == 1 else 'are'}"


def _because(reason: str) -> str:
    """A reason, which is said of a unit or stands for itself, as a clause."""
    if reason.startswith(("a ", "two ")):
        return reason
    return f"each is {reason}" if reason.startswith("read by") else f"each {reason}"


def _axes(group: Group) -> Table:
    rows = [
        [str(member.axis), _ROLES.get(member.role, member.role), member.cause, *_sizes(member)]
        for member in group.members
    ]
    return made_table("", ("axis", "which", "at", "positions", "a unit"), rows, right=("positions", "a unit"))


_ROLES: Final = {
    "writer": "writes it",
    "carrier": "carries it on",
    "buffer": "holds a value for it",
    "reader": "reads it",
}


def _sizes(member: Member) -> tuple[str, str]:
    """How many positions of the axis belong to the group, and how many to a unit of it."""
    found = _member(member)
    return str(found["positions"]), f"{found['positions_per_unit']:g}"


def _owners(members: Iterable[Member]) -> list[str]:
    """The modules of axes, each once; a parameter that is itself a value of the graph stands for itself."""
    return list(dict.fromkeys(_owner(member.axis) for member in members))


def _owner(vertex: Vertex) -> str:
    return vertex if isinstance(vertex, str) else vertex.owner or vertex.tensor


def _counted(number: int, word: str) -> str:
    return f"{number} {word}{'' if number == 1 else 's'}"


def _and(names: Sequence[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    return " and ".join(part for part in (", ".join(names[:-1]), *names[-1:]) if part)


def _reasons(group: dict[str, Any]) -> str:
    """The reasons, the most frequent first; a number where only some units have it."""
    pins = group["pinned"]
    limit = 2 if console().is_terminal else len(pins)
    some = [pin["reason"] if pin["units"] == group["units"] else f"{pin['units']}: {pin['reason']}" for pin in pins]
    return "; ".join([*some[:limit], *([f"{len(pins) - limit} more reasons"] if len(pins) > limit else [])])

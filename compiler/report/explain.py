"""What `prunec explain` says: the groups of a program, what may be removed from each, and why not the rest.

explanation(program)             plain JSON values, for reports
explain(program)                 the same as tables
explain(program, "layer1.0")     one group: every axis that has a part in it, its role, and what ties it to the group
"""

from __future__ import annotations

from collections import Counter
from typing import Any

from rich.console import Group as Stack
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from prunec.compiler.errors import PlanError, nearest
from prunec.compiler.groups.analysis import Analysis, Group, Member, analyse
from prunec.compiler.ir.granularity import Block
from prunec.compiler.ir.program import Program


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


def explain(program: Program, group: str | None = None) -> RenderableType:
    """The explanation as tables. Raises PlanError for a group that isn't there."""
    found = explanation(program, group)
    return _one(found["group"]) if group is not None else _all(found["groups"], found["blocks"], found["totals"])


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
    free = sum(int(group.free[member.units].sum()) for group in analysis.groups.values() for member in group.writers)
    return written, free


# -- tables --------------------------------------------------------------------------------------------------------


_DIVIDED = {
    "heads": "whole heads go",
    "head_width": "the same positions of every head go",
    "same": "the same positions of each go",
    "equal": "each loses as many, whichever these are",
    "free": "each loses what it likes",
    "whole": "a whole one goes",
    None: "what leaves more units goes",
}


def _all(groups: list[dict[str, Any]], blocks: list[dict[str, Any]], totals: dict[str, int]) -> RenderableType:
    table = Table("group", "units", "free", "pinned because", "written by", "read by", header_style="bold")
    for column in (1, 2):
        table.columns[column].justify = "right"
    for group in groups:
        style = "" if group["free"] else "dim"
        shown = (group["name"], str(group["units"]), str(group["free"]), _reasons(group))
        table.add_row(*shown, _few(group["writers"]), _few(group["readers"]), style=style)
    return Stack(table, *map(_divided, blocks), Text(_summary(totals)))


def _divided(block: dict[str, Any]) -> Text:
    packs = f", {block['leave_together']} units at a time" if block["leave_together"] > 1 else ""
    return Text(f"{block['node']}: of {block['shape']}, {_DIVIDED[block['choice']]}{packs}")


def _summary(totals: dict[str, int]) -> str:
    share = totals["free_channels"] / max(totals["channels"], 1)
    return (
        f"{totals['free']} of {totals['units']} units in {totals['groups']} groups may be removed: "
        f"{totals['free_channels']} of {totals['channels']} channels ({share:.0%})"
    )


def _one(group: dict[str, Any]) -> RenderableType:
    title = f"{group['name']}: {group['units']} units, {group['free']} free"
    table = Table(
        "axis", "role", "positions", "a unit", "tied by", title=title, title_justify="left", header_style="bold"
    )
    for column in (2, 3):
        table.columns[column].justify = "right"
    for member in group["members"]:
        per_unit = f"{member['positions_per_unit']:g}"
        table.add_row(member["axis"], member["role"], str(member["positions"]), per_unit, member["cause"])
    reasons = [Text(f"{pin['units']} pinned: {pin['reason']}") for pin in group["pinned"]]
    return Stack(table, *reasons)


def _reasons(group: dict[str, Any]) -> str:
    """The reasons, the most frequent first; a number where only some units have it."""
    pins = group["pinned"]
    some = [pin["reason"] if pin["units"] == group["units"] else f"{pin['units']}: {pin['reason']}" for pin in pins[:2]]
    return "; ".join([*some, *([f"{len(pins) - 2} more reasons"] if len(pins) > 2 else [])])


def _few(names: list[str], limit: int = 2) -> str:
    """The first names, and how many there are besides."""
    more = len(names) - limit
    return ", ".join(names[:limit]) + (f" and {more} more" if more > 0 else "")

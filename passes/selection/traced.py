"""What a share is a share of: the units that a group has in the traced model, before any pass has cut it.

traced     conv1 has 32 channels
round 1    ratio: 25%     24 stay
round 2    ratio: 50%     16 stay: half of the traced model's, not half of what is left
"""

from __future__ import annotations

from collections.abc import Mapping

from prunec.compiler.groups.analysis import Analysis, Group, analyse
from prunec.compiler.groups.balance import NO_UNIT
from prunec.compiler.ir.program import Program

Whole = Mapping[str, int]
"""Group -> how many units it has in the traced model."""


def whole_sizes(analysis: Analysis, traced: Program | None) -> dict[str, int]:
    """How many units every group has in the traced model; as many as now where that isn't known.

    A group is found again by the positions that its writers have kept of their original axes; its units are counted as
    they are divided now (by heads, by widths of heads).
    """
    program = analysis.program
    if traced is None or traced is program or not program.origin:
        return {group.name: group.size for group in analysis.groups.values()}
    divided = program.granularity
    alike = (
        traced
        if traced.granularity == divided
        else traced.cached(f"divided {divided}", lambda: traced.derive(granularity=divided))
    )
    original = analyse(alike)
    return {group.name: _whole(analysis, group, original) for group in analysis.groups.values()}


def _whole(analysis: Analysis, group: Group, original: Analysis) -> int:
    for member in group.writers:
        binding, left = original.flow.bindings.get(member.axis), analysis.program.left_of(original.program, member.axis)
        if binding is not None and left is not None:
            units = original.units(binding.labels).ravel()[left[member.positions]]
            groups = set(original.group_of[units[units != NO_UNIT]].tolist())
            found = (each.size for number, each in enumerate(original.groups.values()) if number in groups)
            return max(group.size, sum(found))
    return group.size

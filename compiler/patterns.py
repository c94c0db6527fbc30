"""Naming groups in a plan: glob patterns over a group's own name and the modules and parameters that write it.

protect: ["classifier.*"]        every group that a module below `classifier` writes
only: ["layer1.*", "stem"]       the residual stream of `layer1` too, since `layer1.0.conv2` writes it
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase

from prunec.compiler.errors import PassError, nearest
from prunec.compiler.units import Group


def group_names(group: Group) -> frozenset[str]:
    """What a pattern may call a group: its name, its writers' modules, and its writers' parameters."""
    writers = [member.axis for member in group.writers]
    return frozenset({group.name, *(a.tensor for a in writers), *(a.owner for a in writers if a.owner)})


def matching(patterns: Iterable[str], groups: Mapping[str, Group], *, option: str = "") -> dict[str, list[str]]:
    """The groups that each pattern means, in the groups' order.

    Raises PassError where a pattern means none, with the nearest valid name; `option` says where the pattern stands.
    """
    names = {name: group_names(group) for name, group in groups.items()}
    found: dict[str, list[str]] = {}
    for index, pattern in enumerate(patterns):
        found[pattern] = [name for name, known in names.items() if any(fnmatchcase(k, pattern) for k in known)]
        if not found[pattern]:
            where = f"{option}: " if option else ""
            keys = (option, pattern if isinstance(patterns, Mapping) else index) if option else ()
            raise PassError(f"{where}no group is called '{pattern}'", keys=keys, hint=_hint(pattern, names))
    return found


def chosen(groups: Mapping[str, Group], only: Iterable[str] = (), protect: Iterable[str] = ()) -> dict[str, Group]:
    """The groups that `only` names (all, where it names none) without those that `protect` names."""
    asked, kept = matching(only, groups, option="only"), matching(protect, groups, option="protect")
    wanted = {name for names in asked.values() for name in names} if asked else set(groups)
    wanted -= {name for names in kept.values() for name in names}
    return {name: group for name, group in groups.items() if name in wanted}


def _hint(pattern: str, names: Mapping[str, frozenset[str]]) -> str | None:
    known = {each for group in names.values() for each in group}
    return nearest(pattern, known) or nearest(pattern, names)

"""Naming groups in a plan: glob patterns over a group's own name and the modules and parameters that write it.

protect: ["classifier.*"]        every group that a module below `classifier` writes
only: ["*.incoming"]             what readers select of shared values
only: ["layer1.*", "stem"]       the residual stream of `layer1` too, since `layer1.0.conv2` writes it
protect: ["kind:depthwise"]      every group whose channels run through a depthwise convolution

`kind:` names groups by what writes or carries their channels: the class of such a layer (`kind:Conv2d`,
`kind:BatchNorm*`), `kind:Parameter` for a parameter that belongs to none, and

    conv, linear, norm, embedding, recurrent, attention     layers of that kind, whatever their dimensions
    depthwise, grouped, pointwise, transposed               forms of convolutions
    heads                                                   groups whose units are heads of attention
    incoming                                                what one reader selects of a shared value (`axes: incoming`)

All of these hold for the whole plan: what a group was called before the first rewrite, it is called after it
(`Program.names`), though it may have come down to one channel, or its layers to none.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Iterator, Mapping, Set
from fnmatch import fnmatchcase
from typing import Final

from torch import nn

from prunec.compiler.errors import PassError, nearest
from prunec.compiler.groups.analysis import Group, analyse
from prunec.compiler.ir.program import Axis, Program
from prunec.compiler.labels.flow import Flow


def group_names(group: Group) -> frozenset[str]:
    """What a pattern may call a group: its name, its writers' modules and parameters, and what it was called before the
    first rewrite."""
    writers = [member.axis for member in group.writers]
    if group.incoming:  # of a reader, as of what it ties to itself, a pattern means what it writes
        writers = [member.axis for member in group.writers[:1] if member.role == "carrier"]
    own = {group.name, *(a.tensor for a in writers), *(a.owner for a in writers if a.owner)}
    return frozenset(own.union(*(_former(group).get(axis, ()) for axis in writers)))


def _former(group: Group) -> Mapping[Axis, frozenset[str]]:
    return group.table.flow.program.names


def names_by_axis(program: Program) -> dict[Axis, frozenset[str]]:
    """Axis -> all that a pattern may call the group that it writes, kinds among them: what `Program.names` holds."""
    named = [(group, group_names(group) | group_kinds(group)) for group in analyse(program).groups.values()]
    return {member.axis: names for group, names in named for member in group.writers}


_KINDS: Final[Mapping[str, tuple[type[nn.Module], ...]]] = {
    "conv": (nn.modules.conv._ConvNd,),
    "linear": (nn.Linear, nn.Bilinear),
    "norm": (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm),
    "embedding": (nn.Embedding, nn.EmbeddingBag),
    "recurrent": (nn.RNNBase, nn.RNNCellBase),
    "attention": (nn.MultiheadAttention,),
    "transposed": (nn.modules.conv._ConvTransposeNd,),
}


def group_kinds(group: Group) -> frozenset[str]:
    """The kinds of a group's layers, each as `kind:NAME`; the module's docstring lists them."""
    flow = group.table.flow
    owners = {member.axis.owner for member in group.members if member.role != "reader"}
    found = {*_kinds_of_heads(flow, owners), *(("incoming",) if group.incoming else ())}
    for owner in owners:
        module = flow.program.state.get(owner)
        found.update(_kinds_of(module) if isinstance(module, nn.Module) else ("Parameter",))
    return frozenset(f"kind:{kind}" for kind in found)


def _kinds_of(module: nn.Module) -> Iterator[str]:
    yield type(module).__name__
    yield from (kind for kind, classes in _KINDS.items() if isinstance(module, classes))
    if isinstance(module, nn.modules.conv._ConvNd):
        if module.groups > 1:
            yield "depthwise" if module.groups == module.in_channels else "grouped"
        if set(module.kernel_size) == {1}:
            yield "pointwise"


def _kinds_of_heads(flow: Flow, owners: Set[str]) -> Iterator[str]:
    blocks = (b for b in flow.divided.values() if b.kind == "attention" and b.choice == "heads")
    if any(owners & set(block.names) for block in blocks):
        yield "heads"


def matching(patterns: Iterable[str], groups: Mapping[str, Group], *, option: str = "") -> dict[str, list[str]]:
    """The groups that each pattern names, in the groups' order; none where all of these are gone by now.

    Raises PassError where a pattern never named any, with the nearest valid name; `option` says where it stands.
    """
    patterns = patterns if isinstance(patterns, Mapping) else list(patterns)
    names = {name: group_names(group) for name, group in groups.items()}
    if any(pattern.startswith("kind:") for pattern in patterns):
        names = {name: known | group_kinds(groups[name]) for name, known in names.items()}
    found: dict[str, list[str]] = {}
    for index, pattern in enumerate(patterns):
        found[pattern] = [name for name, known in names.items() if any(fnmatchcase(k, pattern) for k in known)]
        if not found[pattern] and not any(fnmatchcase(name, pattern) for name in _gone(groups)):
            where = f"{option}: " if option else ""
            keys = (option, pattern if isinstance(patterns, Mapping) else index) if option else ()
            raise PassError(f"{where}no group is called '{pattern}'", keys=keys, hint=_hint(pattern, names))
    return found


def _gone(groups: Mapping[str, Group]) -> frozenset[str]:
    """What groups were called before the first rewrite, those that are gone by now among them."""
    former = next((_former(group) for group in groups.values()), {})
    return frozenset().union(*former.values())


def chosen(groups: Mapping[str, Group], only: Iterable[str] = (), protect: Iterable[str] = ()) -> dict[str, Group]:
    """The groups that `only` names (if empty, all) without those that `protect` names."""
    asked, kept = matching(only, groups, option="only"), matching(protect, groups, option="protect")
    wanted = {name for names in asked.values() for name in names} if asked else set(groups)
    wanted -= {name for names in kept.values() for name in names}
    return {name: group for name, group in groups.items() if name in wanted}


def _hint(pattern: str, names: Mapping[str, frozenset[str]]) -> str | None:
    known = {each for group in names.values() for each in group}
    return nearest(pattern, known) or nearest(pattern, names)


def match_names(patterns: Iterable[str], names: Iterable[str], option: str) -> frozenset[str]:
    """The names that some glob pattern matches. Raises PassError for a pattern of `option` that matches none."""
    known = sorted(set(names))
    found: set[str] = set()
    for pattern in patterns:
        matched = fnmatch.filter(known, pattern)
        if not matched:
            raise PassError(f"'{option}': nothing is called '{pattern}'", hint=nearest(pattern, known), keys=(option,))
        found.update(matched)
    return frozenset(found)

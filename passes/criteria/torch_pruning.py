"""`torch_pruning`: the importance classes of torch-pruning, asked about prunec's groups.

    criterion: {torch_pruning: {importance: LAMPImportance, args: {p: 2}}}

An importance is called with a group of torch-pruning's: layers, what is pruned of each, and which of the group's
channels each position is. Such a group is made of a group of ours, so that a network which torch-pruning can't trace is
no obstacle. What an importance wants beforehand (gradients, those of single samples, activations) it gets from data.
"""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import ModuleType, SimpleNamespace
from typing import Any, ClassVar, Final

import numpy as np
import torch
from pydantic import Field, JsonValue, field_validator
from torch import fx, nn

from prunec.compiler.data import Batch
from prunec.compiler.errors import PassError, nearest
from prunec.compiler.groups.analysis import Group, Member
from prunec.compiler.ir.program import IntArray
from prunec.compiler.plan.options import wrong
from prunec.passes.calibration.calibration import bytes_of_a_sample
from prunec.passes.criteria.aggregates import Evidence
from prunec.passes.criteria.base import Criterion, Found, Setting, numbers
from prunec.passes.criteria.watching import evaluated

_NORM = nn.modules.batchnorm._BatchNorm

KINDS: Final[Sequence[tuple[tuple[type[nn.Module], ...], str, Mapping[str, str]]]] = (
    ((nn.modules.conv._ConvNd,), "conv", {"writer": "out", "reader": "in"}),
    ((nn.Linear,), "linear", {"writer": "out", "reader": "in"}),
    ((_NORM,), "batchnorm", {"carrier": "out"}),
    ((nn.LayerNorm,), "layernorm", {"carrier": "out"}),
    ((nn.GroupNorm,), "groupnorm", {"carrier": "out"}),
    ((nn.modules.instancenorm._InstanceNorm,), "instancenorm", {"carrier": "out"}),
    ((nn.PReLU,), "prelu", {"carrier": "out"}),
    ((nn.Embedding,), "embedding", {"writer": "out"}),
)
"""Classes of layers, torch-pruning's word for them, and for the roles of their axes."""


class _Item(tuple[Any, list[int]]):
    """One layer of a torch-pruning group: a pair that also holds the channels' numbers in the group."""

    root_idxs: list[int]
    dep = property(lambda self: self[0])
    idxs = property(lambda self: self[1])


@dataclass(frozen=True)
class _Peer:
    """torch-pruning, and the model whose layers its importances look at."""

    tp: ModuleType
    setting: Setting
    module: fx.GraphModule

    def items(self, group: Group) -> list[_Item]:
        """A group as torch-pruning has it, first a layer that writes every unit; empty where there is no such layer."""
        ordered = sorted(self.setting.members(group, ("writer", "reader", "carrier")), key=_order(group))
        if not ordered or np.unique(ordered[0].units).size < group.size:
            return []
        found: dict[tuple[str, str], _Item] = {}
        for member in ordered:
            function = self._function(member)
            if function and (member.axis.owner, function) not in found:
                found[member.axis.owner, function] = self._item(member, function)
        return list(found.values())

    def _function(self, member: Member) -> str:
        """The name of the torch-pruning function that would prune the member; empty where there is none."""
        layer = self.setting.program.state.get(member.axis.owner)
        for classes, word, sides in KINDS:
            if not isinstance(layer, classes):
                continue
            if word == "conv" and member.role == "carrier" and member.axis.tensor.endswith("weight"):
                return "prune_depthwise_conv_out_channels"
            return f"prune_{word}_{sides[member.role]}_channels" if member.role in sides else ""
        return ""

    def _item(self, member: Member, function: str) -> _Item:
        layer = self.module.get_submodule(member.axis.owner)
        prune = getattr(self.tp.pruner.function, function)
        target = SimpleNamespace(module=layer, name=member.axis.owner)
        dependency = SimpleNamespace(layer=layer, target=target, pruning_fn=prune, handler=prune)
        item = _Item((dependency, _list(member.positions)))
        item.root_idxs = _list(member.units)
        return item


def _order(group: Group) -> Callable[[Member], tuple[bool, int]]:
    """A sort key for members: the writer of most units first, then the other writers."""
    return lambda member: (member.role != "writer", -np.unique(member.units).size if member.role == "writer" else 0)


def _list(numbers_of: IntArray) -> list[int]:
    return [int(number) for number in numbers_of]


class TorchPruning(Criterion):
    """An importance class of torch-pruning."""

    name: ClassVar[str] = "torch_pruning"
    data: ClassVar[bool] = True
    normalize: ClassVar[str] = "none"

    importance: str = Field(
        default="GroupMagnitudeImportance", description="the class's name in torch_pruning.importance"
    )
    args: dict[str, JsonValue] = Field(default={}, description="what the class is made with", examples=[{"p": 2}])

    @field_validator("importance")
    @classmethod
    def _exists(cls, value: str) -> str:
        if importlib.util.find_spec("torch_pruning") is None:
            return value  # said when it runs, so that a plan can be read where torch-pruning isn't installed
        known = [name for name in dir(_import().importance) if name.endswith("Importance") and name != "Importance"]
        if value not in known:
            raise wrong("must be an importance class of torch-pruning", hint=nearest(value, known))
        return value

    def ready(self, setting: Setting) -> None:
        """Raise `PassError` as `weigh` does; data are asked for where the importance wants something beforehand."""
        tp = _import()
        if _way(tp, self._made(tp)) is not None:
            super().ready(setting)

    def fits(self, setting: Setting, piece: Batch, outputs: Any) -> None:
        """Raise `DataError` where the loss can't be taken."""
        setting.calibration.loss.total(outputs, piece)

    def weigh(self, setting: Setting) -> Iterator[Found]:
        """What the importance says of each group, joined and normalised its own way.

        Raises `PassError` where torch-pruning isn't installed, or the importance can't be made or refuses a group.
        """
        tp = _import()
        made = self._made(tp)
        leaves = {
            name: nn.Parameter(tensor.detach())
            for name, tensor in setting.program.tensors.items()
            if isinstance(tensor, nn.Parameter)
        }
        peer = _Peer(tp, setting, evaluated(setting.program, leaves).graph_module)
        groups = {group.name: items for group in setting.groups if (items := peer.items(group))}
        if (prepare := _way(tp, made)) is not None:
            prepare(made, peer)
        for name, items in groups.items():
            try:
                found = made(items)
            except (RuntimeError, LookupError, TypeError, AttributeError) as error:
                raise PassError(
                    f"torch-pruning's {self.importance} can't score group '{name}': {error}", keys=("criterion",)
                ) from error
            size = next(group.size for group in setting.groups if group.name == name)
            if found is not None:
                yield name, Evidence(self.importance, np.arange(size), numbers(found.flatten()[:size]))

    def _made(self, tp: ModuleType) -> Any:
        try:
            return getattr(tp.importance, self.importance)(**self.args)
        except TypeError as error:
            raise PassError(f"{self.importance} can't be made: {error}", keys=("criterion",)) from error


def _import() -> ModuleType:
    try:
        import torch_pruning  # noqa: PLC0415  (an optional extra)
    except ModuleNotFoundError as error:
        hint = "pip install 'prunec[peer]'"
        raise PassError(
            "the criterion torch_pruning needs torch-pruning, which isn't installed", keys=("criterion",), hint=hint
        ) from error
    found: ModuleType = torch_pruning
    return found


# -- what an importance wants beforehand ---------------------------------------------------------------------------


def _gradients(made: Any, peer: _Peer) -> None:
    """The mean loss's gradients in the parameters' `grad`."""
    count = 0
    for piece, loss in _losses(peer):
        count += piece
        torch.autograd.backward(loss)
    for parameter in peer.module.parameters():
        if parameter.grad is not None:
            parameter.grad /= count


def _each_sample(made: Any, peer: _Peer) -> None:
    """Every sample's gradients, shown to `accumulate_grad`."""
    made.zero_grad()
    for _, loss in _losses(peer, at_once=1):
        peer.module.zero_grad()
        torch.autograd.backward(loss)
        made.accumulate_grad(peer.module)


def _kronecker(made: Any, peer: _Peer) -> None:
    """Inputs and gradients of layers, which its own hooks collect; `step` after each piece."""
    everything = [peer.items(group) for group in peer.setting.analysis.groups.values()]
    graph = SimpleNamespace(get_all_groups=lambda **_: everything)
    pruner = SimpleNamespace(
        DG=graph, ignored_layers=[], root_module_types=[], _downstream_node_as_root_if_attention=lambda group: group
    )
    made._prepare_model(peer.module, pruner)
    with warnings.catch_warnings(action="ignore", category=FutureWarning):  # its hooks are of a kind torch warns of
        for count, loss in _losses(peer):
            torch.autograd.backward(loss / count)
            made.step()
    made._rm_hooks(peer.module)


def _activations(made: Any, peer: _Peer) -> None:
    """Run the data within `compute_importance`, which keeps the last piece's figures."""
    with made.compute_importance(peer.module):
        for _ in _losses(peer):
            continue


WAYS: Final[Mapping[str, Callable[[Any, _Peer], None]]] = {
    "OBDCImportance": _kronecker,
    "GroupHessianImportance": _each_sample,
    "GroupTaylorImportance": _gradients,
    "ActivationImportance": _activations,
}
"""By torch-pruning's base class."""


def _way(tp: ModuleType, made: Any) -> Callable[[Any, _Peer], None] | None:
    """What an importance wants beforehand; None where it looks at weights alone."""
    return next((way for name, way in WAYS.items() if isinstance(made, getattr(tp.importance, name))), None)


def _losses(peer: _Peer, at_once: int | None = None) -> Iterator[tuple[int, torch.Tensor]]:
    """The number of samples of each piece, and their summed loss."""
    setting = peer.setting
    program, calibration = setting.program, setting.calibration
    for piece in calibration.pieces(program, setting.context, bytes_of_a_sample(program), at_once):
        yield piece.count, calibration.loss.total(piece.through(peer.module), piece)

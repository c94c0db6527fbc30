"""Operations that other packages add: what one is and what it means, in one class.

    class Gate(Operation):
        name = "acme_gate"
        functions = (torch.ops.acme.gate,)            custom operators, each a call in the graph
        modules = (GateLayer,)                        classes of modules that stay one node

        def labels(self, flow, node): ...             how channel labels pass through (`labels.registry`)
        def marks(self, call): ...                    what becomes of removed elements (`verify.table`)
        def resize(self, old, new, slim): ...         how literal sizes in the call follow; most have none
        def attributes(self, module, tensors): ...    which of a module's attributes repeat sizes; many have none

Registered in the entry-point group `prunec.ops`. The two rules are written apart on purpose, without a common helper:
an error in either shows in verification. What is said of kinds (`moves`, `reduces`, `carries_copies`) is as in
`labels.registry.Row`.

A module of one's own stays a leaf only if it has no children; its constructor takes plain values that it keeps in
attributes of the same names, so that it can be written down as a call.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Final

import torch
from torch import fx, nn

from prunec.compiler.plugins import Registry


class Operation(ABC):
    """One operation, or several that mean the same to channels."""

    name: ClassVar[str]
    functions: ClassVar[tuple[Callable[..., Any], ...]] = ()
    modules: ClassVar[tuple[type[nn.Module], ...]] = ()
    moves: ClassVar[bool] = False
    reduces: ClassVar[bool] = False
    carries_copies: ClassVar[bool] = False
    marking: ClassVar[bool] = False
    """Whether the result has marks of its own (`verify.masks`) though no argument has."""

    @abstractmethod
    def labels(self, flow: Any, node: fx.Node) -> Any:
        """The labels of the node's value: a rule as `labels.registry.on_op` registers one."""

    @abstractmethod
    def marks(self, call: Any) -> Any:
        """The value with its marks: a rule as `verify.table.row` registers one."""

    def resize(self, old: fx.Node, new: fx.Node, slim: Any) -> None:
        """Set the literal sizes in the slim call's arguments: as `labels.registry.rewriter` registers one."""
        return

    def attributes(self, module: nn.Module, tensors: Mapping[str, torch.Tensor]) -> dict[str, Any]:
        """The module's attributes that repeat the shapes of its tensors, as these are in the slim model."""
        return {}


OPERATIONS: Final = Registry("prunec.ops", "operation", Operation)  # type: ignore[type-abstract]


def operation_of(target: object) -> Operation | None:
    """The operation that another package has registered for a function or for a module; None for any other.

    A module of a subclass is meant, too, if it runs the same `forward`. Raises `PrunecError` where a package is broken.
    """
    known = OPERATIONS.made().values()
    if not known:  # asked for every node
        return None
    if isinstance(target, nn.Module):
        return next((each for each in known if _runs(target, each.modules)), None)
    packet = getattr(target, "overloadpacket", target)
    return next((each for each in known if any(packet is f or target is f for f in each.functions)), None)


def module_classes() -> Mapping[str, type[nn.Module]]:
    """The registered classes of modules, by the full names that they are imported by."""
    found = (cls for each in OPERATIONS.made().values() for cls in each.modules)
    return {f"{cls.__module__}.{cls.__qualname__}": cls for cls in found}


def _runs(module: nn.Module, classes: tuple[type[nn.Module], ...]) -> bool:
    return not module._modules and any(
        isinstance(module, cls) and type(module).forward is cls.forward for cls in classes
    )

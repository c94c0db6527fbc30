"""Weights that torch computes from other tensors (weight norm, parametrizations) become plain parameters.

    weight_norm(conv)      weight_g [8, 1, 1, 1], weight_v [8, 3, 3, 3], a hook       ->   weight [8, 3, 3, 3]
    parametrize, spectral_norm, pruning masks of torch.nn.utils                       ->   weight, bias, ...

The model that is compiled has the plain layer with the value that the original has in eval mode, bit for bit; a weight
is trainable where anything that it came from was. The original isn't touched, and all else is shared with it. Weights
that a forward itself computes are for `tracing.weight_folding`.
"""

from __future__ import annotations

import copy
import types
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Final

import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune, remove_spectral_norm, remove_weight_norm
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from prunec.compiler.ir.modules import named_modules
from prunec.compiler.tracing.rebinding import Swap

Remover = Callable[[Any, str], Any]

_REMOVERS: Final[Mapping[type, tuple[str, Remover]]] = {
    WeightNorm: ("name", remove_weight_norm),
    SpectralNorm: ("name", remove_spectral_norm),
    prune.BasePruningMethod: ("_tensor_name", prune.remove),
}
"""The class of a hook that sets a weight before each call -> its attribute with the weight's name, what removes it."""


def without_parametrizations(model: nn.Module, modules: Iterable[nn.Module] | None = None) -> nn.Module:
    """A copy of the model in which every computed weight is a plain parameter; the model itself where it has none.

    `modules` are all that it has, where these are known.
    """
    modules = named_modules(model).values() if modules is None else modules
    computed = [module for module in modules if _is_computed(module)]
    if not computed:
        return model
    memo: dict[int, Any] = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    memo.update({id(module): _plain(module) for module in computed})
    memo[id(memo)] = [*computed, *model.modules()]  # keeps what the ids stand for alive, as deepcopy itself does
    return memo[id(model)] if id(model) in memo else _rebound(model, copy.deepcopy(model, memo), memo)


def _rebound(model: nn.Module, made: nn.Module, memo: Mapping[int, Any]) -> nn.Module:
    """The copy `made`, with its functions and hooks rebound to it: `deepcopy` copies no functions."""
    owned = (value for module in model.modules() for value in (module, *vars(module).values()))
    swap = Swap({id(value): memo[id(value)] for value in owned if isinstance(value, _OWNED) and id(value) in memo})
    for module in made.modules():
        for key, value in vars(module).items():
            if isinstance(value, types.FunctionType):
                module.__dict__[key] = swap.nest(value)
            elif key.endswith("_hooks") and isinstance(value, dict):
                value.update((k, swap.nest(hook)) for k, hook in list(value.items()))
    return made


_OWNED = (nn.Module, dict, list, set)


def _is_computed(module: nn.Module) -> bool:
    hooked = bool(module._forward_pre_hooks) and any(True for _ in _hooks(module))
    return hooked or ("parametrizations" in module._modules and parametrize.is_parametrized(module))


def _hooks(module: nn.Module) -> Iterator[tuple[str, Remover]]:
    """For each hook of the module that computes a weight: the weight's name, and what removes the hook."""
    for hook in module._forward_pre_hooks.values():
        for kind, (key, remove) in _REMOVERS.items():
            if isinstance(hook, kind):
                yield getattr(hook, key), remove


def _plain(module: nn.Module) -> nn.Module:
    """A copy of one layer with plain parameters in place of computed ones."""
    loose = [value for value in vars(module).values() if isinstance(value, torch.Tensor)]
    made = copy.deepcopy(module, {id(tensor): tensor.detach().clone() for tensor in loose}).eval()
    with torch.no_grad():
        for name, remove in list(_hooks(made)):
            trainable = _trainable(made, f"{name}_")
            remove(made, name)
            made._parameters[name].requires_grad_(trainable)  # type: ignore[union-attr]
        _unparametrize(made)
    made.train(module.training)
    return made


def _unparametrize(module: nn.Module) -> None:
    """Make the parametrized tensors of a copy plain parameters. `remove_parametrizations` would change the original as
    well: its properties stand in a class that both share."""
    if not parametrize.is_parametrized(module):
        return
    names = list(module.parametrizations)  # type: ignore[arg-type]
    values = {name: getattr(module, name).detach().clone() for name in names}
    trainable = {name: _trainable(module, f"parametrizations.{name}.") for name in names}
    module.__class__ = type(module).__bases__[0]
    del module._modules["parametrizations"]
    loading = module._load_state_dict_pre_hooks  # one of weight norm's own puts weights where they no longer are
    for key in [key for key, found in loading.items() if _module_of(found) == parametrizations.__name__]:
        del loading[key]
    for name, value in values.items():
        module.register_parameter(name, nn.Parameter(value, requires_grad=trainable[name]))


def _module_of(hook: Any) -> str:
    """The module that has the function of a hook, which torch may have wrapped."""
    return str(getattr(getattr(hook, "hook", hook), "__module__", ""))


def _trainable(module: nn.Module, prefix: str) -> bool:
    """Whether any parameter whose name begins with `prefix` requires a gradient."""
    return any(tensor.requires_grad for name, tensor in module.named_parameters() if name.startswith(prefix))

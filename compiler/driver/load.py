"""Makes what a plan names: the model with its weights, the data, the example inputs.

    model: {factory: nets.py:small, args: {classes: 10}, weights: small.safetensors}
        -> nets.small(classes=10), with the weights, in eval mode

Only here does code of the plan's author run: the factories that the plan names, and `model.py` of a saved model.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import inspect
import math
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial, reduce
from pathlib import Path
from types import ModuleType
from typing import Any, Final, cast

import torch
from torch import nn

from prunec.compiler.data import Data
from prunec.compiler.driver.weights import WeightsFile, load_weights
from prunec.compiler.errors import ModelError, PlanError, Span, nearest
from prunec.compiler.groups.lookup import article
from prunec.compiler.ir.inputs import Inputs
from prunec.compiler.ir.random_inputs import seeded
from prunec.compiler.ir.wrappers import Tell, untold, unwrapped
from prunec.compiler.plan.plan import Plan
from prunec.compiler.plan.schema import InputItems, InputSpec, InputValue, PlanInput, Ref, WeightsSpec
from prunec.compiler.task.losses import DEFAULT, GivenLoss, Loss, TorchLoss
from prunec.compiler.task.metrics import (
    ACCURACY,
    NAMES,
    DefaultAccuracy,
    GivenMetric,
    LossMetric,
    Metric,
    find_torchmetrics,
    fresh,
    is_torchmetrics,
    known_metric,
)
from prunec.compiler.user_code import running

FILES: Final = "_prunec_"
"""How the names of modules begin that are files which a plan names."""


def load_model(plan: Plan, tell: Tell = untold) -> nn.Module:
    """The plan's model with its weights, in eval mode. One seed always gives the same random weights.

    What was taken off the model or its weights, such as `DataParallel`, is told. Raises `PlanError` where the model
    can't be made, `ModelError` where its weights don't fit.
    """
    spec = plan.model
    if spec is None:
        raise PlanError("the plan names no model", at=plan.at(), hint="for example: model: package.module:name")
    if spec.saved:
        return _in_eval_mode(_saved(plan, spec.saved), plan.at("model", "saved"))
    assert spec.factory, "a checked model is either saved or made by a factory"
    model = _make(plan, "model", spec.factory, spec.args)
    if not isinstance(model, nn.Module):
        message = f"{spec.factory} gave {_kind(model)}, not an nn.Module"
        raise PlanError(message, at=plan.at("model", "factory"))
    model = unwrapped(model, tell)
    if spec.weights:
        _put_weights(model, plan, spec.weights, tell)
    return _in_eval_mode(model, plan.at("model", "factory"))


def _put_weights(model: nn.Module, plan: Plan, spec: WeightsSpec, tell: Tell) -> None:
    def place(*keys: str) -> Span | None:
        return plan.at("model", "weights", *(keys or ("file",)))

    file = WeightsFile(spec.file, spec.key, spec.prefix, spec.strict, place)
    with running(f"the weights in {spec.file.name} can't be put into the model", ModelError, at=place(), mixed=True):
        load_weights(model, file, tell)


def _in_eval_mode(model: nn.Module, at: Span | None) -> nn.Module:
    """The model itself, put into eval mode: a method that its class may have written anew."""
    with running("the model's eval() failed", ModelError, at=at):
        model.eval()
    return model


def module_names(plan: Plan) -> dict[str, str]:
    """The names of the plan's model: modules, parameters and buffers, and what each is, in words."""
    model = load_model(plan)
    modules = {name: article(type(module).__name__) for name, module in model.named_modules() if name}
    state = model.state_dict(keep_vars=True)
    names: dict[int, list[str]] = {}
    for name, tensor in state.items():
        names.setdefault(id(tensor), []).append(name)
    tensors = {
        name: _tensor_text(tensor, [n for n in names[id(tensor)] if n != name]) for name, tensor in state.items()
    }
    return {**modules, **tensors}


def _tensor_text(tensor: torch.Tensor, twins: Sequence[str]) -> str:
    """What a tensor is, and by which other names: one of them may be the one that the forward reads."""
    tied = f" (which is {' and '.join(twins)}, too: ask for that)" if twins else ""
    return f"a tensor of {list(tensor.shape)}{tied}"


def load_data(plan: Plan) -> Data | None:
    """The plan's data, or `None` where it names none. Raises `PlanError` where they can't be made, `DataError` where
    what the factory gave are no data."""
    if plan.data is None:
        return None
    ref, args, at = plan.data.factory, plan.data.args, plan.at("data", "factory")
    data = Data.of(_make(plan, "data", ref, args), f"{ref} gave", at, plan.seed)
    return replace(data, again=partial(made_by, ref, args, plan.seed, at))


def load_loss(plan: Plan) -> Loss:
    """The plan's loss; cross entropy where it names none. Raises `PlanError` where it can't be made."""
    spec = plan.loss
    if spec is None:
        return DEFAULT
    at = plan.at("loss", "name")
    if isinstance(spec.name, Ref):
        return GivenLoss(_short(spec.name), spec.output, at, function=_callable(plan, "loss", spec.name, spec.args))
    return TorchLoss(spec.name, spec.output, at, args=spec.args)


def load_metric(plan: Plan, loss: Loss) -> Metric:
    """The plan's metric; of a plan that names none, accuracy where that can be measured, and else the loss, if it names
    one. `loss` is the plan's.

    Raises `PlanError` where it can't be made, or nobody says which way is up.
    """
    spec = plan.metric
    if spec is None:
        return ACCURACY if plan.loss is None else DefaultAccuracy(instead=LossMetric(loss=loss, said=False))
    at = plan.at("metric", "name")
    if isinstance(spec.name, str) and spec.name in NAMES:
        return known_metric(spec.name, spec.args, spec.output, at, loss)
    made = _callable(plan, "metric", spec.name, spec.args)
    share, higher = False, getattr(made, "higher_is_better", None)
    meter = hasattr(made, "update") and hasattr(made, "compute")
    if spec.better is not None:
        higher = spec.better == "higher"
    if higher is None:
        message = f"nobody says whether more or less of {_short(spec.name)} is better"
        raise PlanError(message, at=at, hint="say better: higher, or better: lower, beside its name")
    if is_torchmetrics(type(made)):
        share = higher and (made.plot_lower_bound, made.plot_upper_bound) == (0.0, 1.0)
    return GivenMetric(
        _short(spec.name),
        bool(higher),
        share,
        spec.output,
        at,
        function=None if meter else made,
        make=partial(fresh, made) if meter else None,
        key=spec.key,
    )


def _short(ref: Ref | str) -> str:
    """A name as it reads in messages: of a file without its folder."""
    return f"{ref.module.name}:{ref.name}" if isinstance(ref, Ref) and isinstance(ref.module, Path) else str(ref)


def _callable(plan: Plan, key: str, ref: Ref | str, args: Mapping[str, Any]) -> Any:
    """What a plan names under `key` to be called with outputs and labels: a function, with further arguments; or an
    object of a class, made with these. A name alone is that of a class of torchmetrics."""
    at = plan.at(key, "name")
    found: Any = find_torchmetrics(ref, at) if isinstance(ref, str) else named_callable(ref, at)
    if not isinstance(found, type):
        _check_args(plan, key, ref, found, args, given=2)
        return partial(found, **args) if args else found
    _check_args(plan, key, ref, found, args)
    with running(f"{ref} failed", at=at), seeded(plan.seed):
        made = found(**args)
    if not callable(made) and not (key == "metric" and hasattr(made, "update") and hasattr(made, "compute")):
        raise PlanError(f"{ref} makes {_kind(made)}, which can't be called", at=at)
    return made


def example_inputs(plan: Plan) -> Inputs:
    """The plan's example inputs, drawn with its seed: a tuple, or by name. Raises `PlanError` where it has none."""
    if not plan.inputs:
        raise PlanError("the plan has no inputs", at=plan.at(), hint="for example: inputs: [[1, 3, 32, 32]]")
    generator = torch.Generator().manual_seed(plan.seed)
    needed = sum(math.prod(spec.shape) * _dtype(spec).itemsize for spec in _tensors_of(plan.inputs))
    try:
        if needed > _memory():
            raise MemoryError
        return _drawn(plan.inputs, generator)
    except (MemoryError, RuntimeError) as error:  # torch has no class of its own for a lack of the CPU's memory
        message = f"the inputs take {needed / 1e9:,.1f} GB, which this machine's memory doesn't hold"
        raise PlanError(message, at=plan.at("inputs", on_key=True)) from error


def _tensors_of(specs: Sequence[PlanInput] | Mapping[str, PlanInput]) -> Iterator[InputSpec]:
    """The tensors among the inputs."""
    for spec in specs.values() if isinstance(specs, Mapping) else specs:
        if isinstance(spec, InputItems):
            yield from _tensors_of(spec.items)
        elif isinstance(spec, InputSpec):
            yield spec


def _memory() -> float:
    """The bytes of this machine's memory, where the system tells: it may promise more than it has."""
    if not hasattr(os, "sysconf"):
        return math.inf
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _dtype(spec: InputSpec) -> torch.dtype:
    return cast(torch.dtype, getattr(torch, spec.dtype))


def _drawn(specs: Sequence[PlanInput] | Mapping[str, PlanInput], generator: torch.Generator) -> Inputs:
    """A tuple or a dict of inputs."""
    if isinstance(specs, Mapping):
        return {name: _draw(spec, generator) for name, spec in specs.items()}
    return tuple(_draw(spec, generator) for spec in specs)


def _draw(spec: PlanInput, generator: torch.Generator) -> Any:
    if isinstance(spec, InputValue):
        return spec.value
    if isinstance(spec, InputItems):
        items = _drawn(spec.items, generator)
        return list(items) if isinstance(items, tuple) else items
    dtype = _dtype(spec)
    if spec.high is not None:
        return torch.randint(spec.low or 0, spec.high, spec.shape, generator=generator, dtype=dtype)
    if dtype == torch.bool:
        return torch.randint(0, 2, spec.shape, generator=generator).to(dtype)
    return torch.randn(spec.shape, generator=generator, dtype=dtype)


def _make(plan: Plan, key: str, ref: Ref, args: Mapping[str, Any]) -> Any:
    """Call the factory that stands under `key`, with the plan's seed; the caller's random state is left alone."""
    at = plan.at(key, "factory")
    factory = named_callable(ref, at)
    _check_args(plan, key, ref, factory, args)
    return _made(factory, ref, args, plan.seed, at)


def made_by(ref: Ref, args: Mapping[str, Any], seed: int, at: Span | None = None) -> Any:
    """What a factory makes that a plan names. Raises `PlanError` where it fails."""
    return _made(named_callable(ref, at), ref, args, seed, at)


def _made(factory: Callable[..., Any], ref: Ref, args: Mapping[str, Any], seed: int, at: Span | None) -> Any:
    with running(f"{ref} failed", at=at), seeded(seed):
        return factory(**args)


def named_callable(ref: Ref, at: Span | None = None) -> Callable[..., Any]:
    """What a plan names in a module or a file. Raises `PlanError` where there is none, or where it can't be called."""
    module = _import(ref.module, at)
    with running(f"{ref} can't be read", at=at):
        try:
            found = reduce(getattr, ref.name.split("."), cast(Any, module))
        except AttributeError as error:
            public = [name for name, value in vars(module).items() if callable(value) and not name.startswith("_")]
            raise PlanError(f"{ref.module} has no '{ref.name}'", at=at, hint=nearest(ref.name, public)) from error
    if not callable(found):
        raise PlanError(f"{ref} is {_kind(found)} and can't be called", at=at)
    return cast(Callable[..., Any], found)


def _import(module: str | Path, at: Span | None) -> ModuleType:
    with running(f"can't import {module}", at=at):
        try:
            return import_file(module) if isinstance(module, Path) else importlib.import_module(module)
        except ModuleNotFoundError as error:
            if not _is_within(error.name, module):
                raise
            hint = "a module must be installed or on PYTHONPATH; a file is written path/to/file.py:name"
            raise PlanError(f"no module named '{error.name}'", at=at, hint=hint) from error


def _is_within(name: str | None, module: str | Path) -> bool:
    """Whether `name` is the module itself or a package around it, rather than something that it imports."""
    return bool(name) and f"{module}.".startswith(f"{name}.")


def module_name(path: Path) -> str:
    """The name of the module that a file is run as, which no other module has."""
    return f"{FILES}{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:12]}"


def import_file(path: Path) -> ModuleType:
    """Run a file as a module of its own."""
    name = module_name(path)
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec, f"{path} isn't a Python file"
    assert spec.loader, f"{path} has no loader"
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up there while it is being made
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _kind(value: object) -> str:
    """The type of a value, for messages."""
    return f"an object of type '{type(value).__name__}'"


def _check_args(
    plan: Plan, key: str, ref: Ref | str, factory: Callable[..., Any], args: Mapping[str, Any], given: int = 0
) -> None:
    """Refuse arguments that the factory doesn't take, and a lack of those that it needs, before it runs.

    The first `given` ones by position are no business of the plan's.
    """
    named_at = "name" if key in ("loss", "metric") else "factory"
    with running(f"the signature of {ref} can't be read", at=plan.at(key, named_at)):
        try:
            parameters = inspect.signature(factory).parameters.values()
        except (ValueError, TypeError):  # some builtin callables have no signature: the call itself will tell
            return
    in_order = [p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)][:given]
    mine = [p for p in parameters if p.name not in in_order]
    named = {p.name: p for p in mine if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    if not any(p.kind is p.VAR_KEYWORD for p in parameters):
        unknown = next((name for name in args if name not in named), None)
        if unknown is not None:
            at = plan.at(key, "args", unknown, on_key=True)
            raise PlanError(f"{ref} has no argument '{unknown}'", at=at, hint=nearest(unknown, named))
    needed = [name for name, p in named.items() if p.default is p.empty and name not in args]
    if needed:
        at = plan.at(key, "args" if args else named_at, on_key=bool(args))
        hint = f"write args: {{{', '.join(f'{name}: ...' for name in needed)}}}"
        raise PlanError(f"{ref} needs the argument '{needed[0]}'", at=at, hint=hint)


def _saved(plan: Plan, folder: Path) -> nn.Module:
    """A model from the folder that `prunec compile` wrote: its own `load()`, or its `Model` with the weights beside."""
    at, path = plan.at("model", "saved"), folder / "model.py"
    module = _import(path, at)
    maker = next((name for name in ("load", "Model") if callable(getattr(module, name, None))), None)
    if maker is None:
        raise PlanError(f"{path} has neither load() nor a class Model", at=at)
    with running(f"{path}:{maker} failed", at=at), seeded(plan.seed):
        model = getattr(module, maker)()
    if not isinstance(model, nn.Module):
        raise PlanError(f"{path}:{maker} gave {_kind(model)}, not an nn.Module", at=at)
    if maker == "Model":
        load_weights(model, WeightsFile(folder / "model.safetensors", place=lambda *keys: at))
    return model

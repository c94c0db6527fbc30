"""Regions: parts of a model that are compiled in their place, where the whole can't be traced.

    region: [backbone, rpn.head]

    the whole model runs once on the example inputs; a hook keeps what each region is called with
    Program      backbone(images), rpn_head(x) -> {"backbone": ..., "rpn.head": ...}, all outputs pinned
    spliced      a copy of the whole model with the slim parts in the regions' places
    check        one run of the spliced model, in which every call of a part is computed twice

    region: {decoder: {past: null, use_cache: false}}

    the region is called with these arguments, whatever the model gives for them, here and in the slim model

One program holds all regions, so that a budget spans them and tensors that they share stay shared. Its parameters have
the names that they have in the whole model. A slim part takes the calls that the region took: arguments that aren't
tensors were decided when it was traced, and a call with others is an error.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

import torch
from torch import fx, nn

from prunec.compiler.driver.structure import Like, mismatch, outline
from prunec.compiler.errors import ModelError, PlanError, Span, VerifyError, nearest
from prunec.compiler.ir.graph import is_impure, output_of
from prunec.compiler.ir.inputs import Arguments, Inputs, arguments, by_name, called, names_in_order
from prunec.compiler.ir.modules import evaluating
from prunec.compiler.ir.program import Axis, Program, State
from prunec.compiler.ir.random_inputs import seeded
from prunec.compiler.ir.train_eval import ByMode, Mode, has_both, in_eval, joint_output
from prunec.compiler.tracing.both_modes import left_out, trace_modes
from prunec.compiler.tracing.real_run import really_run
from prunec.compiler.user_code import running
from prunec.compiler.verify.compare import TOLERANCE, difference
from prunec.compiler.verify.interpreter import Interpreter, StepError

_PLAIN: Final = "a part gives tensors, lists, tuples and dicts; name a part whose result is read as one of these"


@dataclass(frozen=True)
class Region:
    """One part of the model, and the arguments of a call of it that was seen (`taken`)."""

    name: str
    module: nn.Module
    taken: Arguments
    prefix: str
    """Stands before its inputs' names where there are several regions."""
    fixed: Mapping[str, Any] = field(default_factory=dict)
    """The arguments that the plan sets: what the model gives for them is put aside."""

    @property
    def inputs(self) -> dict[str, Any]:
        """The joint program's inputs that are this region's."""
        return {self.prefix + name: value for name, value in self.taken.inputs.items()}


@dataclass(frozen=True)
class Regions:
    """A model, its example inputs, and the regions of it that are compiled."""

    model: nn.Module
    example: Inputs
    parts: tuple[Region, ...]
    outline: Any = None
    """What the whole model gave, without values; see `driver.structure.outline`."""

    @property
    def joint(self) -> tuple[nn.Module, dict[str, Any]]:
        """A module that runs all regions, with the whole model's parameter names; and its inputs, by name."""
        return _Joint(self.parts), {name: value for part in self.parts for name, value in part.inputs.items()}

    def trace(self, mode: Mode = "eval") -> tuple[Program, tuple[str, ...]]:
        """All regions as one program of this mode, and warnings (`trace_modes`).

        Raises ModelError, too, where a region gives back objects that the rest of the model would miss.
        """
        program, warnings = trace_modes(*self.joint, mode, name=type(self.model).__name__)
        if others := left_out(program):
            raise ModelError(
                f"a region gives back more than tensors: {' and '.join(others)}, which a graph can't make",
                hint="name a region that gives back tensors alone; or turn it off by an argument of the region: "
                f"region: {{{self.parts[0].name}: {{use_cache: false}}}}",
            )
        return program, warnings

    def part(self, program: Program, region: Region) -> Program:
        """One region of the joint program as a program of its own, with the region's parameter names."""
        graph, prefix = program.copy_graph(), f"{region.name}."
        output = output_of(graph)
        values = output.meta["val"]
        output.args = (_given(graph, output.args[0], region.name),)
        each = (value[region.name] for value in values) if isinstance(values, ByMode) else ()
        output.meta["val"] = ByMode(*each) if has_both(graph) else in_eval(values)[region.name]
        _leave_out(graph, region.inputs)
        graph.eliminate_dead_code(is_impure)
        names = [str(node.target) for node in program.graph.find_nodes(op="placeholder")]
        inputs = [value for name, value in zip(names, program.inputs, strict=True) if name in region.inputs]
        for node in graph.find_nodes(op="placeholder"):
            node.target = str(node.target).removeprefix(region.prefix)
        state: dict[str, State] = {}
        for node in graph.nodes:
            if node.op in {"call_module", "get_attr"} and str(node.target) in program.state:
                state[str(node.target).removeprefix(prefix)] = program.state[str(node.target)]
                node.target = str(node.target).removeprefix(prefix)
        origin = {Axis(axis.tensor.removeprefix(prefix), axis.dim): left for axis, left in program.origin.items()}
        name = type(region.module).__name__
        return replace(program, graph=graph, state=state, inputs=tuple(inputs), name=name, origin=origin, facts={})

    def spliced(self, program: Program) -> nn.Module:
        """A copy of the whole model with the program's parts in the regions' places."""
        return self._with(lambda region: self.part(program, region).module)

    def check(self, program: Program, *, alike: bool = True) -> float:
        """Run the whole model with the slim parts on its example, and compare every call of a part as it happens.

        At each call the program is run node by node, too, on the very same inputs and random numbers: what the part's
        generated code gives must be nested in the same way and hold the same numbers. So a fault shows where it is made
        and not only where boxes survive that it changed, and a rounding that tips a threshold of the whole is none.
        A part that the slim model's data pass by is called on what the original called it with.
        The whole must give what the original gave, in kind: containers, keys, dtypes and numbers of dimensions; unless
        it needn't be `alike`, since the parts give in eval mode what they give in train mode.
        That the program computes what the plan asks of the original was checked after each pass (`verify.verify`).

        Gives the largest relative difference of any part's output in any call. Raises `VerifyError` where one differs,
        `ModelError` where the model can't work with what a part gives.
        """
        whole = self.spliced(program)
        found: dict[str, list[float]] = {region.name: [] for region in self.parts}
        for region in self.parts:
            part = self.part(program, region).half("eval")
            _watch(whole.get_submodule(region.name), part, found[region.name])
        given = outline(self._run(whole))
        for region in self.parts:
            if not found[region.name]:
                self._call_alone(whole.get_submodule(region.name), region)
        for name, differences in found.items():
            for call, found_there in enumerate(differences, 1):
                if found_there > TOLERANCE[torch.float32]:
                    message = f"the slim region '{name}' differs by {found_there:.2g} from its reference"
                    raise VerifyError(f"{message} in the whole model (call {call})")
        if alike and (fault := mismatch(given, self.outline)):
            message = "the whole model with the slim regions gives something else than the original"
            raise ModelError(f"{message}: {fault}", hint=_PLAIN)
        return max(max(differences) for differences in found.values())

    def _run(self, whole: nn.Module) -> Any:
        """The outputs of the spliced model. Raises `ModelError` where its own code fails on what a part gives."""
        what = "the model doesn't run with the slim regions in it"
        with running(what, ModelError, hint=_PLAIN, passing=(StepError,)), seeded(0), evaluating(whole):
            return _result(whole, self.example)

    def _call_alone(self, part: nn.Module, region: Region) -> None:
        """Call a part on what the original called the region with."""
        args, kwargs = region.taken.call({})
        with seeded(0), evaluating(part), torch.no_grad():
            part(*copy.deepcopy(args), **copy.deepcopy(kwargs))

    def _with(self, make: Callable[[Region], nn.Module]) -> nn.Module:
        """A copy of the model with what `make` gives for each region in its place."""
        parts = {region.name: splice_in(make(region), region) for region in self.parts}
        memo: dict[int, Any] = {id(region.module): parts[region.name] for region in self.parts}
        return copy.deepcopy(self.model, memo)


def find_regions(
    model: nn.Module,
    names: Sequence[str] | Mapping[str, Mapping[str, Any]],
    example_inputs: Inputs,
    at: Callable[..., Span | None] = lambda *keys, **options: None,
) -> Regions:
    """The named parts of a model, with what they are called with when it runs on the example inputs.

    A mapping gives the arguments that each part is called with, whatever the model gives for them. `at` finds a place
    in the plan (`Plan.at`). Raises `PlanError` for a name that the model or a part doesn't have, `ModelError` where a
    region isn't called.
    """
    modules, fixed = dict(model.named_modules()), _fixed(names)
    places = _places(names, at)
    for name in fixed:
        if not name or name not in modules:
            message = f"the model has no module '{name}' to be a region"
            raise PlanError(message, at=places[name], hint=nearest(name, modules))
        outer = next((other for other in fixed if name.startswith(f"{other}.")), None)
        if outer or not list(modules[name].children()):
            message = f"region '{name}' lies in region '{outer}'" if outer else f"region '{name}' is a single layer"
            raise PlanError(message, at=places[name], hint="name parts of the model that don't overlap")
        _check_fixed(name, modules[name], fixed[name], at)
    with really_run(model):
        calls, given = _calls(model, {name: modules[name] for name in fixed}, fixed, example_inputs)
    found = []
    for name in fixed:
        if name not in calls:
            message = f"region '{name}' isn't called when the model runs on the example inputs"
            raise ModelError(
                message, at=places[name], hint="name a module whose forward runs, such as one of its children"
            )
        first, *others = calls[name]
        if odd := next((other for other in others if other.form != first.form), None):
            message = f"region '{name}' is called in more than one way: {odd.shown} after {first.shown}"
            hint = "name a part that is always called alike, such as one of its children"
            raise ModelError(message, at=places[name], hint=hint)
        prefix = f"{name.replace('.', '_')}_" if len(fixed) > 1 else ""
        found.append(Region(name, modules[name], _taken(name, modules[name], first), prefix, fixed[name]))
    return Regions(model, example_inputs, tuple(found), given)


def _fixed(names: Sequence[str] | Mapping[str, Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
    return dict(names) if isinstance(names, Mapping) else {name: {} for name in names}


def _places(names: Sequence[str] | Mapping[str, Any], at: Callable[..., Span | None]) -> dict[str, Span | None]:
    """Where each region stands in the plan."""
    if isinstance(names, Mapping):
        return {name: at("region", name, on_key=True) for name in names}
    return {name: at("region", index) for index, name in enumerate(names)}


def _check_fixed(name: str, module: nn.Module, fixed: Mapping[str, Any], at: Callable[..., Span | None]) -> None:
    """Refuse an argument that the region's forward doesn't take. A decorator may take more than the forward has."""
    known = inspect.signature(module.forward).parameters
    if hasattr(module.forward, "__wrapped__") or any(p.kind is p.VAR_KEYWORD for p in known.values()):
        return
    if unknown := next((key for key in fixed if key not in known), None):
        place = at("region", name, unknown, on_key=True)
        raise PlanError(f"region '{name}' has no argument '{unknown}'", at=place, hint=nearest(unknown, known))


def _taken(name: str, module: nn.Module, call: _Called) -> Arguments:
    """The first call of a region, taken apart. Raises ModelError where it holds what no graph takes."""
    try:
        return arguments(module, *call.kept)
    except ModelError as error:
        others = [key for key, value in call.form.items() if _is_object(value)]
        hint = f"where the region needs it not: region: {{{name}: {{{', '.join(f'{key}: null' for key in others)}}}}}"
        raise ModelError(f"region '{name}': {error.message}", hint=hint if others else error.hint) from error


def _is_object(form: Any) -> bool:
    """Whether the outline of an argument holds something that is neither a tensor nor a literal."""
    if isinstance(form, dict | list):
        return any(map(_is_object, form.values() if isinstance(form, dict) else form))
    return isinstance(form, Like) and not hasattr(torch, form.kind)


def splice_in(part: nn.Module, region: Region) -> nn.Module:
    """The part, called as the region was, and with the region's plain attributes, which the model may read."""
    forward, frozen, fixed = region.module.forward, dict(region.taken.frozen), frozenset(region.fixed)
    inputs = frozenset(region.taken.inputs)

    def adapt(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        given = by_name(forward, args, kwargs)
        for name, value in given.items():
            if name not in inputs | fixed and not (name in frozen and frozen[name] == value):
                raise ValueError(f"the slim {region.name} was made for {name}={frozen.get(name)!r}, not {value!r}")
        return (), {name: given[name] for name in region.taken.inputs}

    part.register_forward_pre_hook(adapt, with_kwargs=True)
    for key, value in vars(region.module).items():
        if not key.startswith("_") and not hasattr(part, key):
            setattr(part, key, value)
    return part


class _Joint(nn.Module):
    """Runs every region on its inputs. The regions stand at their places in the whole model."""

    def __init__(self, parts: Sequence[Region]) -> None:
        super().__init__()
        self.parts = tuple(parts)
        for region in parts:
            *path, last = region.name.split(".")
            place: nn.Module = self
            for key in path:
                if key not in place._modules:
                    place._modules[key] = nn.Module()
                place = place._modules[key]  # type: ignore[assignment]
            place._modules[last] = region.module

    def forward(self, **values: Any) -> dict[str, Any]:
        return {region.name: self._called(region, values) for region in self.parts}

    def _called(self, region: Region, values: Mapping[str, Any]) -> Any:
        own = {name: values[region.prefix + name] for name in region.taken.inputs}
        args, kwargs = region.taken.call(own)
        return self.get_submodule(region.name)(*args, **kwargs)


@dataclass(frozen=True)
class _Called:
    """A call of a region: how it was made, and, of the first one, the arguments as they were before it ran."""

    form: Any
    """The outline of each argument: the numbers and the shapes of tensors may differ from call to call."""
    kept: Any = None

    @property
    def shown(self) -> str:
        """The arguments in words."""
        return ", ".join(f"{name}={value}" for name, value in self.form.items()) or "nothing"


def _watch(part: nn.Module, program: Program, found: list[float]) -> None:
    """At every call of the part, compare what it gives with the program run node by node, and note the difference.

    The program runs first, on copies, since the part may write into its inputs.
    """
    interpreter = Interpreter(program, _floating(program))
    names = [str(node.target) for node in program.graph.find_nodes(op="placeholder")]
    wanted: list[Any] = []

    def before(_: nn.Module, __: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        with torch.random.fork_rng(devices=[]):
            wanted.append(interpreter.run(tuple(kwargs[name] for name in names)))

    def after(_: nn.Module, __: tuple[Any, ...], ___: dict[str, Any], given: Any) -> None:
        found.append(difference(_bare(given), _bare(wanted.pop())))

    part.register_forward_pre_hook(before, with_kwargs=True)
    part.register_forward_hook(after, with_kwargs=True)


def _bare(value: Any) -> Any:
    """The same nest with plain dicts, lists and tuples in place of fx's own."""
    if isinstance(value, Mapping):
        return {key: _bare(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return (list if isinstance(value, list) else tuple)(map(_bare, value))
    return value


def _given(graph: fx.Graph, result: Any, name: str) -> Any:
    """What one region gives, out of the outputs of all; in both modes, where these are told apart."""
    return joint_output(graph, *(each[name] for each in result)) if isinstance(result, ByMode) else result[name]


def _leave_out(graph: fx.Graph, inputs: Mapping[str, Any]) -> None:
    """Erase every node that depends on other inputs than these: it belongs to another region."""
    others = {node for node in graph.find_nodes(op="placeholder") if node.target not in inputs}
    for node in graph.nodes:
        if any(operand in others for operand in node.all_input_nodes):
            others.add(node)
    for node in reversed(list(graph.nodes)):
        if node in others:
            graph.erase_node(node)


def _floating(program: Program) -> torch.dtype:
    """The dtype of the program's first floating-point tensor."""
    return next((tensor.dtype for tensor in program.tensors.values() if tensor.is_floating_point()), torch.float32)


def _calls(
    model: nn.Module, regions: Mapping[str, nn.Module], fixed: Mapping[str, Mapping[str, Any]], example: Inputs
) -> tuple[dict[str, list[_Called]], Any]:
    """All calls of each region when the model runs on the example, and the outline of what the model gives."""
    found: dict[str, list[_Called]] = {}

    def keep(name: str) -> Callable[..., Any]:
        forward = regions[name].forward

        def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            args, kwargs = _with_fixed(forward, args, kwargs, fixed[name])
            form = {key: outline(value, values=True) for key, value in by_name(forward, args, kwargs).items()}
            first = name not in found
            kept = fx.node.map_aggregate((tuple(args), dict(kwargs)), _snapshot) if first else None
            found.setdefault(name, []).append(_Called(form, kept))
            return args, kwargs

        return hook

    handles = [module.register_forward_pre_hook(keep(name), with_kwargs=True) for name, module in regions.items()]
    try:
        return found, outline(_result(model, example))
    finally:
        for handle in handles:
            handle.remove()


def _with_fixed(
    function: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any], fixed: Mapping[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """A call's arguments with the fixed ones in their places, or beside them by keyword."""
    names = names_in_order(function, len(args))
    others = {name: value for name, value in fixed.items() if name not in names}
    return tuple(fixed.get(name, value) for name, value in zip(names, args, strict=True)), {**kwargs, **others}


def _snapshot(value: Any) -> Any:
    return value.detach().clone() if isinstance(value, torch.Tensor) else value


def _result(model: nn.Module, example: Inputs) -> Any:
    """The outputs of the model on a copy of the example inputs."""
    with torch.no_grad():
        return called(model, copy.deepcopy(dict(example) if isinstance(example, Mapping) else tuple(example)))

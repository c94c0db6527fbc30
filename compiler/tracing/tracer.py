"""The tracer: a function mode that runs a forward on meta tensors and writes its calls down as nodes.

    forward runs                                        the graph gets
      y = self.conv(x)          a leaf module             call_module   conv (x,)
      y += x                    a tensor's operator       call_function operator.iadd (conv, x)
      y.view(y.size(0), -1)     a method, a size          call_method   size (iadd, 0); view (iadd, size, -1)
      F.dropout(y, training=self.training)                get_attr      training; call_function F.dropout

The tensors that user code holds are true tensors on the meta device, and each is known by its identity: a table says
which node it comes from. So whatever user code does with types, containers and Python functions just works, and an
operation that writes in place (seen by the tensor's version counter) makes later readers read the writing node.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import FrameType
from typing import Any

import torch
from torch import fx, nn
from torch.overrides import TorchFunctionMode

from prunec.compiler.ir.graph import new_node
from prunec.compiler.ir.inputs import Arguments, map_tensors, tensors_in
from prunec.compiler.ir.modules import to_meta
from prunec.compiler.tracing.answers import Answers
from prunec.compiler.tracing.calls import Call, describe, shown_type, with_dtype
from prunec.compiler.tracing.constant_folding import Constants
from prunec.compiler.tracing.containers import SIMPLE_TYPES, is_foreign, leaves, rebuilt, returned, twin_of
from prunec.compiler.tracing.data_dependent import Places, at_zero, places_of, with_mask, with_numbers
from prunec.compiler.tracing.equivalents import equivalent
from prunec.compiler.tracing.locations import Scope, in_meta_kernel, user_line
from prunec.compiler.tracing.lowering import lowers, multihead_attention_function
from prunec.compiler.tracing.meta_model import MetaCopy, StandIn, meta_copy
from prunec.compiler.tracing.patches import module_calls_sent_to, patched, written_out
from prunec.compiler.tracing.shape_inference import MetaRunner, shapes_on_data
from prunec.compiler.tracing.symbolic_numbers import Flag, Handle, Number, Refused, Shape, wrap_number
from prunec.compiler.tracing.training_flag import FOLLOWS, following
from prunec.compiler.tracing.vmaps import vmaps_sent_to

_META = torch.device("meta")


class Tracer(TorchFunctionMode):
    """Runs one model once; `named` are its modules. `graph` is what it wrote down, `constants` holds tensors that no
    module owns.

    `training` is the mode whose branches are traced; with `flagged`, reads of `self.training` become nodes. After the
    run, `froze` says whether a size became a plain number, `decided` whether one was compared; `failed` is the first
    exception, and the module that it came from. Where code asks whether values that aren't known are true, it is
    refused; or it gets `answers`, and False when these are used up. What it got is in `answers.given`.
    """

    def __init__(
        self,
        model: nn.Module,
        named: Mapping[str, nn.Module],
        *,
        training: bool = False,
        flagged: bool = True,
        answers: Answers | None = None,
    ) -> None:
        super().__init__()
        self._answers = answers
        self.graph = fx.Graph()
        self.active = True
        self.froze = self.decided = False
        self.failed: tuple[BaseException, StandIn] | None = None
        self.copy: MetaCopy = meta_copy(model, named)
        self.constants = Constants({name: original for name, (original, _) in self.copy.tensors.items()})
        self._scopes: list[Scope] = []
        self._runner = MetaRunner()
        self._handles: dict[int, Handle] = {}
        self._kept: list[torch.Tensor] = []
        self._device: Handle | None = None
        self._here = _META
        self._training = training
        self._adopt_model(flagged)

    def run_forward(self, inputs: Arguments, *, exporting: bool = False) -> None:
        """Call the model's copy on the stand-ins of the example inputs, and finish the graph."""
        with torch.inference_mode(False), torch.no_grad():
            values = {name: self._placeholder(name, example) for name, example in inputs.inputs.items()}
            args, kwargs = inputs.call(values)
            with (
                module_calls_sent_to(self.call_module, self.copy.originals),
                patched(exporting=exporting),
                written_out(),
                vmaps_sent_to(self),
                self,
            ):
                left_out: list[str] = []
                result = returned(nn.Module.__call__(self.copy.root, *args, **kwargs), left_out)
            node = self.graph.output(self.to_graph(result))
            decides = self.froze or self.decided
            node.meta |= {"val": self.to_value(result), "left_out": left_out, "decides": decides}
            self.active = False

    # ---- values and their nodes ---------------------------------------------------------------------------------

    def _adopt_model(self, flagged: bool) -> None:
        """Enter the model's tensors in the table (their nodes are made when they are read), and put the flag `training`
        into the copies of modules that are traced through: a traced one if `flagged`."""
        for name, (original, copy) in self.copy.tensors.items():
            handle = Handle(self, copy, lambda name=name, copy=copy: self._get_attr(name, copy))  # type: ignore[misc]
            self._handles[id(original)] = self._handles[id(copy)] = handle
        flag = Flag(Handle(self, self._training, lambda: self._get_attr("training", self._training)))
        self._flag = flag
        for standin in self.copy.modules.values():
            if not standin.leaf:
                standin.copy.__dict__["training"] = flag if flagged else self._training

    def _placeholder(self, name: str, example: Any) -> Any:
        """An input on the meta device. A nest of tensors is one placeholder, of which they are items."""
        value = map_tensors(lambda tensor: to_meta(tensor.detach()), example)
        self._adopt_input(value, Handle(self, value, self._finish(self.graph.placeholder(name), value)))
        if self._device is None:
            self._here = next(tensors_in(example)).device
            first = next(tensors_in(value))
            self._device = Handle(self, self._here, lambda: self.call_node(getattr, (first, "device"), _META))
        return value

    def _adopt_input(self, value: Any, handle: Handle) -> None:
        """Enter an input's tensors in the table."""
        if isinstance(value, torch.Tensor):
            self._handles[id(value)] = handle
            self._kept.append(value)
        elif isinstance(value, Mapping | tuple | list):
            for key, item in value.items() if isinstance(value, Mapping) else enumerate(value):
                self._adopt_input(item, handle.item(key, item))

    def _get_attr(self, name: str, value: Any) -> fx.Node:
        return self._finish(self.graph.get_attr(name), value)

    def _constant(self, tensor: torch.Tensor) -> Handle:
        """Adopt a tensor that the forward got neither from the model's parameters and buffers nor from an operation."""
        mine = [copy for _, copy in self.copy.tensors.values()]
        if tensor.is_meta and (known := twin_of(tensor, mine + self._kept)) is not None:
            self._kept.append(tensor)
            return self._handles.setdefault(id(tensor), self._handles[id(known)])
        if tensor.is_meta:
            raise Refused(
                "a tensor comes from code that the tracer can't look into (a scripted function, a compiled extension)",
                "write it as plain Python",
            )
        name, meta = self.constants.add(tensor), to_meta(tensor.detach())
        handle = Handle(self, meta, lambda: self._get_attr(name, meta))
        self._handles[id(tensor)] = self._handles[id(meta)] = handle
        self._kept += (tensor, meta)
        return handle

    def call_node(self, function: Callable[..., Any], args: tuple[Any, ...], value: Any) -> fx.Node:
        """A node that calls a Python function, at the graph's end."""
        return self._finish(self.graph.call_function(function, self.to_graph(args)), value)

    def _finish(self, node: fx.Node, value: Any) -> fx.Node:
        """Note in a new node's `meta` its value, the module whose forward made it, and the user's source line."""
        self._describe(node, value, sys._getframe(1))
        self.constants.note(node)
        return node

    def _describe(self, node: fx.Node, value: Any, frame: FrameType) -> None:
        """Note in a new node's `meta` its value, the module whose forward made it, and the line that led to `frame`."""
        meta = node.meta
        meta["val"] = value
        if self._scopes:
            meta["scope"] = self._scopes[-1].name
            meta["at"] = user_line(frame, self._scopes)

    def to_graph(self, value: Any) -> Any:
        """An argument as the graph holds it: traced tensors, numbers and sizes become their nodes."""
        if type(value) is tuple:
            return tuple(map(self.to_graph, value))
        if type(value) in SIMPLE_TYPES or isinstance(value, fx.Node):
            return value
        if isinstance(value, torch.Tensor):
            return (self._handles.get(id(value)) or self._constant(value)).node
        if isinstance(value, Number):
            return value.handle.node if value.handle.tracer is self else value.plain
        if type(value) is Shape and value.handle is not None and value.handle.tracer is self:
            return value.handle.node
        if isinstance(value, torch.device):
            return self._device.node if value == self._here and self._device else value
        return rebuilt(value, self.to_graph)

    def to_value(self, value: Any) -> Any:
        """An argument to run the call with: plain numbers for traced ones, tensors and devices on the meta device."""
        if type(value) is tuple:
            return tuple(map(self.to_value, value))
        if type(value) in SIMPLE_TYPES:
            return value
        if isinstance(value, torch.Tensor):
            return value if value.is_meta else (self._handles.get(id(value)) or self._constant(value)).value
        if isinstance(value, Number | Shape):
            return value.plain
        return _META if isinstance(value, torch.device) else rebuilt(value, self.to_value)

    def _wrap(self, value: Any, handle: Handle) -> Any:
        """A result as user code gets it: tensors are entered in the table, numbers and sizes become traced ones."""
        if isinstance(value, torch.Tensor):
            self._handles[id(value)] = handle
            self._kept.append(value)
            return value
        if isinstance(value, torch.Size):
            return Shape(value, handle)
        if isinstance(value, int | float):
            return wrap_number(value, handle)
        if not isinstance(value, tuple | list):
            return value
        items = [self._wrap(item, handle.item(i, item)) for i, item in enumerate(value)]
        return value if all(new is old for new, old in zip(items, value, strict=True)) else type(value)(items)

    # ---- operations ---------------------------------------------------------------------------------------------

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if in_meta_kernel(sys._getframe(1)):
            return func(*args, **kwargs)  # compiled code runs on the user's tensors; what it gives is refused when used
        if lowers(func, kwargs):
            with self:
                return multihead_attention_function(*args, **kwargs)
        if (other := equivalent(func, args, kwargs, self._constant_value)) is not None:
            with self:
                return other()
        if self._training and func in FOLLOWS:
            args, kwargs = following(self._flag, FOLLOWS[func], args, kwargs)
        args = with_dtype(func, with_mask(args))
        call = describe(func, args, kwargs)
        if call.reshaped and isinstance(args[0], torch.Tensor) and args[0].is_meta:
            return self._reshape(call, args, kwargs)
        args, kwargs = with_numbers(call.name, args, kwargs, self._number)
        operands = list(leaves((args, kwargs)))
        tensors = [self.to_value(operand) for operand in operands if isinstance(operand, torch.Tensor)]
        traced = bool(tensors) or any(isinstance(o, Number) or self._is_here(o) for o in operands)
        if call.untraced or not self._can_record(call, operands, traced):
            return func(*args, **kwargs)
        versions = [_version(tensor) for tensor in tensors]
        value = self._execute(call, args, kwargs, bool(tensors))
        if isinstance(value, torch.device):
            return self._here  # forwards ask of what kind it is
        if type(value) is Places:
            return value
        self.froze |= call.name == "__len__"
        if call.is_plain(value) or not (traced or _has_tensor(value)):
            return shown_type(value) if isinstance(value, str) else value
        written = [t for t, before in zip(tensors, versions, strict=True) if _version(t) != before]
        value = _distinct(value, tensors, written)
        arranged = call.arrange(self.to_graph(args), self.to_graph(kwargs))
        return self._enter(self._node(call.kind, call.target, *arranged), value, written)

    def _is_here(self, operand: Any) -> bool:
        """Whether an operand is the inputs' device."""
        return isinstance(operand, torch.device) and operand == self._here

    def _reshape(self, call: Call, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """A tensor that is given another shape in place (`x.unsqueeze_(1)`) is a view of what it was before."""
        given = self.to_graph(args), self.to_graph(kwargs)
        source, before = given[0][0], args[0].detach()
        for node in (source, *source.all_input_nodes):  # a part of a tuple stands in the tuple's node as well
            value = node.meta["val"]
            node.meta["val"] = fx.node.map_aggregate(value, lambda v: before if v is args[0] else v)
        value = call.function(*self.to_value(args), **self.to_value(kwargs))
        return self._enter(self._node("call_method", call.reshaped, *given), value, ())

    def _can_record(self, call: Call, operands: Iterable[Any], traced: bool) -> bool:
        """Whether a call can be a node. Raises `Refused` where it must be one and can't.

        A call on literals alone that a graph can't hold (a numpy array) runs untraced; its result is a constant.
        """
        if call.kind == "set":
            raise Refused("the data of a tensor are replaced", "use an operation, such as copy_, instead of `.data =`")
        foreign = next((operand for operand in operands if is_foreign(operand)), None)
        if foreign is not None and traced:
            kind = type(foreign).__name__
            raise Refused(f"{call.name} gets a {kind}, which a graph can't hold", "give tensors, numbers or strings")
        return foreign is None

    def _execute(self, call: Call, args: Any, kwargs: Any, on_tensors: bool) -> Any:
        """The call's value on the meta device; where values are needed and constants give them, from these."""
        plain_args, plain_kwargs = call.on_meta(self.to_value(args), self.to_value(kwargs))
        if call.moves:
            return plain_args[0]
        if not on_tensors:
            with torch.device("meta"):
                return call.function(*plain_args, **plain_kwargs)
        try:
            return self._runner.call(call, plain_args, plain_kwargs)
        except (NotImplementedError, RuntimeError, TypeError, ValueError) as error:
            known = self._known(call, args, kwargs)
            if known is not None:
                return fx.node.map_aggregate(known[0], lambda a: to_meta(a) if isinstance(a, torch.Tensor) else a)
            if (places := places_of(call, args, kwargs)) is not None:
                return places
            if (single := at_zero(call.name, plain_args)) is not None:
                return self._runner.call(call, single, plain_kwargs)
            if self._answers is not None and call.decides(args):
                return self._answers.next()
            in_arguments = "Tensor.item() cannot be called" in str(error) and not call.reads_values
            given = () if call.reads_values or in_arguments else shapes_on_data(call.function, plain_args, plain_kwargs)
            if call.reads_values or in_arguments or given or isinstance(error, NotImplementedError):
                raise Refused(*call.complaint(in_arguments=in_arguments, sized=len(given) > 1)) from error
            raise

    def _number(self, tensor: torch.Tensor) -> Any:
        """The number in a constant tensor of one element; any other tensor unchanged."""
        known = self.constants.evaluate(torch.Tensor.item, (self.to_graph(tensor),), {})
        return tensor if known is None else known[0]

    def _constant_value(self, tensor: torch.Tensor) -> torch.Tensor | None:
        """The value of a tensor that depends on constants alone; None of any other."""
        known = self.constants.evaluate(lambda value: value, (self.to_graph(tensor),), {})
        return None if known is None else known[0]

    def _known(self, call: Call, args: Any, kwargs: Any) -> tuple[Any] | None:
        """The call's value, in a tuple, where constants decide it; of `x[mask]`, a value of the right shape where the
        mask is known. None where they don't."""
        if call.name == "__getitem__":
            shape = self.to_value(args[0]).shape
            blank = torch.zeros((), dtype=args[0].dtype).expand(shape)
            return self.constants.evaluate(blank.__getitem__, self.to_graph(args[1:]), {})
        return self.constants.evaluate(call.function, self.to_graph(args), self.to_graph(kwargs))

    def _node(self, kind: str, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> fx.Node:
        """A node at the graph's end."""
        return new_node(self.graph, kind, target, args, kwargs)

    def _enter(self, node: fx.Node, value: Any, written: Sequence[torch.Tensor]) -> Any:
        """Finish the node of a call and give its value to user code; `written` are operands that it wrote into."""
        if written:
            node.meta["mutates"] = True
            self.constants.spoil(written)
        return self._wrap(value, Handle(self, value, self._finish(node, value)))

    # ---- modules ------------------------------------------------------------------------------------------------

    def call_module(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """`module(*args, **kwargs)`: one node for a leaf, the forward's own operations for any other."""
        standin = self.copy.modules.get(id(module))
        if standin is None or not torch._C._is_torch_function_mode_enabled():
            return module._call_impl(*args, **kwargs)  # type: ignore[no-untyped-call]
        try:
            return (self._call_hooked if standin.leaf else self._call_through)(standin, args, kwargs)
        except BaseException as error:
            if self.failed is None or self.failed[0] is not error:
                self.failed = (error, standin)
            raise

    def _call_through(self, standin: StandIn, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Trace the forward of a module that is no leaf."""
        self._scopes.append(Scope(standin.name))
        try:
            return standin.copy._call_impl(*args, **kwargs)  # type: ignore[no-untyped-call]
        finally:
            self._scopes.pop()

    def _call_hooked(self, standin: StandIn, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Call a leaf between its hooks. What these compute is traced: a leaf in the graph has none."""
        module, hooked, hooks = standin.copy, standin.original, standin.hooks
        if not hooks and not hooked._forward_pre_hooks:
            if len(args) == 1 and not kwargs and type(args[0]) is torch.Tensor:
                return self._call_simple(standin, args[0])
            return self._call_leaf(standin, args, kwargs)
        if hooked._forward_pre_hooks and any(isinstance(value, torch.Tensor) for value in vars(hooked).values()):
            raise Refused("a hook computes a layer's tensor", "make it a parameter, or use torch.nn.utils.parametrize")
        for key, before in hooks.get("_forward_pre_hooks", {}).items():
            if key in hooked._forward_pre_hooks_with_kwargs:
                args, kwargs = before(module, args, kwargs) or (args, kwargs)
            elif (given := before(module, args)) is not None:
                args = given if isinstance(given, tuple) else (given,)
        value = self._call_leaf(standin, args, kwargs)
        for key, after in hooks.get("_forward_hooks", {}).items():
            more = (kwargs,) if key in hooked._forward_hooks_with_kwargs else ()
            changed = after(module, args, *more, value)
            value = value if changed is None else changed
        return value

    def _call_simple(self, standin: StandIn, given: torch.Tensor) -> Any:
        """`_call_leaf` of a tensor, in short where the layer's result has a closed form: most calls are such."""
        handle = self._handles.get(id(given))
        with torch._C.DisableTorchFunction():
            known = self._runner.closed_form(standin.copy, given) if handle is not None and given.is_meta else None
            if known is None or handle is None:
                return self._call_leaf(standin, (given,), {})
            value, writes = known
            node = new_node(self.graph, "call_module", standin.name, (handle.node,))
            self._describe(node, value, sys._getframe(2))
            if writes:
                node.meta["mutates"] = True
                self.constants.spoil((value,))
            self._handles[id(value)] = Handle(self, value, node)
            self._kept.append(value)
            return value

    def _call_leaf(self, standin: StandIn, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """One node for a leaf module."""
        with torch._C.DisableTorchFunction():
            plain_args, plain_kwargs = self.to_value(args), kwargs and self.to_value(kwargs)
            alone = not kwargs and len(args) == 1 and isinstance(args[0], torch.Tensor)
            given = plain_args if alone else leaves((plain_args, plain_kwargs))
            tensors = [a for a in given if isinstance(a, torch.Tensor)]
            versions = [_version(tensor) for tensor in tensors]
            value = self._runner.module(standin, plain_args, plain_kwargs)
            written = [t for t, before in zip(tensors, versions, strict=True) if _version(t) != before]
            node = self._node("call_module", standin.name, self.to_graph(args), kwargs and self.to_graph(kwargs))
            return self._enter(node, _distinct(value, tensors, written), written)


def _version(tensor: torch.Tensor) -> int:
    """The version counter of a tensor, which counts writes; 0 for inference tensors, which have none."""
    return 0 if tensor.is_inference() else tensor._version


def _has_tensor(value: Any) -> bool:
    return any(isinstance(item, torch.Tensor) for item in leaves(value))


def _distinct(value: Any, operands: Sequence[torch.Tensor], written: Sequence[torch.Tensor]) -> Any:
    """A result in which every operand that was given back unchanged (dropout does) is a new tensor object, so that
    readers of the operand and of the result can be told apart. Operands that were `written` stay themselves."""
    if type(value) is torch.Tensor and all(value is not operand for operand in operands):
        return value
    kept = {id(tensor) for tensor in written}
    given = {id(tensor) for tensor in operands} - kept

    def renew(item: Any) -> Any:
        if isinstance(item, torch.Tensor):
            return item.detach() if id(item) in given else item
        return rebuilt(item, renew) if type(item) in (tuple, list) else item

    return renew(value)

"""A second device that any machine has: `far`, whose tensors say that they are elsewhere and compute on the CPU.

    with far_device.there():
        x = torch.zeros(2, device="far:0")
        x + torch.zeros(2)                    RuntimeError: Expected all tensors to be on the same device ...
        x.numpy()                             TypeError

So what assumes the CPU fails as it would with a GPU. As there, indices may be on the CPU, and scalars mix.
Once imported, the device stays known to torch: a test runs it in a process of its own.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

NAME = "far"
_setup_privateuseone_for_python_backend(NAME)
FAR = torch.device(NAME, 0)

_INDEXED = ("aten::index", "aten::index_put_", "aten::_index_put_impl_")


class Far(torch.Tensor):
    """A tensor of that device; `near` holds its values."""

    near: torch.Tensor

    @staticmethod
    def __new__(cls, near: torch.Tensor) -> Far:
        made: Far = torch.Tensor._make_wrapper_subclass(
            cls, near.size(), near.stride(), near.storage_offset(), dtype=near.dtype, device=FAR
        )
        made.near = near
        return made

    def numpy(self, *, force: bool = False) -> Any:
        """As a tensor of a GPU has it."""
        if not force:
            raise TypeError("can't convert far:0 device type tensor to numpy. Use Tensor.cpu() first")
        return self.near.detach().numpy(force=True)

    def tolist(self) -> Any:
        """The values, as plain numbers."""
        return self.near.tolist()

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


class there(TorchDispatchMode):
    """A context in which tensors can be made on the device, and moved to it."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


def moved(model: torch.nn.Module) -> torch.nn.Module:
    """The model itself with its parameters and buffers there: in the context, as `model.to("far")` for a GPU."""
    for module in model.modules():
        tables: tuple[dict[str, Any], ...] = (module._parameters, module._buffers)
        for key, tensor in [(key, tensor) for table in tables for key, tensor in table.items() if tensor is not None]:
            far = tensor.detach().to(FAR)
            if key in module._parameters:
                module._parameters[key] = torch.nn.Parameter(far, tensor.requires_grad)
            else:
                module._buffers[key] = far
    return model


def _run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    name, device = func._schema.name, kwargs.get("device")
    leaves = [x for x in pytree.tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
    far = any(isinstance(x, Far) for x in leaves)
    if name == "aten::copy_":
        func(*_near(args), **_near(kwargs))
        return args[0]
    if name == "aten::_local_scalar_dense":
        return func(*_near(args))
    others = [x for x in leaves if not isinstance(x, Far) and x.ndim and x.device.type == "cpu"]
    if far and others and name not in (*_INDEXED, "aten::_to_copy"):
        raise RuntimeError(f"Expected all tensors to be on the same device, but found far:0 and cpu! ({name})")
    if device is not None:
        far = torch.device(device).type == NAME
        kwargs = {**kwargs, "device": "cpu"} if far else kwargs
    found = func(*_near(args), **_near(kwargs))
    if not far:
        return found
    known = {id(x.near): x for x in leaves if isinstance(x, Far)}  # an operation in place gives its own operand
    return pytree.tree_map(lambda x: _same(x, known), found)


def _near(value: Any) -> Any:
    return pytree.tree_map(lambda x: x.near if isinstance(x, Far) else x, value)


def _same(value: Any, known: dict[int, Far]) -> Any:
    if not isinstance(value, torch.Tensor):
        return value
    return known[id(value)] if id(value) in known else Far(value)

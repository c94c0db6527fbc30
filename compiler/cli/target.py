"""What MODEL|PLAN on the command line names, as a plan.

    plans/digits.yaml, out/plan.lock.json       the plan itself
    package.module:name, file.py:name           a plan without passes, with --inputs
    out                                         a folder that `prunec compile` wrote: its inputs are known

Anything else is told what it is, and what to name instead.
"""

from __future__ import annotations

import ast
import json
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from prunec.compiler.cli.python_file import definitions
from prunec.compiler.emit.output_folder import LOCK
from prunec.compiler.errors import PlanError, nearest
from prunec.compiler.plan.plan import Plan
from prunec.compiler.plan.source import shown
from prunec.compiler.report.console import say, table

PLAN_SUFFIXES: Final = (".yaml", ".yml", ".json")
WEIGHTS_SUFFIXES: Final = (".safetensors", ".pth", ".pt", ".ckpt", ".tar", ".bin", ".pkl", ".pickle", ".h5", ".npz")
REPORT: Final = "report.json"

_INPUT: Final = re.compile(r"(\w+) (\[[\d, ]*\]) (\w+)")
_LONGEST: Final = 255
"""Bytes in the name of a file, at most."""
_SHOWN: Final = 6
"""How many files of a folder are named."""


def plan_of(target: str, inputs: Sequence[str] | None = None, overrides: Sequence[str] | None = None) -> Plan:
    """The plan that a target names. Raises `PlanError` where it names none, and what loading the plan raises."""
    path = Path(target)
    _check_length(path)
    if path.suffix.lower() in PLAN_SUFFIXES and not path.is_dir():
        return _of_file(path, inputs, overrides)
    if path.is_dir():
        return _of_folder(path, inputs, overrides)
    if ":" in target and not path.exists():
        return _of_model({"factory": target}, inputs, overrides, target)
    raise _told(path)


def plan_file(path: Path, overrides: Sequence[str] | None = None) -> Plan:
    """The plan of a command that takes no model. Raises `PlanError` where the path is no plan's, and as `Plan.load`."""
    _check_length(path)
    if path.is_dir():
        lock = path / LOCK
        hint = f"name the plan in it: {lock}" if lock.is_file() else _inside(path)
        raise PlanError(f"{path} is a folder, not a plan", hint=hint)
    if not path.exists() or path.suffix.lower() in (".py", ".onnx", *WEIGHTS_SUFFIXES):
        raise _told(path)
    return Plan.load(path, overrides or ())


def _check_length(path: Path) -> None:
    if any(len(os.fsencode(part)) > _LONGEST for part in path.parts):
        raise PlanError(f"no file has so long a name: {shown(str(path))}")


def is_python(target: str) -> bool:
    """Whether a target is a file of Python without a name in it."""
    return target.lower().endswith(".py") and os.path.isfile(target)


def show_definitions(path: Path) -> None:
    """Print what a file of Python defines, and how one of it is explained. Raises `PlanError`."""
    found = definitions(path)
    if not found:
        say(f"{path} defines no class and no function")
        return
    say(f"{path} defines")
    rows = [[f"{path}:{each.name}", each.kind, each.arguments, each.text] for each in found]
    table("", ("name", "kind", "arguments", "what it says of itself"), rows)
    if path.name == "model.py" and (path.parent / LOCK).is_file():
        say(f"\nTo explain the compiled model: prunec explain {path.parent}")
    else:
        say(f"\nTo explain a model of these: prunec explain {path}:{found[0].name} --inputs 1,3,224,224")


def _of_file(path: Path, inputs: Sequence[str] | None, overrides: Sequence[str] | None) -> Plan:
    if inputs:
        hint = "write --set 'inputs=[[1, 3, 32, 32]]'"
        raise PlanError("--inputs goes with a model; a plan has its own", hint=hint)
    if not path.exists():
        raise _missing(path)
    if path.name == REPORT and (path.parent / LOCK).is_file():
        hint = f"name the folder: {path.parent}; or the plan: {path.parent / LOCK}"
        raise PlanError(f"{path} is the report of a compile, no plan", hint=hint)
    plan = Plan.load(path, overrides or ())
    if plan.model is None and plan.hashes is not None:
        hint = f"name the folder, to explain the slim model: {path.parent}"
        raise PlanError(f"{path} is the lock of a model that Python code handed over: it doesn't name it", hint=hint)
    return plan


def _of_folder(folder: Path, inputs: Sequence[str] | None, overrides: Sequence[str] | None) -> Plan:
    """The slim model of a folder, with the inputs that it was compiled for. Raises `PlanError`."""
    source = folder / "model.py"
    if not source.is_file():
        raise PlanError(f"the folder {folder} holds no compiled model", hint=_inside(folder))
    given = [] if inputs else _compiled_inputs(folder)
    if not inputs and not given:
        hint = f"for example: --inputs 1,3,224,224; or name what is in it: {source}"
        raise PlanError(f"the folder {folder} doesn't tell for which inputs its model.py is", hint=hint)
    return _of_model({"saved": str(folder)}, inputs, overrides, str(folder), given)


def _of_model(
    model: dict[str, Any],
    inputs: Sequence[str] | None,
    overrides: Sequence[str] | None,
    target: str,
    given: Any = (),
) -> Plan:
    shapes = given or [_shape(text) for text in inputs or ()]
    plan = Plan.from_dict({"plan": 1, "model": model, "inputs": shapes}, overrides=overrides or ())
    if not plan.inputs:
        raise PlanError(f"'{target}' is a model and needs example inputs", hint="for example: --inputs 1,3,224,224")
    return plan


def _shape(text: str) -> list[int]:
    try:
        return [int(part) for part in text.strip("[]() ").replace("x", ",").split(",")]
    except ValueError as error:
        raise PlanError(f"--inputs must be a shape, got '{text}'", hint="for example: --inputs 1,3,224,224") from error


# -- a folder that a compile wrote ---------------------------------------------------------------------------------


def _compiled_inputs(folder: Path) -> Any:
    """The inputs of a folder's model as a plan has them: from its lock, else from the text of its `model.py`."""
    lock = _json(folder / LOCK)
    if lock.get("inputs") and not lock.get("region"):
        return lock["inputs"]
    try:
        told = ast.get_docstring(ast.parse((folder / "model.py").read_bytes())) or ""
    except (SyntaxError, ValueError):
        return []
    line = next((line for line in told.splitlines() if line.startswith("Inputs, as compiled: ")), "")
    return [
        {"shape": json.loads(shape), "dtype": dtype, **({"high": 2} if "int" in dtype else {})}
        for _, shape, dtype in _INPUT.findall(line)
    ]


def _json(path: Path) -> dict[str, Any]:
    """A file's mapping; empty where there is none."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _inside(folder: Path) -> str:
    """What of a folder may be named instead."""
    files = sorted(folder.iterdir())
    parts = [path for path in files if path.name.startswith("model_") and path.suffix == ".py"]
    if (folder / LOCK).is_file() and parts:
        return f"it holds parts of a model, compiled in their places; the whole is named by {folder / LOCK}"
    plans = [path for path in files if path.suffix.lower() in PLAN_SUFFIXES[:2] or path.name == LOCK]
    named = [*plans, *(path for path in files if path.suffix == ".py" and path.name != "__init__.py")]
    if named:
        more = f" and {len(named) - _SHOWN} more" if len(named) > _SHOWN else ""
        return f"name what is in it: {', '.join(map(str, named[:_SHOWN]))}{more}"
    if any(path.suffix.lower() in WEIGHTS_SUFFIXES for path in files):
        return f"it holds weights alone; {_WEIGHTS_HINT.format(file=folder / 'FILE')}"
    return "name a plan, a model such as file.py:name, or a folder that `prunec compile` wrote"


# -- what is no target ---------------------------------------------------------------------------------------------

_WEIGHTS_HINT: Final = "a plan names the code beside them: model: {{factory: package.module:name, weights: {file}}}"
_WANTED: Final = "name a plan (plan.yaml), a model (package.module:name, file.py:name) or a folder of a compile"


def _told(path: Path) -> PlanError:
    """What a target is that names neither model nor plan, and what to name instead."""
    suffix, beside = path.suffix.lower(), path.parent
    if path.is_symlink() and not path.exists():
        return PlanError(f"{path} is a link that leads nowhere", hint=_WANTED)
    if not path.exists():
        return _missing(path)
    if not path.is_file():
        return PlanError(f"{path} is neither a file nor a folder", hint=_WANTED)
    if suffix == ".py":
        names = [f"{path}:{found.name}" for found in definitions(path)]
        hint = f"for example: {' or '.join(names[:3])}" if names else "it defines no class and no function"
        return PlanError(f"{path} is a file of Python: name what makes the model in it", hint=hint)
    compiled = (beside / LOCK).is_file() and (beside / "model.py").is_file()
    folder = f"name the folder that it was compiled into: {beside}"
    if suffix == ".onnx":
        hint = folder if compiled else "name the PyTorch model that it was exported from: package.module:name"
        return PlanError(f"{path} is an ONNX file, and prunec reads PyTorch models", hint=hint)
    if suffix in WEIGHTS_SUFFIXES:
        hint = folder if compiled else _WEIGHTS_HINT.format(file=path)
        return PlanError(f"{path} holds weights: they don't tell what is computed with them", hint=hint)
    return PlanError(f"{path} is neither a model nor a plan", hint=_WANTED)


def _missing(path: Path) -> PlanError:
    """What to say of a path that isn't there: the nearest name beside it, or how a model is named."""
    if not path.parent.is_dir():
        return PlanError(f"there is no '{path}': there is no folder '{path.parent}'", hint=_WANTED)
    parts = str(path).split(".")
    dotted = len(parts) > 1 and all(part.isidentifier() for part in parts) and not _is_file_name(path)
    hint = f"a model is named with a colon: {path}:NAME" if dotted else _WANTED
    return PlanError(f"there is no '{path}'", hint=_near(path) or hint)


def _is_file_name(path: Path) -> bool:
    return path.suffix.lower() in (*PLAN_SUFFIXES, *WEIGHTS_SUFFIXES, ".py", ".onnx")


def _near(path: Path) -> str | None:
    """The nearest name of such a file in the same folder, as a hint."""
    names = [other.name for other in path.parent.iterdir() if path.suffix in ("", other.suffix)]
    hint = nearest(path.name, names)
    return hint if hint and hint.startswith("did") else None

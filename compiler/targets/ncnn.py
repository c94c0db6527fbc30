"""ncnn, Tencent's runtime for phones: its text of layers and its weights, which pnnx writes from TorchScript."""

from __future__ import annotations

import re
import signal
import subprocess
import warnings
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from prunec.compiler.errors import TargetError
from prunec.compiler.ir.program import Program
from prunec.compiler.targets.base import Converted, ExportOptions, Meter, Session, Target
from prunec.compiler.targets.child import tried
from prunec.compiler.targets.flat import flat, pixels_as_floats
from prunec.compiler.targets.ncnn_session import NcnnSession, place
from prunec.compiler.verify.compare import relative_difference

NO_BATCH = "233"
"""What pnnx calls the batch dimension of a value that has none."""
_TYPES = {torch.float32: "f32", torch.int64: "i64", torch.int32: "i32", torch.bool: "bool"}
"""Types of inputs as pnnx spells them."""
_SURE = 1e-3
"""From this relative difference on, what pnnx has complained about has changed the function."""


class Ncnn(Target):
    """Packs channels (`elempack`) where their count is a multiple: of 4 with NEON, SSE and Vulkan, of 8 with AVX, of 16
    with AVX-512. Counts that are no multiple of 4 run unpacked, depthwise layers three times slower. 16 serves all."""

    name = "ncnn"
    multiple = 16
    suffixes = (".ncnn.param", ".ncnn.bin")
    extra = "ncnn"
    needs = ("ncnn>=1.0.20261020", "pnnx>=20261020")
    without_int8 = (
        "ncnn's Python package has no quantiser; a build of ncnn has ncnn2table and ncnn2int8, which make such a file "
        "of the exported ones: docs/runtimes.md says how"
    )
    only_one = True

    def convert(self, program: Program, path: Path, options: ExportOptions) -> Converted:
        """By way of TorchScript, of which pnnx knows more operations than of ONNX. The weights stay float32."""
        import ncnn  # noqa: PLC0415  (an extra)

        with TemporaryDirectory() as folder:
            source = Path(folder) / "model.pt"
            module, own = flat(program)
            inputs = pixels_as_floats(own)
            with warnings.catch_warnings(action="ignore"):  # TorchScript is deprecated; pnnx reads nothing newer
                traced = torch.jit.trace(module, inputs, check_trace=False)  # type: ignore[no-untyped-call]
                torch.jit.save(traced, str(source))
            log = _pnnx(source, inputs)
            written = source.with_suffix(".ncnn.param")
            if not written.exists():
                raise TargetError("pnnx writes no file", log=log)
            text = written.read_text(encoding="utf-8")
            unknown = [kind for kind in _kinds(text) if ncnn.layer_to_index(kind) < 0]
            if unknown:
                raise TargetError(f"ncnn has no layer for the operation '{unknown[0]}'", log=log)
            batched = _batched(source.with_name("model_ncnn.py").read_text(encoding="utf-8"), log)
            path.write_text(_with_shapes(text, inputs, batched), encoding="utf-8")
            self.beside(path)[1].write_bytes(source.with_suffix(".ncnn.bin").read_bytes())
        tried(NcnnSession, path, [[value.numpy(force=True) for value in inputs]])
        self._check(path, module, inputs, log)
        return Converted(1 if batched else None)

    def _check(self, path: Path, module: Any, inputs: Sequence[torch.Tensor], log: str) -> None:
        """pnnx goes on where it can't convert an operation, or converts less of it: see whether that mattered."""
        complaints = [
            line.strip() for line in log.splitlines() if "not supported" in line or line.startswith("ignore ")
        ]
        if not complaints:
            return
        got = self.load(path, 1).run([value.numpy(force=True) for value in inputs])
        with torch.no_grad():
            expected = [value.numpy(force=True) for value in module(*(value.clone() for value in inputs))]
        if not relative_difference(list(got), expected) <= _SURE:
            raise TargetError(f"pnnx can't convert all of the model: {complaints[0]}", log=log)

    def load(self, path: Path, threads: int) -> Session:
        """The files in ncnn; left to itself it rounds weights and values to float16."""
        return NcnnSession(path, threads)

    def meter(self) -> Meter:
        """One thread of this machine's CPU."""
        from prunec.compiler.targets.ncnn_meter import NcnnMeter  # noqa: PLC0415  (imports onnxruntime)

        return NcnnMeter(self)

    def describe(self) -> str:
        """ncnn's version."""
        return f"ncnn {version('ncnn')}"


# -- pnnx ------------------------------------------------------------------------------------------------------------


def _pnnx(source: Path, inputs: Sequence[torch.Tensor]) -> str:
    """Convert a file in its folder, and give what pnnx says. Its exit status is 0 whatever happens, crashes aside."""
    import pnnx  # noqa: PLC0415  (an extra)

    strange = [value.dtype for value in inputs if value.dtype not in _TYPES]
    if strange:
        raise TargetError(f"ncnn takes no input of {strange[0]}", hint="make it float32")
    shapes = ",".join(f"[{','.join(map(str, value.shape))}]{_TYPES[value.dtype]}" for value in inputs)
    command = [pnnx.EXEC_PATH, source.name, f"inputshape={shapes}", "fp16=0"]
    found = subprocess.run(command, cwd=source.parent, capture_output=True, text=True, errors="replace", check=False)
    log = found.stdout + found.stderr
    if found.returncode < 0:
        raise TargetError(f"pnnx crashes ({signal.Signals(-found.returncode).name})", log=log)
    if found.returncode:
        raise TargetError(f"pnnx fails with the exit status {found.returncode}", log=log)
    return log


def _batched(script: str, log: str) -> bool:
    """Whether the inputs and outputs of the network lack the batch dimension that the module's have, by the script
    that pnnx writes beside it to try it."""
    found = set(re.findall(r"batch_index=(\d+)", script))
    if len(found) > 1 or not found <= {"0", NO_BATCH}:
        raise TargetError("pnnx can't tell which dimension is the batch", log=log)
    return found == {"0"}


# -- the text of layers ----------------------------------------------------------------------------------------------


def _kinds(text: str) -> Iterator[str]:
    """The kinds of layers in a network's text, whose first two lines are a number and counts."""
    return (line.split()[0] for line in text.splitlines()[2:] if line.strip())


def _with_shapes(text: str, inputs: Sequence[torch.Tensor], batched: bool) -> str:
    """The text with the shapes of its inputs, which tell an app what to feed: `0=` width, `1=` height, `11=` depth,
    `2=` channels."""
    lines = text.splitlines()
    for number, line in enumerate(lines):
        if line.startswith("Input "):
            shape = list(inputs[place(line.split()[1])].shape)[1 if batched else 0 :]
            keys = {1: (0,), 2: (1, 0), 3: (2, 1, 0), 4: (2, 11, 1, 0)}.get(len(shape), ())
            sizes = sorted(zip(keys, shape, strict=False))
            lines[number] = " ".join([line.rstrip(), *(f"{key}={size}" for key, size in sizes)])
    return "\n".join(lines) + "\n"

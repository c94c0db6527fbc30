"""An ONNX file as an ORT file, by onnxruntime's own converter, in a process of its own."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from onnxruntime.tools.convert_onnx_models_to_ort import OptimizationStyle, convert_onnx_models_to_ort

from prunec.compiler.targets.ort_file import in_order


def convert(source: str, paths: Sequence[str], style: str, type_reduction: bool) -> None:
    """Write the ONNX file at `source` as an ORT file, and the configuration of a build that reads it: two `paths`."""
    with TemporaryDirectory() as folder:
        convert_onnx_models_to_ort(
            Path(source),
            output_dir=Path(folder),
            optimization_styles=[OptimizationStyle[style.capitalize()]],
            enable_type_reduction=type_reduction,
        )
        (made,), (config,) = (Path(folder).glob(f"*{suffix}") for suffix in (".ort", ".config"))
        file, build = map(Path, paths)
        file.write_bytes(in_order(made.read_bytes()))
        build.write_text(_without_folder(config.read_text(encoding="utf-8"), file.name), encoding="utf-8")


def _without_folder(config: str, name: str) -> str:
    """The list of operators, which begins with the files that it was made from: they were in a folder that is gone."""
    lines = config.splitlines(keepends=True)
    kept = [line for line in lines if not line.startswith("#")]
    return "".join((f"# Generated from {name}\n", *kept))

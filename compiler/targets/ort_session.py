"""How long onnxruntime takes on this machine, for whole files and for single nodes; one thread, CPU.

    ort_latency([a, b], inputs)    seconds of one run of each model: a file, or its bytes
    profile([a, b], feeds)         seconds of every node of each model, as onnxruntime's own profiler counts them

Files take turns, in short blocks of runs, and the time of a run is the thread's own (`interleaved.py`). The profiler
knows no such clock; but a node is short, and often enough nothing comes between.
"""

from __future__ import annotations

import json
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import numpy as np
import onnxruntime

from prunec.compiler.errors import ModelError, first_line
from prunec.compiler.ir.inputs import tensors_in
from prunec.compiler.targets.base import Feed, NodeTime, Profile
from prunec.compiler.targets.interleaved import run_seconds

THREADS = 1
PROFILED: Final = 200
"""The most runs of a model in one round of a profile: more make a log of megabytes, and no time more certain."""


def session(
    model: Path | bytes,
    profile: Path | None = None,
    sizes: Mapping[str, int] | None = None,
    threads: int = THREADS,
    entries: Mapping[str, str] | None = None,
) -> Any:
    """An onnxruntime session for a file, or for a model's bytes; with `profile`, it logs its nodes to a file of that
    prefix. `sizes` fix those that the model leaves open, by their names; `entries` are the session's configuration.

    Raises `ModelError` where onnxruntime refuses the model.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    for name, size in (sizes or {}).items():
        options.add_free_dimension_override_by_name(name, size)
    for name, value in (entries or {}).items():
        options.add_session_config_entry(name, value)
    if profile is not None:
        options.enable_profiling = True
        options.profile_file_prefix = str(profile)
    source = model if isinstance(model, bytes) else str(model)
    try:
        return onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's errors have no root of their own
        raise ModelError(f"onnxruntime can't load the ONNX file: {first_line(error)}") from error


def feed(opened: Any, inputs: Sequence[Any]) -> Feed:
    """The tensors in `inputs` under the names of the session's inputs."""
    feeds = zip(opened.get_inputs(), tensors_in(inputs), strict=True)
    return {entry.name: value.detach().numpy(force=True) for entry, value in feeds}


def ort_latency(
    models: Sequence[Path | bytes],
    inputs: Sequence[Any],
    seconds: float = 1.0,
) -> tuple[float, ...]:
    """The time of one run of each model, a file or its bytes, in seconds: by `run_seconds`, for about so many each."""
    sessions = [session(model) for model in models]
    return latency(sessions, [feed(opened, inputs) for opened in sessions], seconds)


def latency(sessions: Sequence[Any], feeds: Sequence[Feed], seconds: float = 1.0) -> tuple[float, ...]:
    """`ort_latency` for sessions, each with its feed."""
    runs = [partial(opened.run, None, fed) for opened, fed in zip(sessions, feeds, strict=True)]
    return tuple(run_seconds(runs, seconds, alone=True))


# -- single nodes --------------------------------------------------------------------------------------------------


def profile(models: Sequence[bytes], feeds: Sequence[Feed], *, rounds: int = 5, block: float = 0.004) -> list[Profile]:
    """Every model's nodes with their times. The models take turns: each runs for `block` seconds in each round."""
    with TemporaryDirectory() as folder:
        sessions = [session(model, Path(folder) / str(number)) for number, model in enumerate(models)]
        for opened, fed in zip(sessions, feeds, strict=True):
            opened.run(None, fed)
        for _ in range(rounds):
            for opened, fed in zip(sessions, feeds, strict=True):
                _run_for(opened, fed, block)
        return [_read(Path(opened.end_profiling())) for opened in sessions]


def _run_for(opened: Any, fed: Feed, seconds: float) -> None:
    start, runs = time.perf_counter(), 0
    while runs < 2 or (runs < PROFILED and time.perf_counter() - start < seconds):
        opened.run(None, fed)
        runs += 1


def _read(path: Path) -> Profile:
    """The nodes of a profile, each with a low quantile of its times; its first run, which allocates, doesn't count."""
    times: dict[tuple[str, str], list[float]] = defaultdict(list)
    known: dict[tuple[str, str], Mapping[str, Any]] = {}
    for event in json.loads(path.read_text(encoding="utf-8")):
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            key = event["name"], event["args"].get("node_index", "")
            times[key].append(event["dur"] / 1e6)
            known[key] = event["args"]
    return tuple(
        NodeTime(known[k]["op_name"], _elements(known[k]), _low(found[1:]), k[0].removesuffix("_kernel_time"))
        for k, found in times.items()
    )


def _low(times: Sequence[float]) -> float:
    return float(np.quantile(times, 0.1))


def _elements(args: Mapping[str, Any]) -> int:
    shapes = [shape for output in args.get("output_type_shape", ()) for shape in output.values()]
    return sum(int(np.prod(shape)) for shape in shapes)

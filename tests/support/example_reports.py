"""Reports made by hand: one of a compile that measured nothing yet, and one with every section."""

from __future__ import annotations

from dataclasses import replace

from prunec.compiler.cost.model import Cost
from prunec.compiler.ir.program import Note
from prunec.compiler.report.report import (
    Change,
    ClassScore,
    Evaluation,
    GroupWidths,
    KeptFindings,
    Latency,
    Measured,
    OnnxFindings,
    Origin,
    Record,
    RegionFindings,
    Report,
    RoundFigures,
    Rounds,
)
from prunec.compiler.targets.exporting import Int8Report, TargetReport, Timed
from prunec.compiler.targets.onnx_export import OnnxReport
from prunec.compiler.verify.verify import Verification

WHOLE = Cost(macs=1000, params=200, memory=64)
SLIM = Cost(macs=400, params=90, memory=48)

BARE = Report(
    prunec="0.1.0",
    model="Net",
    inputs=((1, 3, 8, 8), (1, 5)),
    cost=Change(WHOLE, SLIM),
    groups=(
        GroupWidths("conv", 8, Change(16, 6), {"is added to the input": 2}),
        GroupWidths("fc", 10, Change(10, 10), {"reaches the model's output": 10}),
    ),
    macs_by_node=Change({"conv": 900, "fc": 100}, {"conv": 350, "fc": 50}),
    trace_seconds=0.0123,
    passes=(
        Record("score", 0.0019, 0.0, WHOLE, WHOLE, (Note("fc", "has no scale"),)),
        Record(
            "shrink",
            seconds=0.1,
            verify_seconds=0.0165,
            before=WHOLE,
            after=SLIM,
            details={"removed_units": {"conv": 5}},
            verification=Verification(9.7e-07, "float32", (2, 3)),
        ),
    ),
)

_EXPORT = OnnxReport(
    opset=20,
    ir_version=10,
    bytes=60_000,
    dynamic_batch=True,
    static_reason="",
    differences={1: 2.5e-07, 3: 3.1e-07},
    max_difference=3.1e-07,
    float64_note="",
    writer="direct",
    fallback="",
)

ORIGIN = Origin(
    plan="plans/small.yaml",
    model="nets:small",
    weights="small.safetensors",
    weights_sha256="ab" * 32,
    data="nets:images",
    date="2026-11-27T03:11:25+00:00",
    seed=3,
    versions={"prunec": "0.1.0", "torch": "2.9.0"},
    use=("from model import load", "model = load()", "outputs = model(x)"),
)

FULL = replace(
    BARE,
    warnings=("weights differ",),
    alarms=("accuracy fell",),
    origin=ORIGIN,
    latency=Latency(predicted=Change(0.002, 0.001), measured=Change(0.004, 0.0025)),
    classes=KeptFindings(
        (3, 5), 10, ("cat", "dog"), renormalised=True, scores=(ClassScore(8, Change(8, 6)), ClassScore(4, Change(3, 3)))
    ),
    region=RegionFindings(("backbone",), 3e-07, ("from model import splice; splice(model)",)),
    metric=Measured("accuracy", True, True, Change(0.99, 0.98)),
    evaluation=Evaluation("val", 1200),
    weights=Change(117_912, 58_600),
    onnx=OnnxFindings(
        _EXPORT,
        original=120_000,
        latency=Change(0.00013, 0.000065),
    ),
    targets=(
        TargetReport(
            "onnx",
            "onnxruntime 1.31.1",
            ("model.onnx",),
            60_000,
            120_000,
            difference=3.1e-07,
            latency=(Timed(1, 0.000065, 0.00013), Timed(2, 0.00005, 0.0001)),
            int8=Int8Report(
                ("model.int8.onnx",), 20_000, (Timed(1, 0.00004, None),), "accuracy", 0.98, 0.975, share=True
            ),
        ),
        TargetReport("coreml", "coremltools 9.0", ("model.mlpackage",), 70_000, unrunnable="it runs on macOS alone"),
        TargetReport(
            "ncnn",
            "ncnn",
            error="no form of erfinv; it begins with head (Erfinv)",
            hint="leave ncnn out of the exports",
            log="ignore erfinv",
        ),
    ),
)


def rounds(count: int = 3, given_up: bool = True) -> Report:
    """A compile whose first pass removed ten units in each of so many rounds, the last of which missed the floor."""
    costs = [Cost(1000 - 600 * number // count, 200, 64) for number in range(count + 1)]
    rows = tuple(
        RoundFigures(number, costs[number], 0.99 - 0.01 * number, not (given_up and number == count))
        for number in range(count + 1)
    )
    ends = "accuracy is 96.00%, below the floor of 97.00%: it is given up" if given_up else "all rounds are run"
    went = Rounds(ends, rows, "accuracy", share=True, floor=0.97)
    records = [Record("repeat", 3.0, 0.0, costs[0], costs[-1 - given_up], (Note(f"round {count}", ends),), rounds=went)]
    for number in range(1, count + 1):
        before, after = costs[number - 1 : number + 1]
        note = Note("fc", "has no scale")
        checked = Verification(number * 1e-7, "float32", (2, 3))
        records += [
            Record("score", 0.25, 0.0, before, before, (note,), round=number),
            Record("shrink", 0.25, 0.5, before, after, (), {"removed_units": {"conv": 10}}, checked, round=number),
        ]
    return replace(BARE, passes=(*records, *BARE.passes[1:]))

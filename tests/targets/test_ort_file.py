"""ORT files whose tables are in one order."""

from __future__ import annotations

import onnxruntime
import pytest
import torch
from fake_runtimes import Attention, Depthwise, programs
from onnxruntime.tools.ort_format_model.ort_flatbuffers_py.fbs.InferenceSession import InferenceSession

from prunec.compiler.targets import ort_convert
from prunec.compiler.targets.captured import captured
from prunec.compiler.targets.ort import Ort, OrtOptions
from prunec.compiler.targets.ort_file import in_order


@pytest.fixture
def raw(monkeypatch, tmp_path):
    """A file as onnxruntime writes it; here, not in another process."""
    monkeypatch.setattr(ort_convert, "in_order", lambda content: content)
    monkeypatch.setattr("prunec.compiler.targets.ort.in_child", lambda _, *args: ort_convert.convert(*args))
    return converted(programs()[0], tmp_path / "raw.ort", OrtOptions())[0]


def converted(program, path, options):
    """The files' bytes; onnxruntime's converter doesn't close what it opens."""
    with captured():
        Ort().convert(program, path, options)
    return [each.read_bytes() for each in Ort.beside(path)]


def told(content):
    """What a file says of the types of its kernels."""
    held = InferenceSession.GetRootAs(content, 0).KernelTypeStrResolver()
    rows = []
    for entry in map(held.OpKernelTypeStrArgs, range(held.OpKernelTypeStrArgsLength())):
        for kind in map(entry.KernelTypeStrArgs, range(entry.KernelTypeStrArgsLength())):
            args = [(each.ArgType(), each.Index()) for each in map(kind.Args, range(kind.ArgsLength()))]
            rows.append((entry.OpId(), kind.KernelTypeStr(), args))
    return rows


def test_tables_are_sorted_and_say_what_they_said(raw):
    found = told(in_order(raw))
    assert found == sorted(found)
    assert found == sorted(told(raw))
    assert len(found) > 4


def test_the_model_and_the_version_stay(raw):
    found = in_order(raw)
    before, after = (InferenceSession.GetRootAs(each, 0) for each in (raw, found))
    assert after.OrtVersion() == before.OrtVersion()
    nodes = [
        [graph.Nodes(place).OpType() for place in range(graph.NodesLength())]
        for graph in (before.Model().Graph(), after.Model().Graph())
    ]
    assert nodes[0] == nodes[1] != []
    x = torch.randn(2, 3, 16, 16).numpy()
    got = [onnxruntime.InferenceSession(each).run(None, {"x": x})[0] for each in (raw, found)]
    assert (got[0] == got[1]).all()


def test_a_sorted_file_is_sorted_already(raw):
    assert in_order(in_order(raw)) == in_order(raw)


def test_what_is_no_ort_file_is_refused():
    with pytest.raises(ValueError, match="no ORT file"):
        in_order(bytes(64))


@pytest.mark.parametrize("made", [Depthwise, Attention])
@pytest.mark.parametrize("style", ["fixed", "runtime"])
@pytest.mark.parametrize("types", [False, True])
def test_files_are_the_same_each_time_and_name_no_folder(made, style, types, tmp_path):
    slim, _ = programs(made)
    written = []
    for number in range(3):
        path = tmp_path / str(number) / "model.ort"
        path.parent.mkdir()
        written.append(converted(slim, path, OrtOptions(style=style, type_reduction=types)))
    assert written[0] == written[1] == written[2]
    config = written[0][1].decode()
    assert config.splitlines()[0] == "# Generated from model.ort"
    assert "/" not in config
    assert all(len(line.split(";", 2)) == 3 for line in config.splitlines()[1:])
    assert ("float" in config) is types
    (got,) = Ort().load(path, 1).run([slim.inputs[0].numpy()])
    exact = slim.module(slim.inputs[0]).detach().numpy()
    assert abs(got - exact).max() <= 1e-5 * abs(exact).max()

"""What a plan says of pixels and probabilities."""

from __future__ import annotations

import pytest

from prunec.compiler.errors import PlanError
from prunec.compiler.plan.pixels import Preprocess, check_labels
from prunec.compiler.plan.plan import Plan


def of(**said):
    return Plan.from_dict({"plan": 1, "passes": [], **said})


def test_numbers_lists_and_fractions():
    said = of(preprocess={"scale": "1/255", "mean": [0.485, "0.456", 0.406], "std": 0.5}).preprocess
    assert said.scale == pytest.approx(1 / 255)
    assert said.mean == (0.485, 0.456, 0.406)
    assert said.std == (0.5,)
    assert (said.order, said.layout, said.dtype) == ("same", "nchw", "float32")
    assert of(preprocess={}).preprocess == Preprocess()
    again = Plan.from_dict(of(preprocess={"scale": "1/255", "order": "bgr"}).to_dict())
    assert again.preprocess == Preprocess(scale="1/255", order="bgr")


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ({"preprocess": {"scale": "a/b"}}, "must be a number, or a fraction such as 1/255"),
        ({"preprocess": {"scale": "1/0"}}, "must be a number, or a fraction"),
        ({"preprocess": {"scale": 0}}, "must be greater than 0"),
        ({"preprocess": {"std": [1, 0, 1]}}, "must be greater than 0"),
        ({"preprocess": {"mean": [True]}}, "must be a number"),
        ({"preprocess": {"mean": float("inf")}}, "must be a finite number"),
        ({"preprocess": {"mean": []}}, "mean"),
        ({"preprocess": {"order": "gbr"}}, "'rgb'"),
        ({"preprocess": {"layuot": "nhwc"}}, "did you mean 'layout'"),
        ({"preprocess": [1]}, "must be a mapping with keys such as 'mean'"),
        ({"postprocess": {"softmax": 1}}, "softmax"),
        ({"postprocess": {"names": "missing.txt"}}, "no file "),
    ],
)
def test_what_is_wrong_is_told(said, words):
    with pytest.raises(PlanError) as caught:
        of(**said)
    assert words in str(caught.value)


def test_names_come_from_a_list_a_mapping_or_a_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "names.txt").write_text("cat\n\ndog\n")
    assert of(postprocess={"names": "names.txt"}).postprocess.labels() == ("cat", "dog")
    assert of(postprocess={"names": ["a", "b"]}).postprocess.labels() == ("a", "b")
    assert of(postprocess={"names": {"2": "b"}}).postprocess.labels() == ("0", "1", "b")
    assert of(postprocess={"softmax": True}).postprocess.labels() == ()


def test_a_file_of_names_that_is_no_text(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "names.txt").write_bytes(b"\xff\xfe\xfa")
    with pytest.raises(PlanError, match=r"the names in .* can't be read"):
        of(postprocess={"names": "names.txt"}).postprocess.labels()


def test_as_many_names_as_classes():
    check_labels((), 10)
    check_labels(("a", "b"), 2)
    check_labels(("a", "b"), None)
    with pytest.raises(PlanError, match="2 names, and the output has 10 classes"):
        check_labels(("a", "b"), 10)

"""Data of every form are read as checked batches; what is no data, or no batch, is told with its place."""

from __future__ import annotations

import pickle
import re
import warnings
from collections import UserDict, namedtuple
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from prunec.compiler.data import Batch, Data, Place, checked
from prunec.compiler.errors import DataError, Span

X, Y = torch.arange(12.0).reshape(6, 2), torch.arange(6) % 3
AT = Span("plan.yaml", 4, 7, 4, "data: d.py:f")
Pair = namedtuple("Pair", "a b")


def read(given, split: str = "test") -> list[Batch]:
    return list(Data.of(given).read(split))


def rows(batches) -> torch.Tensor:
    return torch.cat([batch.inputs for batch in batches])


class Anew:
    """Batches made anew at each call, and one split alone."""

    def test(self):
        yield from zip(X.split(4), Y.split(4), strict=True)


class Indexed:
    """Iterable by position alone."""

    def __getitem__(self, index):
        return list(Anew().test())[index]


class Batched(IterableDataset):
    def __iter__(self):
        return Anew().test()


LOADER = DataLoader(TensorDataset(X, Y), 4)
FORMS = {
    "an object": Anew(),
    "attributes": SimpleNamespace(test=LOADER, train=None),
    "a mapping": {"test": LOADER, "other": 3},
    "a mapping of functions": {"test": Anew().test},
    "a loader": LOADER,
    "a loader of batches": DataLoader(Batched(), batch_size=None),
    "batches of a data set": Batched(),
    "a list": list(Anew().test()),
    "a tuple": tuple(Anew().test()),
    "by position": Indexed(),
    "arrays": [(X[:4].numpy(), Y[:4].numpy()), (X[4:].double().numpy(), Y[4:].tolist())],
    "a loader whose workers persist": DataLoader(TensorDataset(X, Y), 4, num_workers=1, persistent_workers=True),
}


@pytest.mark.parametrize("given", FORMS.values(), ids=FORMS)
def test_data_of_every_form_are_read_again_and_again(given):
    data = Data.of(given)
    for _ in range(2):
        found = list(data.read("test"))
        assert torch.equal(rows(found).float(), X)
        assert torch.equal(torch.cat([batch.labels for batch in found]), Y)
        assert [batch.count for batch in found] == [4, 2]
        assert [batch.place.number for batch in found] == [0, 1]


def test_batches_alone_are_every_split_and_an_object_has_its_own():
    assert Data.of(LOADER).splits == ("train", "val", "test")
    assert torch.equal(rows(read(LOADER, "train")), rows(read(LOADER, "val")))
    data = Data.of({"val": LOADER, "test": LOADER})
    assert data.first("train", "test", "val") == "test"
    with pytest.raises(DataError, match="the data have no split 'train'") as caught:
        data.read("train")
    assert caught.value.hint == "they have val() and test(); the option 'split' says which is read"
    assert Data.of(data) is data


def test_a_flag_is_no_split():
    """torchvision's data sets have an attribute `train`; as batches, one that gives them is data."""
    flagged = Batched()
    flagged.train = True
    assert Data.of(flagged).alone


def test_how_many_batches_there_will_be():
    assert Data.of(LOADER).read("test").total == 2
    assert Data.of(Anew()).read("test").total is None


def test_a_reading_shuffles_as_the_one_before_and_leaves_the_random_state_alone():
    data = Data.of(DataLoader(TensorDataset(X, Y), 2, shuffle=True), seed=3)
    before = torch.random.get_rng_state()
    first, second = rows(data.read("train")), rows(data.read("train"))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.equal(first, second)
    other = rows(Data.of(DataLoader(TensorDataset(X, Y), 2, shuffle=True), seed=4).read("train"))
    assert not torch.equal(first, other)
    assert sorted(first[:, 0].tolist()) == X[:, 0].tolist()


BATCHES = {
    "inputs alone": (X, X, None),
    "and labels": ((X, Y), X, Y),
    "in a list": ([X, Y], X, Y),
    "one in a list": ([X], (X,), None),
    "no labels": ((X, None), X, None),
    "two arguments": (((X, Y), None), (X, Y), None),
    "by name": (({"x": X, "scale": 2.0}, Y), {"x": X, "scale": 2.0}, Y),
    "by name alone": ({"x": X}, {"x": X}, None),
    "a mapping of its own": (UserDict(x=X), {"x": X}, None),
    "a named tuple": ((Pair(X, X), Y), Pair(X, X), Y),
    "column": ((X, Y[:, None]), X, Y[:, None]),
    "a list of numbers": ((X, [0, 1, 2, 0, 1, 2]), X, Y),
    "along the second dimension": ((X, Y[:2]), X, Y[:2]),
}


@pytest.mark.parametrize(("found", "inputs", "labels"), BATCHES.values(), ids=BATCHES)
def test_a_batch_of_every_form(found, inputs, labels):
    batch = checked(found, Place())
    torch.testing.assert_close(batch.inputs, inputs)
    torch.testing.assert_close(batch.labels, labels)


def test_labels_of_several_kinds_are_kept_as_they_are():
    boxes = [{"boxes": X, "labels": Y}] * 6
    assert checked((X, boxes), Place()).labels is boxes
    assert checked((X, {"a": Y, "b": "any"}), Place()).labels.keys() == {"a", "b"}


def test_a_slice_and_a_cast():
    batch = checked(({"x": X.double(), "ids": Y, "scale": torch.tensor(2.0)}, {"a": Y}), Place())[2:4]
    assert batch.count == 2
    assert torch.equal(batch.inputs["ids"], Y[2:4])
    assert torch.equal(batch.labels["a"], Y[2:4])
    assert float(batch.inputs["scale"]) == 2.0
    cast = batch.like((torch.ones(1, dtype=torch.float16),), torch.device("cpu"))
    assert cast.inputs["x"].dtype == torch.float16
    assert cast.inputs["ids"].dtype == torch.int64
    assert cast.shapes == "[2, 2] and [2] and []"


@pytest.mark.parametrize(
    ("labels", "classes"),
    [
        (Y, Y.tolist()),
        (Y.int()[:, None], Y.tolist()),
        (Y > 1, (Y > 1).tolist()),
        (Y.float(), None),
        (X.long(), None),
        (None, None),
        ([{}] * 6, None),
    ],
    ids=["whole", "column", "truth", "float", "several", "none", "objects"],
)
def test_the_class_of_every_sample(labels, classes):
    found = Batch(X, labels).classes
    assert found is None if classes is None else found.tolist() == classes


def quantised(x):
    with warnings.catch_warnings(action="ignore"):  # torch calls them deprecated
        return torch.quantize_per_tensor(x, 0.1, 0, torch.quint8)


NO_BATCHES = {
    "none": (None, "got None"),
    "three": ((X, Y, Y), "must be (inputs, labels), got 3 values"),
    "empty": ((), "must be (inputs, labels), got 0 values"),
    "text": ("abc", "inputs must be tensors, got an object of type 'str'"),
    "number": (3, "got an object of type 'int'"),
    "object": (SimpleNamespace(x=X), "got an object of type 'SimpleNamespace'"),
    "object inside": (((X, SimpleNamespace()), Y), "inputs hold an object of type 'SimpleNamespace'"),
    "texts": ((["a", "b"], Y), "no tensor with a row for each sample"),
    "no rows": ((torch.tensor(1.0), Y), "no tensor with a row for each sample"),
    "fewer labels": ((X, Y[:5]), "it has 6 inputs and 5 labels"),
    "more labels": ((X, torch.ones(7)), "it has 6 inputs and 7 labels"),
    "one label": ((X, torch.tensor(1)), "one label, not one for each sample"),
    "one number": ((X, 1), "one label, not one for each sample"),
    "labels of text": ((X, ["cat"] * 6), "its labels are text"),
    "ragged": ((X, [[1], [1, 2]] * 3), "its labels can't be made a tensor"),
    "too large": ((X, [2**70] * 6), "its labels can't be made a tensor"),
    "of objects": ((X, np.array([{}] * 6)), "its labels can't be made a tensor"),
    "meta": ((X.to("meta"), Y), "its inputs hold a meta tensor"),
    "sparse": ((X, Y.to_sparse()), "its labels hold a sparse tensor"),
    "quantised": ((quantised(X), Y), "its inputs hold a quantised tensor"),
}


@pytest.mark.parametrize(("found", "message"), NO_BATCHES.values(), ids=NO_BATCHES)
def test_what_is_no_batch_is_told_with_its_number_and_place(found, message):
    with pytest.raises(DataError, match=re.escape(message)) as caught:
        list(Data.of([(X, Y), found], at=AT).read("test"))
    assert caught.value.message.startswith("batch 1 of the data: ")
    assert caught.value.at == AT


def endless():
    while True:
        yield X, Y


NO_DATA = {
    "text": ("digits", "an object of type 'str', which has no batches"),
    "number": (3, "an object of type 'int', which has no batches"),
    "none": (None, "None, which has no batches"),
    "tensor": (X, "an object of type 'Tensor'"),
    "one batch": ((X, Y), "one batch"),
    "other keys": ({"training": LOADER}, "a dict of 'training', none of which is a split"),
    "class": (Anew, "the class 'Anew'"),
    "function": (endless, "the function 'endless'"),
    "generator": (endless(), "a 'generator', which can be read once"),
    "iterator": (iter([(X, Y)]), "a 'list_iterator', which can be read once"),
    "samples": (TensorDataset(X, Y), "a data set of single samples, of type 'TensorDataset'"),
    "module": (nn.Linear(1, 1), "an object of type 'Linear', which has no batches"),
}


@pytest.mark.parametrize(("given", "message"), NO_DATA.values(), ids=NO_DATA)
def test_what_are_no_data(given, message):
    with pytest.raises(DataError, match=re.escape(f"d.py:f gave {message}")) as caught:
        Data.of(given, "d.py:f gave", AT)
    assert caught.value.at == AT
    assert caught.value.hint


NO_SPLITS = {
    "none": (None, "the data's test() gave None"),
    "number": (3, "gave an object of type 'int', which has no batches"),
    "text": ("abc", "gave an object of type 'str', which has no batches"),
    "tensor": (X, "gave an object of type 'Tensor'"),
    "samples": (TensorDataset(X, Y), "gave a data set of single samples"),
}


@pytest.mark.parametrize(("value", "message"), NO_SPLITS.values(), ids=NO_SPLITS)
def test_a_split_that_is_none(value, message):
    with pytest.raises(DataError, match=re.escape(message)) as caught:
        Data.of(SimpleNamespace(test=lambda: value), at=AT).read("test")
    assert caught.value.at == AT


class Once:
    """Hands out the same generator at each call."""

    def __init__(self):
        self.made = Anew().test()

    def test(self):
        return self.made

    def __iter__(self):
        return self.made


@pytest.mark.parametrize(
    "given", [SimpleNamespace(test=Once().test), Once(), [Once()]], ids=["split", "object", "list"]
)
def test_what_can_be_read_once_is_refused_at_the_second_reading(given):
    data = Data.of({"test": given[0]} if isinstance(given, list) else given, at=AT)
    data.read("test")
    with pytest.raises(DataError, match="gave the same 'generator' twice, which can be read once") as caught:
        data.read("test")
    assert caught.value.at == AT


class Failing:
    """Fails where it is told to."""

    def __init__(self, where, error):
        self.where, self.error = where, error

    def __len__(self):
        return self._do("len", 2)

    def __iter__(self):
        yield X, Y
        self._do("next", None)

    def test(self):
        return self._do("test", self)

    def _do(self, where, value):
        if where == self.where:
            raise self.error
        return value


@pytest.mark.parametrize("error", [SystemExit("run prepare.py"), GeneratorExit(), RuntimeError("gone")], ids=repr)
@pytest.mark.parametrize(
    ("where", "message"),
    [("test", "the data's test() failed: "), ("len", "the data's test() failed: "), ("next", "failed at batch 1: ")],
)
def test_what_data_raise_is_told_as_theirs(where, message, error):
    with pytest.raises(DataError, match=re.escape(message)) as caught:
        list(Data.of(Failing(where, error), at=AT).read("test"))
    assert caught.value.at == AT
    assert "test_data.py" in caught.value.message


def test_an_attribute_that_raises():
    class Lazy:
        @property
        def train(self):
            raise OSError("no such folder")

    with pytest.raises(DataError, match="the data's splits can't be read: OSError: no such folder"):
        Data.of(Lazy())


def test_a_batch_that_the_model_cannot_take():
    batch = checked((X, Y), Place("test", 3, AT))
    assert batch.through(nn.Linear(2, 1)).shape == (6, 1)
    with pytest.raises(
        DataError, match=r"batch 3: the model can't take the data's batches, of shape \[6, 2\]"
    ) as caught:
        batch.through(nn.Linear(3, 1))
    assert caught.value.at == AT
    with pytest.raises(DataError, match="missing 1 required positional argument") as caught:
        checked((X, X), Place()).through(nn.Bilinear(2, 2, 1))
    assert "a pair is inputs and labels; several inputs are written ((x, y), labels)" in str(caught.value.hint)
    with pytest.raises(DataError) as caught:
        checked({"pixels": X, "label": Y}, Place()).through(nn.Linear(2, 1))
    assert "a mapping gives forward its arguments by name: pixels, label" in (caught.value.hint or "")


@pytest.mark.parametrize(
    ("nest", "run", "given"),
    [
        (lambda x: x, lambda x: x.mul_(2), 2 * X),
        (lambda x: (x, 1), lambda x, by: x.add_(by), X + 1),
        (lambda x: {"x": x}, lambda x: x.neg_(), -X),
        (lambda x: ([x], {"u": [x]}), lambda some, by: some[0].mul_(2) + by["u"][0].sub_(1), 3 * X - 1),
    ],
    ids=["tensor", "arguments", "by name", "nested"],
)
def test_a_model_that_writes_into_its_inputs_leaves_the_data_as_they_are(nest, run, given):
    x = X.clone()
    batch = checked((nest(x), None), Place())
    for _ in range(2):
        assert torch.equal(batch.through(run), given)
    assert torch.equal(x, X)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "an empty dict"),
        ({"tets": []}, "a dict of 'tets', none of which is a split"),
        ({"test": None}, "data whose 'test' is None"),
        (
            {"test": TensorDataset(torch.rand(2, 3), torch.zeros(2))},
            "data whose 'test' is a data set of single samples",
        ),
    ],
)
def test_what_is_wrong_with_splits_is_said(given, message) -> None:
    """A mapping whose splits can't be read isn't told to be no data at all."""
    with pytest.raises(DataError, match=re.escape(message)):
        Data.of(given)


def test_data_of_a_factory_are_made_anew_in_another_process_and_others_go_along():
    made: list[int] = []
    there = pickle.loads(pickle.dumps(Data.of([(X, Y)])))
    assert torch.equal(rows(there.read("test")), X)
    held = lambda: made  # noqa: E731  (can't be pickled, and needn't)
    anew = pickle.loads(pickle.dumps(replace(Data.of({"val": [(X, held)]}), again=_again)))
    assert torch.equal(rows(anew.read("val")), X + 1)


def _again() -> dict[str, list[torch.Tensor]]:
    return {"val": [X + 1]}

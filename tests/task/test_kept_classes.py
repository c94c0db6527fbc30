"""Data with some classes alone: samples are left out, labels numbered anew, batches are as large as before."""

from __future__ import annotations

import pickle
from dataclasses import replace
from itertools import chain

import pytest
import torch

from prunec.compiler.data import Batch, Data
from prunec.compiler.errors import DataError
from prunec.compiler.task.kept_classes import KeptClasses

KEPT = KeptClasses((1, 4), 10, ("one", "four"))


def batches(*labels, width=2):
    """Batches of these labels; each input holds the number of its sample."""
    start, found = 0, []
    for each in labels:
        numbers = torch.arange(start, start + len(each)).float()
        found.append((numbers[:, None].expand(-1, width).clone(), torch.tensor(each)))
        start += len(each)
    return found


def seen(given, kept=KEPT):
    found = list(Data.of(given).read("test")) if kept is None else list(kept(iter(Data.of(given).read("test"))))
    return [(batch.inputs[:, 0].long().tolist(), batch.labels.tolist()) for batch in found]


def test_samples_are_picked_and_gathered():
    given = batches([1, 0, 4], [4, 4, 7], [3, 2, 2], [1, 4, 1])
    assert seen(given) == [([0, 2, 3], [0, 1, 1]), ([4, 9, 10], [1, 0, 1]), ([11], [0])]


def test_a_batch_that_is_kept_whole_stays():
    assert seen(batches([1, 4], [4, 1])) == [([0, 1], [0, 1]), ([2, 3], [1, 0])]


def test_batches_of_other_shapes_stay_apart():
    given = batches([1, 4, 4], [1, 1, 4], width=2) + batches([0, 1, 0], width=3)
    assert [len(labels) for _, labels in seen(given)] == [3, 3, 1]
    uneven = batches([1, 0, 0], width=2) + batches([4, 0, 0], width=3)
    assert seen(uneven) == [([0], [0]), ([0], [1])]


def test_labels_keep_their_form():
    inputs = {"x": torch.arange(6.0).reshape(3, 2), "scale": 2.0}
    batch = KEPT.pick(Batch(inputs, torch.tensor([[4], [0], [1]], dtype=torch.uint8)))
    assert batch is not None
    assert batch.labels.tolist() == [[1], [0]]
    assert batch.labels.dtype == torch.uint8
    assert batch.inputs["x"].tolist() == [[0, 1], [4, 5]]
    assert batch.inputs["scale"] == 2.0


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (
            None,
            "batch 0 of the data: keeping some classes needs one class for each sample, .*; the data have no labels",
        ),
        (torch.rand(3), r"one class for each sample, as a whole number; the labels are float32 \[3\]"),
        (torch.zeros(3, 2, 2, dtype=torch.int64), r"as a whole number; the labels are int64 \[3, 2, 2\]"),
        (torch.tensor([1, 10, 4]), "it has a sample of class 10; the model knows 10 classes, from 0"),
    ],
    ids=["none", "numbers", "pixels", "unknown"],
)
def test_what_is_no_class_is_refused(labels, message):
    with pytest.raises(DataError, match=message):
        KEPT.pick(Batch(torch.zeros(3, 2), labels))


def test_labels_of_no_class_are_left_out():
    kept = KeptClasses((1, 4), 10, ignored=frozenset({255, 4}))
    batch = kept.pick(Batch(torch.zeros(5, 2), torch.tensor([1, -1, 255, 4, 1])))
    assert batch is not None
    assert batch.labels.tolist() == [0, 0]


@pytest.mark.parametrize("labels", [[[1, 1], [1, 0]], [[0, 0]]], ids=["one", "both"])
def test_a_class_without_samples_is_told_at_the_end(labels):
    found = KEPT(iter(Data.of({"test": batches(*labels)}).read("test")))
    with pytest.raises(DataError, match=r"the data's test\(\) has no sample of class .*four \(4\)"):
        list(found)


def test_a_class_without_samples_is_told_beforehand():
    KEPT.require(Data.of({"test": batches([1, 0], [4, 2])}), "test")
    for labels in ([[1, 1], [1, 0]], [[0, 0]]):
        data = Data.of({"test": batches(*labels)})
        with pytest.raises(DataError, match=r"the data's test\(\) has no sample of class .*four \(4\)"):
            KEPT.require(replace(data, through=KEPT), "test")


def test_what_is_read_beforehand_ends_with_the_last_class():
    def loader():
        yield from batches([1, 0], [4, 2])
        raise AssertionError("it isn't read so far")

    KEPT.require(Data.of({"test": loader}), "test")


def test_a_look_beforehand_leaves_the_order_as_it_was():
    generator = torch.Generator().manual_seed(0)
    loader = torch.utils.data.DataLoader([(torch.zeros(1), i % 10) for i in range(60)], 8, True, generator=generator)
    before = generator.get_state()
    KEPT.require(Data(loader, ("train",), True, through=KEPT), "train")
    assert generator.get_state().equal(before)


def test_data_go_through_it_at_every_reading():
    data = Data.of({"test": batches([1, 0, 4], [4, 4, 7])})
    data = pickle.loads(pickle.dumps(Data(data.given, data.splits, data.alone, through=KEPT)))
    for _ in range(2):
        reading = data.read("test")
        assert reading.total is None
        assert [batch.labels.tolist() for batch in reading] == [[0, 1, 1], [1]]


def test_an_epoch_is_counted_and_its_order_is_not_touched():
    generator = torch.Generator().manual_seed(0)
    samples = [(torch.tensor([float(i)]), i % 10) for i in range(60)]
    loader = torch.utils.data.DataLoader(samples, 8, shuffle=True, generator=generator)

    def orders(count: bool):
        generator.manual_seed(0)
        epochs = Data(loader, ("train",), True, through=KEPT).epochs("train", 3)
        if count:
            assert len(epochs) == 2
            assert len(epochs) == 2
        return [[batch.inputs.reshape(-1).tolist() for batch in epochs.read()] for _ in range(2)]

    counted, plain = orders(True), orders(False)
    assert counted == plain
    assert counted[0] != counted[1]
    assert sorted(chain.from_iterable(counted[0])) == [i for i in range(60) if i % 10 in (1, 4)]

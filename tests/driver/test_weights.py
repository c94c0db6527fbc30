"""Weights files: read as data, unwrapped, and fitted to the model."""

from __future__ import annotations

import os
import pickle
import textwrap
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from user_code import NETS, load, same, trained

from prunec.compiler.driver.load import load_model
from prunec.compiler.errors import ModelError


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("nets.py").write_text(NETS)
    Path("broken.py").write_text("import no_such_module_at_all\n")
    return tmp_path


WRAPPINGS = {
    "plain.pt": lambda state: state,
    "plain.pth": lambda state: state,
    "wrapped.ckpt": lambda state: {"state_dict": state, "epoch": 3},
    "model.pt": lambda state: {"model": state, "optimizer": {"lr": 0.1}},
    "parallel.pt": lambda state: {f"module.{key}": value for key, value in state.items()},
    "both.pt": lambda state: {"state_dict": {f"module.{key}": value for key, value in state.items()}},
    "old.pt": lambda state: {key: value for key, value in state.items() if not key.endswith("num_batches_tracked")},
}


@pytest.mark.parametrize(("file", "wrap"), WRAPPINGS.items(), ids=WRAPPINGS)
def test_a_checkpoint_is_loaded(file, wrap):
    model = trained()
    torch.save(wrap(model.state_dict()), file)
    assert same(load_model(load(f"model: {{factory: nets.py:small, weights: {file}}}\n")), model)


def test_safetensors_are_loaded():
    model = trained()
    save_file(model.state_dict(), "w.safetensors")
    assert same(load_model(load("model: {factory: nets.py:small, weights: w.safetensors}\n")), model)


def test_a_tied_weight_is_saved_once():
    save_file({"a.weight": torch.eye(2)}, "w.safetensors")
    model = load_model(load("model: {factory: nets.py:Tied, weights: w.safetensors}\n"))
    assert torch.equal(model.get_parameter("b.weight"), torch.eye(2))
    assert model.get_parameter("a.weight") is model.get_parameter("b.weight")


class Malicious:
    """Unpickles by creating a file."""

    def __reduce__(self):
        return (os.mkdir, ("owned",))


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
@pytest.mark.parametrize(
    ("payload", "name"),
    [
        (Malicious(), f"{os.mkdir.__module__}.mkdir"),
        ({"state_dict": {"0.weight": Malicious()}}, f"{os.mkdir.__module__}.mkdir"),
        (nn.Linear(1, 1), "torch.nn.modules.linear.Linear"),
    ],
    ids=["bare", "nested", "module"],
)
def test_a_pickle_that_runs_code_is_refused(folder, payload, name, legacy):
    torch.save(payload, "w.pt", _use_new_zipfile_serialization=not legacy)
    plan = load("model:\n  factory: nets.py:small\n  weights: w.pt\n")
    with pytest.raises(ModelError) as caught:
        load_model(plan)
    assert not (folder / "owned").exists()
    expected = f"""\
        plan.yaml:4:12: refused to load w.pt: it names {name}, and loading it could run code
            weights: w.pt
                     ^^^^
        hint: save the weights as safetensors, or as torch.save(model.state_dict(), path)"""
    assert str(caught.value) == textwrap.dedent(expected)


def test_the_malicious_pickle_is_one(folder):
    pickle.loads(pickle.dumps(Malicious()))
    assert (folder / "owned").exists()


BAD_STATES = [
    (
        "missing, unexpected and of another shape",
        lambda state: {"0.weight": torch.zeros(3, 2), **{f"extra.{i}": torch.zeros(1) for i in range(5)}},
        "the weights in w.pt don't fit the model: missing: 0.bias, 1.weight, 1.bias and 4 more; "
        "unexpected: extra.0, extra.1, extra.2 and 2 more; of another shape: 0.weight is [3, 2] in the file, "
        "[4, 2] in the model",
    ),
    (
        "empty",
        lambda state: {},
        "the weights in w.pt don't fit the model: missing: 0.weight, 0.bias, 1.weight and 5 more",
    ),
    ("a tensor", lambda state: torch.zeros(2), "w.pt holds an object of type 'Tensor', not a state dict"),
    (
        "no state dict",
        lambda state: {"epoch": 3, "net": state},
        "w.pt is no state dict: epoch, net hold no tensor",
    ),
]


@pytest.mark.parametrize(("make", "expected"), [row[1:] for row in BAD_STATES], ids=[row[0] for row in BAD_STATES])
def test_weights_that_do_not_fit(make, expected):
    torch.save(make(trained().state_dict()), "w.pt")
    plan = load("model: {factory: nets.py:small, weights: w.pt}\n")
    with pytest.raises(ModelError) as caught:
        load_model(plan)
    assert caught.value.message == expected
    assert str(caught.value.at) == "plan.yaml:2:42"


@pytest.mark.parametrize(
    ("file", "expected"),
    [
        ("w.safetensors", "can't read w.safetensors as safetensors: "),
        ("w.npz", "w.npz is no known kind of weights file"),
        ("garbage.pt", "refused to load garbage.pt: it isn't plain tensors, and loading it could run code"),
        ("empty.pt", "can't read empty.pt as a PyTorch checkpoint: "),
    ],
)
def test_a_file_that_holds_no_weights(file, expected):
    Path(file).write_bytes(b"" if file.startswith("empty") else b"no weights at all")
    plan = load(f"model: {{factory: nets.py:small, weights: {file}}}\n")
    with pytest.raises(ModelError) as caught:
        load_model(plan)
    assert caught.value.message.startswith(expected)


def test_a_truncated_checkpoint():
    torch.save(trained().state_dict(), "w.pt")
    whole = Path("w.pt").read_bytes()
    Path("w.pt").write_bytes(whole[: len(whole) // 2])
    plan = load("model: {factory: nets.py:small, weights: w.pt}\n")
    with pytest.raises(ModelError, match=r"can't read w.pt as a PyTorch checkpoint"):
        load_model(plan)

"""Weights files: read as data, unwrapped, and fitted to the model."""

from __future__ import annotations

import argparse
import collections
import datetime
import os
import pickle
import textwrap
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from user_code import NETS, load, same, trained

from prunec.compiler.driver.load import load_model
from prunec.compiler.errors import ModelError
from prunec.compiler.plan.plan import Plan


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("nets.py").write_text(NETS)
    Path("broken.py").write_text("import no_such_module_at_all\n")
    return tmp_path


WRAPPINGS = {
    "plain.PTH": lambda state: state,
    "plain.weights": lambda state: state,
    "plain": lambda state: state,
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


@pytest.mark.parametrize("file", ["w.safetensors", "w.SafeTensors", "w.pth"])
def test_safetensors_are_loaded(file):
    model = trained()
    save_file(model.state_dict(), file)
    assert same(load_model(load(f"model: {{factory: nets.py:small, weights: {file}}}\n")), model)


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
    ("payload", "name", "inner"),
    [
        (Malicious(), f"{os.mkdir.__module__}.mkdir", ".state_dict()"),
        ({"state_dict": {"0.weight": Malicious()}}, f"{os.mkdir.__module__}.mkdir", "['state_dict']"),
        ({"args": Malicious(), "net": {"0.weight": 1}}, f"{os.mkdir.__module__}.mkdir", "['net']"),
        (nn.Linear(1, 1), "torch.nn.modules.linear.Linear", ".state_dict()"),
        ({"epoch": 3, "model": nn.Linear(1, 1)}, "torch.nn.modules.linear.Linear", "['model'].state_dict()"),
    ],
    ids=["bare", "nested", "beside", "module", "module in a checkpoint"],
)
def test_a_pickle_that_runs_code_is_refused(folder, payload, name, inner, legacy):
    torch.save(payload, "w.pt", _use_new_zipfile_serialization=not legacy)
    plan = load("model:\n  factory: nets.py:small\n  weights: w.pt\n")
    with pytest.raises(ModelError) as caught:
        load_model(plan)
    assert not (folder / "owned").exists()
    expected = f"""\
        plan.yaml:4:12: refused to load w.pt: it names {name}, and loading it could run code
            weights: w.pt
                     ^^^^
        hint: where you trust the file, convert it once, and name the new file in the plan:
            loaded = torch.load('{folder}/w.pt', weights_only=False)
            torch.save(loaded{inner}, '{folder}/w_weights.pt')"""
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
    ("no state dict", lambda state: {"epoch": 3, "lr": 1.0}, "w.pt is no state dict: epoch, lr hold no tensor"),
    (
        "numbers for names",
        lambda state: {0: torch.ones(2)},
        "w.pt is no state dict: a tensor's name must be text, got 0",
    ),
    (
        "pairs for names",
        lambda state: {(0, 1): torch.ones(2)},
        "w.pt is no state dict: a tensor's name must be text, got (0, 1)",
    ),
    (
        "a list for a tensor",
        lambda state: {**state, "0.weight": state["0.weight"].tolist()},
        "the weights in w.pt don't fit the model: without a tensor: 0.weight",
    ),
    (
        "a NumPy array for a tensor",
        lambda state: {**state, "0.weight": state["0.weight"].numpy()},
        "the weights in w.pt don't fit the model: without a tensor: 0.weight",
    ),
    (
        "quantised",
        lambda state: {**state, "0.weight": torch.quantize_per_tensor(state["0.weight"], 0.1, 0, torch.qint8)},
        "the weights in w.pt don't fit the model: of a kind that can't be taken: 0.weight is quantised",
    ),
    (
        "on the meta device",
        lambda state: {**state, "0.weight": state["0.weight"].to("meta")},
        "the weights in w.pt don't fit the model: without values: 0.weight was saved from the meta device",
    ),
    (
        "whole numbers",
        lambda state: {**state, "0.weight": state["0.weight"].to(torch.int8)},
        "the weights in w.pt don't fit the model: of another type: 0.weight is int8 in the file, float32 in the model",
    ),
    (
        "complex numbers",
        lambda state: {**state, "0.bias": state["0.bias"].to(torch.complex64)},
        "the weights in w.pt don't fit the model: of another type: 0.bias is complex64 in the file, "
        "float32 in the model",
    ),
    (
        "a vast shape that takes no room",
        lambda state: {**state, "0.bias": torch.ones(1).expand(10**12)},
        "the weights in w.pt don't fit the model: of another shape: 0.bias is [1000000000000] in the file, "
        "[4] in the model",
    ),
    (
        "under a key",
        lambda state: {"net": {key: value for key, value in state.items() if not key.startswith("2")}},
        "the weights in w.pt under 'net' don't fit the model: missing: 2.weight, 2.bias",
    ),
    (
        "another under a prefix",
        lambda state: {f"net.{key}": value[:2] if key == "0.weight" else value for key, value in state.items()},
        "the weights in w.pt don't fit the model: of another shape: 0.weight is [2, 2] in the file, "
        "[4, 2] in the model",
    ),
]


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor:UserWarning")
@pytest.mark.parametrize(("make", "expected"), [row[1:] for row in BAD_STATES], ids=[row[0] for row in BAD_STATES])
def test_weights_that_do_not_fit(make, expected):
    torch.save(make(trained().state_dict()), "w.pt")
    plan = load("model: {factory: nets.py:small, weights: w.pt}\n")
    with pytest.raises(ModelError) as caught:
        load_model(plan)
    assert caught.value.message == expected
    assert str(caught.value.at) == "plan.yaml:2:42"


# -- wrappers --------------------------------------------------------------------------------------------------------


def before(prefix: str, state) -> dict[str, torch.Tensor]:
    return {f"{prefix}{key}": value for key, value in state.items()}


def between(part: str, state) -> dict[str, torch.Tensor]:
    return {key.replace("body.", f"body.{part}."): value for key, value in state.items()}


def beside() -> dict[str, object]:
    """What training scripts leave beside the weights."""
    return {
        "args": argparse.Namespace(lr=0.1, out=Path("runs"), model="small"),
        "best": np.float64(91.5),
        "curve": np.zeros(3),
        "config": types.SimpleNamespace(depth=3),
        "history": collections.defaultdict(list, loss=[0.5]),
        "recent": collections.deque([1, 2]),
        "when": datetime.datetime(2026, 1, 1),
        "torch": torch.__version__,
        "optimizer": torch.optim.Adam(nn.Linear(2, 2).parameters()).state_dict(),
        "scaler": {"scale": torch.tensor(2.0)},
        "rng": torch.get_rng_state(),
    }


TOLD = {
    "ema": (lambda state: {"ema": state, "epoch": 3}, "taken from 'ema'"),
    "model_state": (lambda state: {"model_state": state}, "taken from 'model_state'"),
    "net": (
        lambda state: {"net": state, "optimizer": {"state": {}, "param_groups": [{"lr": 0.1}]}},
        "taken from 'net'",
    ),
    "any other key": (lambda state: {"whatever": state}, "taken from 'whatever'"),
    "nested": (lambda state: {"checkpoint": {"ema": {"shadow": state}}}, "taken from 'checkpoint.ema.shadow'"),
    "a tensor beside it": (lambda state: {"state_dict": state, "best": torch.ones(())}, "taken from 'state_dict'"),
    "what scripts leave": (lambda state: {**beside(), "model": state}, "taken from 'model'"),
    "Lightning": (
        lambda state: {"state_dict": {**before("model.", state), "loss.weight": torch.ones(3)}, "hyper_parameters": {}},
        "taken from 'state_dict'; without 'model.' before their names; not read: loss.weight",
    ),
    "compiled": (lambda state: before("_orig_mod.", state), "without '_orig_mod.' before their names"),
    "compiled and parallel": (
        lambda state: {"model": before("module._orig_mod.", state)},
        "taken from 'model'; without 'module._orig_mod.' before their names",
    ),
    "a compiled part": (lambda state: between("_orig_mod", state), "without '_orig_mod' in their names"),
    "a parallel part": (
        lambda state: before("net.", between("module", state)),
        "without 'net.' before their names; without 'module' in their names",
    ),
    "a figure among the weights": (lambda state: {**state, "epoch": 3}, "not read: epoch"),
    "the same under two keys": (lambda state: {"model": state, "ema": dict(state)}, "taken from 'model'"),
    "sparse": (
        lambda state: {**state, "head.weight": state["head.weight"].to_sparse()},
        "sparse, made dense: head.weight",
    ),
    "double": (
        lambda state: {**state, "head.bias": state["head.bias"].double()},
        "rounded to the model's type: head.bias",
    ),
}


def put(state: object, file: str = "w.pth", **options: object) -> tuple[nn.Module, list[str]]:
    """Weights saved to a file and put into the model of `Parts`, with what was told."""
    torch.save(state, file)
    notes: list[str] = []
    spec = {"factory": "nets.py:Parts", "weights": {"file": file, **options}}
    return load_model(Plan.from_dict({"plan": 1, "model": spec}), notes.append), notes


@pytest.fixture
def parts(folder):
    torch.manual_seed(3)
    Path("nets.py").write_text(PARTS)
    space: dict[str, type[nn.Module]] = {}
    exec(PARTS, space)
    return space["Parts"]()


PARTS = """
from torch import nn

class Parts(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(2, 4), nn.BatchNorm1d(4))
        self.head = nn.Linear(4, 3)
"""


@pytest.mark.parametrize(("wrap", "told"), TOLD.values(), ids=TOLD)
def test_what_is_unwrapped_is_told(parts, wrap, told):
    model, notes = put(wrap(parts.state_dict()))
    assert same(model, parts)
    assert notes == [f"weights of w.pth: {told}"]


@pytest.mark.parametrize("file", ["w.pth.tar", "w.PTH", "w.ckpt"])
def test_the_ending_of_a_files_name_says_nothing(parts, file):
    model, notes = put({"state_dict": parts.state_dict()}, file)
    assert same(model, parts)
    assert notes == [f"weights of {file}: taken from 'state_dict'"]


def test_half_precision_widens_in_silence(parts):
    model, notes = put(
        {key: value.half() if value.is_floating_point() else value for key, value in parts.state_dict().items()}
    )
    assert same(model, parts.half().float())
    assert notes == []


def other(state) -> dict[str, torch.Tensor]:
    return {key: value + 1 for key, value in state.items()}


SAID = {
    "a key": (lambda state: {"model": other(state), "ema": state}, {"key": "ema"}),
    "a key within another's value": (lambda state: {"ema": {"a": other(state), "b.c": state}}, {"key": "ema.b.c"}),
    "a key, and a prefix that is found": (
        lambda state: {"ema": before("module.", state), "model": other(state)},
        {"key": "ema"},
    ),
    "a prefix": (
        lambda state: {**before("student.", state), **before("teacher.", other(state))},
        {"prefix": "student."},
    ),
    "a prefix without its dot": (
        lambda state: {**before("student.", state), **before("teacher.", other(state))},
        {"prefix": "student"},
    ),
    "a prefix before the head": (lambda state: {**before("x.", state), "y": torch.ones(1)}, {"prefix": "x."}),
    "no strictness": (lambda state: {**before("module.", state), "module.aux": torch.ones(1)}, {"strict": False}),
}


@pytest.mark.parametrize(("wrap", "options"), SAID.values(), ids=SAID)
def test_a_plan_says_which_weights_are_meant(parts, wrap, options):
    assert same(put(wrap(parts.state_dict()), **options)[0], parts)


def test_without_strictness_what_is_missing_keeps_its_start_and_is_told(parts):
    state = {key: value for key, value in parts.state_dict().items() if not key.startswith("head")}
    model, notes = put({**before("module.", state), "module.fc.bias": torch.ones(1)}, strict=False)
    assert torch.equal(model.state_dict()["body.0.weight"], parts.body[0].weight)
    assert notes == [
        "weights of w.pth: without 'module.' before their names; missing: head.weight, head.bias; unexpected: fc.bias"
    ]


UNCLEAR = {
    "two states": (
        lambda state: {"model": state, "ema": other(state)},
        {},
        "w.pth holds several states that fit the model: 'ema', 'model'",
        "say which: weights: {file: w.pth, key: ema}",
    ),
    "two prefixes": (
        lambda state: {**before("student.", state), **before("teacher.", other(state))},
        {},
        "w.pth holds several prefixes whose names fit the model: 'student.', 'teacher.'",
        "say which: weights: {file: w.pth, prefix: student.}",
    ),
    "a wrong key": (
        lambda state: {"model": state, "ema": state},
        {"key": "emma"},
        "w.pth has no key 'emma'",
        "did you mean 'ema'?",
    ),
    "a wrong key within": (
        lambda state: {"ema": {"shadow": state}},
        {"key": "ema.shadows"},
        "w.pth has no key 'shadows' under 'ema'",
        "did you mean 'shadow'?",
    ),
    "a key of a number": (
        lambda state: {"epoch": 3, "model": state},
        {"key": "epoch"},
        "w.pth holds an object of type 'int', not a state dict",
        None,
    ),
    "a wrong prefix": (
        lambda state: before("module.", state),
        {"prefix": "modul."},
        "no name in w.pth begins with 'modul.'",
        "did you mean 'module.'?",
    ),
    "not strict, and another model": (
        lambda state: {"conv.weight": torch.ones(3)},
        {"strict": False},
        "the weights in w.pth don't fit the model: missing: body.0.weight, body.0.bias, body.1.weight and 5 more; "
        "unexpected: conv.weight",
        "the names in the file begin with conv",
    ),
    "one name too many": (
        lambda state: {**state, "aux.weight": torch.ones(3)},
        {},
        "the weights in w.pth don't fit the model: unexpected: aux.weight",
        "weights: {file: w.pth, strict: false} takes those that fit",
    ),
}


@pytest.mark.parametrize(("wrap", "options", "message", "hint"), UNCLEAR.values(), ids=UNCLEAR)
def test_what_is_unclear_is_asked(parts, wrap, options, message, hint):
    with pytest.raises(ModelError) as caught:
        put(wrap(parts.state_dict()), **options)
    assert (caught.value.message, caught.value.hint) == (message, hint)


def test_a_wrong_key_is_shown_where_it_stands(parts):
    torch.save({"ema": parts.state_dict()}, "w.pth")
    with pytest.raises(ModelError) as caught:
        load_model(load("model:\n  factory: nets.py:Parts\n  weights: {file: w.pth, key: emma}\n"))
    assert str(caught.value.at) == "plan.yaml:4:31"


def test_names_of_an_earlier_torch_are_read_as_the_model_reads_them():
    Path("old.py").write_text(
        "from torch import nn\nfrom torch.nn.utils import parametrizations\n"
        "def net():\n    return nn.Sequential(parametrizations.weight_norm(nn.Linear(2, 3)))\n"
    )
    g, v, b = torch.rand(3, 1), torch.rand(3, 2), torch.rand(3)
    torch.save({"0.weight_g": g, "0.weight_v": v, "0.bias": b}, "w.pt")
    model = load_model(load("model: {factory: old.py:net, weights: w.pt}\n"))
    assert torch.allclose(model[0].weight, torch._weight_norm(v, g, 0))
    torch.save({"0.weight_v": v, "0.bias": b}, "w.pt")
    with pytest.raises(ModelError, match="don't fit the model: missing: "):
        load_model(load("model: {factory: old.py:net, weights: w.pt}\n"))


def test_a_mask_that_was_saved_as_numbers():
    Path("masked.py").write_text(
        "import torch\nfrom torch import nn\n"
        "class Masked(nn.Module):\n    def __init__(self):\n        super().__init__()\n"
        "        self.register_buffer('mask', torch.zeros(3, dtype=torch.bool))\n"
    )
    torch.save({"mask": torch.tensor([1, 0, 1], dtype=torch.uint8)}, "w.pt")
    model = load_model(load("model: {factory: masked.py:Masked, weights: w.pt}\n"))
    assert model.mask.tolist() == [True, False, True]
    torch.save({"mask": torch.tensor([1, 0, 2], dtype=torch.uint8)}, "w.pt")
    with pytest.raises(ModelError, match="mask is uint8 in the file, bool in the model"):
        load_model(load("model: {factory: masked.py:Masked, weights: w.pt}\n"))


def test_a_state_that_holds_itself(parts):
    state: dict[str, object] = {"w": torch.ones(1)}
    state["again"] = state
    with pytest.raises(ModelError, match="don't fit the model"):
        put(state)


def test_a_model_that_was_made_without_values_gets_the_files():
    Path("bare.py").write_text(
        "import torch\nfrom torch import nn\ndef net():\n    with torch.device('meta'):\n"
        "        return nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))\n"
    )
    torch.manual_seed(1)
    original = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    torch.save({key: value.double() if value.ndim else value for key, value in original.state_dict().items()}, "w.pt")
    model = load_model(load("model: {factory: bare.py:net, weights: w.pt}\n"))
    assert same(model, original)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert all(isinstance(parameter, nn.Parameter) and parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("def state_dict(self, *a, **k): return 5", "the model's state_dict() gave an object of type 'int'"),
        (
            "def load_state_dict(self, *a, **k): raise SystemExit('no')",
            "the weights in w.pt can't be put into the model: SystemExit: no (FOLDER/own.py:3, in load_state_dict)",
        ),
    ],
)
def test_a_model_that_reads_and_saves_in_its_own_way(folder, body, message):
    Path("own.py").write_text(f"from torch import nn\nclass Own(nn.Linear):\n    {body}\ndef net(): return Own(2, 3)\n")
    torch.save(nn.Linear(2, 3).state_dict(), "w.pt")
    with pytest.raises(ModelError) as caught:
        load_model(load("model: {factory: own.py:net, weights: w.pt}\n"))
    assert caught.value.message.replace(str(folder), "FOLDER") == message


def test_what_a_module_saves_beside_tensors_is_given_to_it():
    Path("own.py").write_text(
        "from torch import nn\nclass Own(nn.Linear):\n    def get_extra_state(self): return {'scale': 2}\n"
        "    def set_extra_state(self, state): self.scale = state['scale']\ndef net(): return Own(2, 3)\n"
    )
    state = nn.Linear(2, 3).state_dict()
    torch.save({**state, "_extra_state": {"scale": 3}}, "w.pt")
    assert load_model(load("model: {factory: own.py:net, weights: w.pt}\n")).scale == 3
    torch.save(state, "w.pt")
    assert not hasattr(load_model(load("model: {factory: own.py:net, weights: w.pt}\n")), "scale")


def test_weights_of_eight_bits_widen_in_silence(parts):
    state = {
        key: value.to(torch.float8_e5m2) if value.is_floating_point() else value
        for key, value in parts.state_dict().items()
    }
    model, notes = put(state)
    assert all(torch.equal(value, state[key].to(value.dtype)) for key, value in model.state_dict().items())
    assert notes == []

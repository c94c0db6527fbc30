"""What a plan names is made (model, weights, data, example inputs), or the reason why it can't be is shown."""

from __future__ import annotations

import os
import pickle
import textwrap
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from prunec.compiler.driver.load import example_inputs, load_data, load_model
from prunec.compiler.errors import ModelError, PlanError, PrunecError
from prunec.compiler.plan.plan import Plan

NETS = '''\
"""Factories as a user writes them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn


@dataclass(frozen=True)
class Widths:
    hidden: int


def small(classes=3, *, hidden=4):
    return nn.Sequential(nn.Linear(2, Widths(hidden).hidden), nn.BatchNorm1d(hidden), nn.Linear(hidden, classes))


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Linear(2, 2, bias=False)
        self.b = nn.Linear(2, 2, bias=False)
        self.b.weight = self.a.weight


def needy(depth, width):
    return nn.Identity()


def failing():
    raise ValueError("no luck")


def nothing():
    return {"a": 1}


def keywords(**options):
    return nn.Linear(options["size"], 1)


class Digits:
    def __init__(self, batch_size=2):
        self.draw = torch.rand(batch_size)

    def train(self):
        return [(self.draw, None)]

    val = test = train


NUMBER = 3
'''


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("nets.py").write_text(NETS)
    Path("broken.py").write_text("import no_such_module_at_all\n")
    return tmp_path


def load(text: str) -> Plan:
    Path("plan.yaml").write_text("plan: 1\n" + text)
    return Plan.load("plan.yaml")


def same(a: nn.Module, b: nn.Module) -> bool:
    left, right = a.state_dict(), b.state_dict()
    return left.keys() == right.keys() and all(torch.equal(left[key], right[key]) for key in left)


def test_a_factory_is_called_with_its_arguments():
    model = load_model(load("model: {factory: nets.py:small, args: {classes: 5, hidden: 6}}\n"))
    assert [tuple(p.shape) for p in model.parameters()] == [(6, 2), (6,), (6,), (6,), (5, 6), (5,)]
    assert not model.training


def test_a_factory_in_a_module():
    model = load_model(load("model: {factory: torch.nn:Linear, args: {in_features: 2, out_features: 3}}\n"))
    assert isinstance(model, nn.Linear)


def test_any_keyword_goes_where_the_factory_takes_any():
    assert isinstance(load_model(load("model: {factory: nets.py:keywords, args: {size: 3}}\n")), nn.Linear)


def test_the_seed_alone_decides_the_random_weights():
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    first = load_model(load("model: nets.py:small\nseed: 5\n"))
    assert torch.equal(torch.random.get_rng_state(), before), "the caller's random state was touched"
    torch.manual_seed(2)
    assert same(first, load_model(load("model: nets.py:small\nseed: 5\n")))
    assert not same(first, load_model(load("model: nets.py:small\nseed: 6\n")))


BAD_FACTORIES = [
    (
        "no module",
        "model: no_such_module.nets:small\n",
        """\
        plan.yaml:2:8: no module named 'no_such_module'
            model: no_such_module.nets:small
                   ^^^^^^^^^^^^^^^^^^^^^^^^^
        hint: a module must be installed or on PYTHONPATH; a file is written path/to/file.py:name""",
    ),
    (
        "a module that fails to import another",
        "model: broken.py:net\n",
        """\
        plan.yaml:2:8: can't import FOLDER/broken.py: ModuleNotFoundError: No module named 'no_such_module_at_all'
            model: broken.py:net
                   ^^^^^^^^^^^^^""",
    ),
    (
        "no attribute",
        "model:\n  factory: nets.py:smal\n",
        """\
        plan.yaml:3:12: FOLDER/nets.py has no 'smal'
            factory: nets.py:smal
                     ^^^^^^^^^^^^
        hint: did you mean 'small'?""",
    ),
    (
        "not callable",
        "model: nets.py:NUMBER\n",
        """\
        plan.yaml:2:8: FOLDER/nets.py:NUMBER is an object of type 'int' and can't be called
            model: nets.py:NUMBER
                   ^^^^^^^^^^^^^^""",
    ),
    (
        "unknown argument",
        "model: {factory: nets.py:small, args: {clases: 3}}\n",
        """\
        plan.yaml:2:40: FOLDER/nets.py:small has no argument 'clases'
            model: {factory: nets.py:small, args: {clases: 3}}
                                                   ^^^^^^
        hint: did you mean 'classes'?""",
    ),
    (
        "missing argument",
        "model: {factory: nets.py:needy, args: {depth: 3}}\n",
        """\
        plan.yaml:2:33: FOLDER/nets.py:needy needs the argument 'width'
            model: {factory: nets.py:needy, args: {depth: 3}}
                                            ^^^^
        hint: write args: {width: ...}""",
    ),
    (
        "missing arguments",
        "model: nets.py:needy\n",
        """\
        plan.yaml:2:8: FOLDER/nets.py:needy needs the argument 'depth'
            model: nets.py:needy
                   ^^^^^^^^^^^^^
        hint: write args: {depth: ..., width: ...}""",
    ),
    (
        "a factory that raises",
        "model: nets.py:failing\n",
        """\
        plan.yaml:2:8: FOLDER/nets.py:failing failed: ValueError: no luck
            model: nets.py:failing
                   ^^^^^^^^^^^^^^^""",
    ),
    (
        "no model",
        "model: nets.py:nothing\n",
        """\
        plan.yaml:2:8: FOLDER/nets.py:nothing gave an object of type 'dict', not an nn.Module
            model: nets.py:nothing
                   ^^^^^^^^^^^^^^^""",
    ),
    (
        "no model in the plan",
        "seed: 1\n",
        """\
        plan.yaml:1:1: the plan names no model
            plan: 1
            ^^^^^^^
        hint: for example: model: package.module:name""",
    ),
]


@pytest.mark.parametrize(
    ("text", "expected"), [row[1:] for row in BAD_FACTORIES], ids=[row[0] for row in BAD_FACTORIES]
)
def test_a_bad_factory(folder, text, expected):
    plan = load(text)
    with pytest.raises(PlanError) as caught:
        load_model(plan)
    assert str(caught.value).replace(str(folder), "FOLDER") == textwrap.dedent(expected)


def test_what_a_factory_raised_is_chained():
    plan = load("model: nets.py:failing\n")
    with pytest.raises(PlanError) as caught:
        load_model(plan)
    assert isinstance(caught.value.__cause__, ValueError)


def trained() -> nn.Module:
    """The small network with other weights than the plan's seed gives."""
    return load_model(load("model: nets.py:small\nseed: 99\n"))


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


SAVED = {
    "load": "from torch import nn\ndef load():\n    return nn.Linear(2, 7)\n",
    "Model": "from torch import nn\nclass Model(nn.Linear):\n    def __init__(self):\n        super().__init__(2, 7)\n",
}


@pytest.mark.parametrize(("maker", "code"), SAVED.items(), ids=SAVED)
def test_a_saved_model(folder, maker, code):
    (folder / "out").mkdir()
    (folder / "out" / "model.py").write_text(code)
    if maker == "Model":
        save_file({"weight": torch.ones(7, 2), "bias": torch.zeros(7)}, "out/model.safetensors")
    model = load_model(load("model: {saved: out}\n"))
    assert model(torch.ones(1, 2)).shape == (1, 7)
    assert bool((model.get_parameter("weight") == 1).all()) is (maker == "Model")


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("", "out/model.py has neither load() nor a class Model"),
        ("def load():\n    raise OSError('gone')\n", "out/model.py:load failed: OSError: gone"),
        ("def load():\n    return 3\n", "out/model.py:load gave an object of type 'int', not an nn.Module"),
        ("from torch.nn import Identity as Model\n", "can't read model.safetensors as safetensors: "),
        ("1 +\n", "can't import FOLDER/out/model.py: SyntaxError: "),
    ],
    ids=["empty", "raises", "no model", "no weights", "syntax"],
)
def test_a_bad_saved_model(folder, code, expected):
    (folder / "out").mkdir()
    (folder / "out" / "model.py").write_text(code)
    plan = load("model: {saved: out}\n")
    with pytest.raises(PrunecError) as caught:
        load_model(plan)
    assert expected in caught.value.message.replace(str(folder), "FOLDER")
    assert str(caught.value.at) == "plan.yaml:2:16"


def test_two_files_of_one_name_are_two_modules(folder):
    for name in ("a", "b"):
        (folder / name).mkdir()
        (folder / name / "model.py").write_text(
            f"from torch import nn\ndef load():\n    return nn.Linear(1, {ord(name)})\n"
        )
    sizes = [load_model(load(f"model: {{saved: {name}}}\n")).get_parameter("bias").numel() for name in "ab"]
    assert sizes == [97, 98]


def test_data():
    data = load_data(load("data: {factory: nets.py:Digits, args: {batch_size: 4}}\nseed: 3\n"))
    again = load_data(load("data: {factory: nets.py:Digits, args: {batch_size: 4}}\nseed: 3\n"))
    assert data is not None
    assert again is not None
    [(batch, _)] = data.val()
    assert batch.shape == (4,)
    assert torch.equal(batch, again.val()[0][0])
    assert load_data(load("")) is None


def test_data_need_their_splits():
    plan = load("data: nets.py:nothing\n")
    with pytest.raises(
        PlanError, match=r"nothing gave an object of type 'dict' without train\(\), val\(\), test\(\)"
    ) as caught:
        load_data(plan)
    assert str(caught.value.at) == "plan.yaml:2:7"


def test_example_inputs():
    plan = load("inputs: [[2, 3], {shape: [1000], dtype: int64, high: 5}, {shape: [4], dtype: float64}]\nseed: 1\n")
    image, tokens, vector = example_inputs(plan)
    assert (image.shape, image.dtype) == ((2, 3), torch.float32)
    assert (tokens.dtype, set(tokens.tolist())) == (torch.int64, {0, 1, 2, 3, 4})
    assert vector.dtype is torch.float64
    assert all(torch.equal(a, b) for a, b in zip(example_inputs(plan), (image, tokens, vector), strict=True))


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "bfloat16"])
def test_float_inputs(dtype):
    [value] = example_inputs(load(f"inputs: [{{shape: [3], dtype: {dtype}}}]\n"))
    assert value.dtype is getattr(torch, dtype)


@pytest.mark.parametrize(
    ("dtype", "high"), [("uint8", 256), ("int8", 128), ("int16", 2**15), ("int32", 2**31), ("int64", 2**63 - 1)]
)
def test_whole_inputs_reach_the_end_of_their_type(dtype, high):
    [value] = example_inputs(load(f"inputs: [{{shape: [3], dtype: {dtype}, high: {high}}}]\n"))
    assert value.dtype is getattr(torch, dtype)
    assert bool((value >= 0).all())


def test_a_plan_without_inputs():
    plan = load("seed: 1\n")
    with pytest.raises(PlanError, match="the plan has no inputs"):
        example_inputs(plan)


def test_loading_a_plan_imports_no_factory(folder):
    (folder / "spy.py").write_text("from pathlib import Path\nPath('imported').touch()\n")
    plan = load("model: spy.py:net\ndata: spy.py:data\n")
    assert not (folder / "imported").exists()
    with pytest.raises(PlanError, match=r"spy\.py has no 'net'"):
        load_model(plan)
    assert (folder / "imported").exists()

"""What a plan names is made (model, data, example inputs), or the reason why it can't be is shown."""

from __future__ import annotations

import textwrap
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from user_code import NETS, load, same

from prunec.compiler.data import Batch
from prunec.compiler.driver.load import example_inputs, load_data, load_loss, load_model, module_names
from prunec.compiler.errors import DataError, PlanError, PrunecError
from prunec.compiler.plan.plan import Plan


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("nets.py").write_text(NETS)
    Path("broken.py").write_text("import gone\n")
    return tmp_path


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
        plan.yaml:2:8: can't import FOLDER/broken.py: ModuleNotFoundError: No module named 'gone' (FOLDER/broken.py:1)
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
        plan.yaml:2:8: FOLDER/nets.py:failing failed: ValueError: no luck (FOLDER/nets.py:33, in failing)
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
    [batch] = data.read("val")
    assert batch.inputs.shape == (4,)
    assert torch.equal(batch.inputs, next(iter(again.read("val"))).inputs)
    assert load_data(load("")) is None


def test_data_need_their_splits():
    plan = load("data: nets.py:nothing\n")
    with pytest.raises(DataError, match="nothing gave a dict of 'a', none of which is a split") as caught:
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


def test_names_of_a_model_and_what_they_are(tmp_path):
    (tmp_path / "tied.py").write_text(
        "from torch import nn\n\n\nclass Tied(nn.Module):\n    def __init__(self):\n        super().__init__()\n"
        "        self.e, self.h = nn.Embedding(5, 4), nn.Linear(4, 5)\n        self.h.weight = self.e.weight\n"
    )
    plan = Plan.from_dict({"plan": 1, "model": "tied.py:Tied"}, tmp_path)
    assert module_names(plan) == {
        "e": "an Embedding",
        "h": "a Linear",
        "e.weight": "a tensor of [5, 4] (which is h.weight, too: ask for that)",
        "h.weight": "a tensor of [5, 4] (which is e.weight, too: ask for that)",
        "h.bias": "a tensor of [5]",
    }


# -- what the model is for ---------------------------------------------------------------------------------------------

LOSSES = """\
import torch

def scaled(outputs, labels, by=1.0):
    return by * (outputs - labels).abs().mean()

class Scaled:
    def __init__(self, by):
        self.by = by

    def __call__(self, outputs, labels):
        return scaled(outputs, labels, self.by)

class Dumb:
    pass
"""
BATCH = Batch(torch.zeros(2, 1), torch.zeros(2, 1))


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ("losses.py:scaled", 2.0),
        ("{name: losses.py:scaled, args: {by: 3}}", 6.0),
        ("{name: losses.py:Scaled, args: {by: 3}}", 6.0),
        ("{name: torch.nn:MSELoss}", 4.0),
        ("mse", 4.0),
    ],
)
def test_a_loss_is_found_or_made(folder, said, expected):
    (folder / "losses.py").write_text(LOSSES)
    assert float(load_loss(load(f"loss: {said}\n")).mean(torch.full((2, 1), 2.0), BATCH)) == expected


def test_cross_entropy_is_the_loss_of_a_plan_that_names_none():
    assert load_loss(load("passes: []\n")).name == "cross_entropy"


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ("losses.py:scald", "losses.py has no 'scald'\n(.|\n)*did you mean 'scaled'"),
        ("losses.py:Scaled", "losses.py:Scaled needs the argument 'by'"),
        ("losses.py:Dumb", "losses.py:Dumb makes an object of type 'Dumb', which can't be called"),
        ("{name: losses.py:Scaled, args: {bi: 3}}", "losses.py:Scaled has no argument 'bi'"),
        ("{name: losses.py:scaled, args: {bi: 3}}", "losses.py:scaled has no argument 'bi'"),
    ],
)
def test_a_loss_that_is_not_there(folder, said, message):
    (folder / "losses.py").write_text(LOSSES)
    with pytest.raises(PlanError, match=f"plan.yaml:2:(.|\n)*{message}"):
        load_loss(load(f"loss: {said}\n"))

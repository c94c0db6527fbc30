"""Models as they are: other precisions, computed weights, hooks, tied and frozen weights, and train mode's branches."""

from __future__ import annotations

import copy
import importlib.util
import re

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune

from prunec.compiler import compile, trace
from prunec.compiler.errors import ModelError
from prunec.compiler.tracing.parametrizations import without_parametrizations

PASSES = [{"score": {"criterion": "l1", "normalize": "l2"}}, {"select": {"budget": {"params": "60%"}}}, "shrink"]


class Net(nn.Module):
    def __init__(self, wrap=lambda layer: layer) -> None:
        super().__init__()
        self.a, self.n = wrap(nn.Conv2d(3, 16, 3, padding=1)), nn.BatchNorm2d(16)
        self.b, self.fc = wrap(nn.Conv2d(16, 12, 3)), nn.Linear(12, 5)

    def forward(self, x):
        return self.fc(F.relu(self.b(F.relu(self.n(self.a(x))))).mean((2, 3)))


def made(wrap=lambda layer: layer) -> Net:
    torch.manual_seed(0)
    model = Net(wrap)
    nn.init.uniform_(model.n.running_var, 0.5, 1.5)
    return model.eval()


def image(dtype=torch.float32) -> torch.Tensor:
    return torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1)).to(dtype)


def written(result, folder):
    """The module of the saved model's source."""
    result.save(folder / "out")
    spec = importlib.util.spec_from_file_location("made", folder / "out/model.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_other_precisions(dtype, tmp_path):
    model, x = made().to(dtype), image(dtype)
    result = compile(model, {"plan": 1, "passes": [*PASSES, "fold_bn"]}, example_inputs=(x,))
    assert {tensor.dtype for tensor in result.module.parameters()} == {dtype}
    assert result.report["passes"][-1]["verification"]["dtype"] == "float64"
    assert result.module.a.weight.shape[0] < 16
    assert torch.equal(written(result, tmp_path).load()(x), result.module(x))


def test_half_precision_as_onnx(tmp_path):
    plan = {"plan": 1, "passes": PASSES, "export": ["onnx"]}
    report = compile(made().half(), plan, example_inputs=(image(torch.float16),)).save(tmp_path / "out")
    assert "from the float64 run" in report["onnx"]["float64_note"]
    result = compile(made().bfloat16(), plan, example_inputs=(image(torch.bfloat16),))
    (row,) = result.save(tmp_path / "other")["targets"]
    assert "bfloat16 can't be checked as ONNX" in row["error"]
    assert not (tmp_path / "other" / "model.onnx").exists()


class Symmetric(nn.Module):
    def forward(self, weight):
        return weight + weight.flip(-1)


def symmetric(layer):
    parametrize.register_parametrization(layer, "weight", Symmetric())
    return layer


def masked(layer):
    return prune.random_unstructured(layer, "weight", amount=0.3)


COMPUTED = {
    "weight_norm": parametrizations.weight_norm,
    "spectral_norm": parametrizations.spectral_norm,
    "weight_norm by hook": torch.nn.utils.weight_norm,
    "spectral_norm by hook": torch.nn.utils.spectral_norm,
    "parametrized": symmetric,
    "mask": masked,
}


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("name", COMPUTED)
def test_computed_weights_become_plain(name, tmp_path):
    model, x = made(COMPUTED[name]), image()
    names, want = set(model.state_dict()), model(x)
    plain = trace(model, (x,))
    assert {"a.weight", "b.weight"} <= set(plain.tensors)
    assert all(type(module) in {nn.Conv2d, nn.BatchNorm2d, nn.Linear} for module in plain.state.values())
    assert torch.equal(plain.module(x), want)
    result = compile(model, {"plan": 1, "passes": PASSES}, example_inputs=(x,))
    assert result.module.a.weight.shape[0] < 16
    assert result.module.a.weight.requires_grad
    assert torch.equal(written(result, tmp_path).load()(x), result.module(x))
    assert set(model.state_dict()) == names
    assert torch.equal(model(x), want)


@pytest.mark.parametrize("name", ["weight_norm", "parametrized", "mask"])
def test_a_frozen_computed_weight_stays_frozen(name):
    model = made(COMPUTED[name]).requires_grad_(False)
    assert not any(tensor.requires_grad for tensor in without_parametrizations(model).parameters())


def test_a_model_without_computed_weights_is_shared():
    model = made()
    assert without_parametrizations(model) is model
    mixed = nn.Sequential(model, symmetric(nn.Conv2d(3, 3, 1)))
    assert without_parametrizations(mixed)[0].a.weight is model.a.weight


def doubled(module, args, output):
    return output * 2


def shifted(module, args):
    return (args[0] + 1, *args[1:])


def widened(module, args, output):
    return torch.cat([output, output], 1)


HOOKS = {
    "after": lambda model: model.a.register_forward_hook(doubled),
    "before": lambda model: model.b.register_forward_pre_hook(shifted),
    "on the whole": lambda model: model.register_forward_hook(doubled),
    "by name": lambda model: model.fc.register_forward_hook(lambda m, a, k, out: out + 1, with_kwargs=True),
    "another shape": lambda model: model.fc.register_forward_hook(widened),
    "that only looks": lambda model: model.a.register_forward_hook(lambda m, a, out: None),
}


@pytest.mark.parametrize("name", HOOKS)
def test_hooks_are_part_of_the_program(name, tmp_path):
    model, x = made(), image()
    HOOKS[name](model)
    result = compile(model, {"plan": 1, "passes": PASSES}, example_inputs=(x,))
    assert torch.equal(result.before.module(x), model(x))
    assert result.module.a.weight.shape[0] < 16
    assert torch.equal(written(result, tmp_path).load()(x), result.module(x))


def test_a_hook_that_computes_a_weight_is_refused():
    model = made()
    weight = model.b.weight.detach()
    del model.b.weight
    model.b.weight = weight
    model.b.register_forward_pre_hook(lambda module, args: None)
    with pytest.raises(ModelError, match="a hook computes a layer's tensor"):
        trace(model, (image(),))


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.e, self.l, self.h = nn.Embedding(20, 16), nn.Linear(16, 16), nn.Linear(16, 20, bias=False)
        self.h.weight = self.e.weight

    def forward(self, ids):
        return self.h(F.relu(self.l(self.e(ids))))


def test_tied_and_frozen_weights(tmp_path):
    torch.manual_seed(0)
    model = Tied()
    model.l.weight.requires_grad_(False)
    result = compile(model, {"plan": 1, "passes": PASSES}, example_inputs=(torch.randint(0, 20, (2, 5)),))
    loaded = written(result, tmp_path).load()
    for slim in (result.module, loaded):
        assert slim.h.weight is slim.e.weight
        assert slim.e.weight.shape[1] < 16
        assert [key for key, tensor in slim.named_parameters() if not tensor.requires_grad] == ["l.weight"]


class Aux(nn.Module):
    """Has a head that exists in train mode alone, and every way to ask for the mode."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.n, self.d = nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.Dropout(0.5)
        self.b, self.fc = nn.Conv2d(16, 12, 3), nn.Linear(12, 5)
        self.aux, self.use_aux = nn.Linear(16, 5), True

    def forward(self, x):
        y = self.d(F.relu(self.n(self.a(x))))
        y = torch.dropout(y, 0.1, self.training)
        out = self.fc(F.dropout(F.relu(self.b(y)).mean((2, 3)), 0.1, training=self.training and True))
        if self.training and self.use_aux:
            return {"out": out, "aux": self.aux(y.mean((2, 3)))}
        return out


def aux() -> Aux:
    torch.manual_seed(0)
    return Aux().eval()


def test_train_mode_prunes_the_heads_that_only_it_has(tmp_path):
    model, x = aux(), image()
    result = compile(model, {"plan": 1, "mode": "train", "passes": PASSES}, example_inputs=(x,))
    assert result.lock["mode"] == "train"
    slim = result.module
    assert slim.aux.weight.shape[1] == slim.a.weight.shape[0] < 16
    assert torch.equal(result.before.module(x), model(x))
    for made_of in (slim, written(result, tmp_path).load()):
        assert torch.equal(made_of.eval()(x), made_of(x))
        first, second = made_of.train()(x), made_of(x)
        assert set(first) == {"out", "aux"}
        assert not torch.equal(first["out"], second["out"])


class Softened(nn.Sequential):
    """Gives logits in train mode, and shares in eval mode."""

    def forward(self, x):
        x = super().forward(x)
        return x if self.training else x.softmax(1)


class EvalByData(nn.Sequential):
    def forward(self, x):
        x = super().forward(x)
        return x if self.training or x.sum() > 0 else -x


def stem() -> list[nn.Module]:
    return [nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Dropout(0.1), nn.Conv2d(8, 4, 1)]


class Counting(nn.Sequential):
    """Train mode writes into a buffer that eval mode reads."""

    def __init__(self, *layers) -> None:
        super().__init__(*layers)
        self.register_buffer("offset", torch.zeros(1))

    def forward(self, x):
        for layer in (self[0], self[1], self[3]):
            x = layer(x)
        if self.training:
            self.offset.mul_(0.9)
        return x + self.offset


UNTRACED = ("no eval mode", "eval")
MODES = {
    "an auxiliary head": (Aux, None),
    "other numbers": (lambda: Softened(*stem()), None),
    "no eval mode": (lambda: EvalByData(*stem()), "a branch depends on the values of a tensor"),
    "a buffer that moves": (lambda: Counting(*stem()), "'offset' is written into in train mode alone"),
    "the same": (lambda: nn.Sequential(*stem()), None),
}


@pytest.mark.parametrize(
    ("name", "mode"), [(name, mode) for name in MODES for mode in ("train", "eval") if (name, mode) != UNTRACED]
)
def test_a_compile_in_train_mode_tells_what_eval_mode_loses(name, mode):
    make, message = MODES[name]
    warnings = compile(make(), {"plan": 1, "mode": mode, "passes": []}, example_inputs=(image(),)).report["warnings"]
    assert len(warnings) == (mode == "train" and message is not None)
    for warning in warnings:
        assert re.search(f"^compiled in mode 'train': .*{message}", warning)


class Around(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = Aux()

    def forward(self, x):
        return self.net(x)


def test_a_region_is_compiled_in_both_modes(tmp_path):
    plan = {"plan": 1, "mode": "train", "region": "net", "passes": PASSES}
    model, x = Around().eval(), image()
    result = compile(model, plan, example_inputs=(x,))
    assert result.report["region"]["difference"] < 1e-5
    assert result.report["warnings"] == []
    spliced = written(result, tmp_path).splice(copy.deepcopy(model))
    for slim in (result.module, spliced):
        assert isinstance(slim.eval()(x), torch.Tensor)
        assert set(slim.train()(x)) == {"out", "aux"}
        assert slim.net.aux.weight.shape[1] < 16
    assert torch.equal(spliced.eval()(x), result.module.eval()(x))


def test_a_region_without_eval_mode_is_told():
    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = EvalByData(*stem())

        def forward(self, x):
            return self.net(x)

    report = compile(Outer().eval(), {"plan": 1, "mode": "train", "region": "net", "passes": []}, (image(),)).report
    (warning,) = report["warnings"]
    assert "can't be compiled along" in warning


def test_eval_mode_has_none_and_can_still_be_trained():
    model, x = aux(), image()
    slim = compile(model.train(), {"plan": 1, "passes": PASSES}, example_inputs=(x,)).module
    assert model.training
    assert slim.training, "it is in the mode of the model that was handed over"
    slim.eval()
    assert torch.equal(slim(x), slim(x))
    assert not hasattr(slim, "aux")
    slim.train()
    assert not torch.equal(slim(x), slim(x))


class Grid(nn.Module):
    """Adds the coordinates of its own pixels: numbers that are made of sizes."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 4, 1)

    def forward(self, x):
        rows, columns = torch.meshgrid(torch.arange(x.shape[2] // 1), torch.arange(x.shape[3] // 1), indexing="ij")
        return self.b(F.relu(self.a(x))) + torch.stack([rows, columns, rows, columns])


def test_a_grid_of_coordinates():
    result = compile(Grid(), {"plan": 1, "passes": PASSES}, example_inputs=(image(),))
    assert result.module.a.weight.shape[0] < 16
    assert result.module(torch.zeros(1, 3, 5, 4)).shape == (1, 4, 5, 4)

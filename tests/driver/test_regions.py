"""Regions: parts of models that can't be traced whole, compiled in their places."""

from __future__ import annotations

import copy
import functools
import importlib.util
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils import _pytree as pytree

from prunec.compiler import Plan, compile
from prunec.compiler.driver.compile import load_program
from prunec.compiler.driver.regions import find_regions
from prunec.compiler.errors import ModelError, PlanError, VerifyError
from prunec.compiler.ir.inputs import called

PASSES = [{"score": {"criterion": "l1", "normalize": "l2"}}, {"select": {"budget": {"params": "60%"}}}, "shrink"]


class Backbone(nn.Module):
    """Gives several maps by name, and has an attribute that the whole model reads."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 12, 3, padding=1), nn.Conv2d(12, 16, 3, padding=1), nn.Conv2d(16, 8, 1)
        self.out_channels = 8
        self.unread = nn.Parameter(torch.ones(3))

    def forward(self, x, *, double=False, scale=None):
        x = self.b(F.relu(self.a(x)))
        x = x * 2 if double else x
        return {"fine": self.c(F.relu(x)), "coarse": F.avg_pool2d(self.c(x), 2)}


class Head(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(8, 14, 3, padding=1), nn.Conv2d(14, 5, 1)

    def forward(self, *maps):
        return [self.two(F.relu(self.one(x))) for x in maps]


class Whole(nn.Module):
    """Keeps what scores high: its control flow and the size of what it gives depend on the data."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.ModuleDict({"net": Backbone()})
        self.head = Head()
        self.unused = nn.Sequential(nn.Linear(2, 2))

    def forward(self, images, double=False):
        found = []
        for image in images:
            maps = self.body["net"](image[None], double=double, scale=None)
            assert maps["fine"].shape[1] == self.body["net"].out_channels
            scores = torch.cat([x.flatten(2) for x in self.head(maps["fine"], maps["coarse"])], 2)[0]
            kept = scores.max(0).values > scores.mean()
            found.append({"scores": scores[:, kept] if kept.any() else scores})
        return found


def whole() -> Whole:
    torch.manual_seed(0)
    return Whole().eval()


def images() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(3, 8, 10, generator=generator), torch.randn(3, 12, 8, generator=generator)]


def compiled(*names: str, passes=PASSES, model=None):
    return compile(model or whole(), {"plan": 1, "region": list(names), "passes": passes}, example_inputs=(images(),))


def test_the_whole_can_t_be_traced_and_the_hint_says_what_to_do():
    with pytest.raises(ModelError, match="depends on the values of a tensor") as caught:
        compile(whole(), {"plan": 1}, example_inputs=(images(),))
    assert "region: backbone" in str(caught.value)


@pytest.mark.parametrize("names", [("body.net",), ("body.net", "head")], ids=["one", "several"])
def test_nothing_removed_is_the_whole_model(names):
    model = whole()
    result = compiled(*names, passes=[], model=model)
    for got, want in zip(result.module(images()), model(images()), strict=True):
        torch.testing.assert_close(got["scores"], want["scores"])


@pytest.mark.parametrize("names", [("body.net",), ("body.net", "head")], ids=["one", "several"])
def test_a_region_is_cut_in_its_place(names, tmp_path):
    model = whole()
    state = {key: value.clone() for key, value in model.state_dict().items()}
    result = compiled(*names, model=model)
    slim = result.module
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert slim.state_dict().keys() == state.keys() - {"body.net.unread"}
    assert slim.state_dict()["body.net.b.weight"].shape < state["body.net.b.weight"].shape
    assert slim.state_dict()["body.net.c.weight"].shape[0] == 8
    assert (slim.state_dict()["head.one.weight"].shape[0] < 14) == ("head" in names)
    assert "body.net.b.weight" in result.lock["removed"]
    assert result.report["region"]["difference"] < 1e-5
    assert not model.body["net"]._forward_pre_hooks
    result.save(tmp_path / "out")
    again = whole()
    for name in ["model"] if len(names) == 1 else ["model_body_net", "model_head"]:
        spec = importlib.util.spec_from_file_location(name, tmp_path / f"out/{name}.py")
        made = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(made)
        assert made.splice(again) is again
        assert "import prunec" not in (tmp_path / f"out/{name}.py").read_text()
    for got, want in zip(again(images()), slim(images()), strict=True):
        assert torch.equal(got["scores"], want["scores"])
    assert (tmp_path / "out/report.html").read_text().count("import splice; splice(model)") == len(names)


def test_a_region_computes_what_its_masked_original_does():
    model = whole()
    result = compiled("body.net", model=model)
    removed = result.lock["removed"]
    masked = whole()
    tensors = dict(masked.named_parameters())
    with torch.no_grad():
        for name, dims in removed.items():
            for dim, positions in dims.items():
                tensors[name].index_fill_(int(dim), torch.tensor(positions), 0.0)
    for got, want in zip(result.module(images()), masked(images()), strict=True):
        torch.testing.assert_close(got["scores"], want["scores"], rtol=1e-4, atol=1e-5)


def test_other_frozen_arguments_are_an_error():
    slim = compiled("body.net").module
    with pytest.raises(ValueError, match="was made for double=False, not True"):
        slim(images(), double=True)


def test_a_lock_of_a_region_compiles_again():
    result = compiled("body.net")
    again = compile(whole(), Plan.from_dict(result.lock), example_inputs=(images(),))
    assert again.lock["hashes"] == result.lock["hashes"]
    assert load_program(Plan.from_dict(result.lock), whole(), (images(),)).name == "Whole"


FAULTS = {
    "misspelt": ("body.nett", PlanError, "no module 'body.nett'", "did you mean 'body.net'"),
    "not called": ("unused", ModelError, "'unused' isn't called", "children"),
    "a layer": ("body.net.a", PlanError, "is a single layer", "overlap"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_faults(name):
    region, kind, message, hint = FAULTS[name]
    with pytest.raises(kind, match=message) as caught:
        compiled(region)
    assert hint in str(caught.value)


def test_regions_don_t_overlap():
    with pytest.raises(PlanError, match=r"'body.net' lies in region 'body'"):
        compiled("body", "body.net")


def test_the_plan_s_word(tmp_path):
    path = tmp_path / "plan.yaml"
    path.write_text("plan: 1\nregion: body.nett\n", encoding="utf-8")
    with pytest.raises(PlanError) as caught:
        compile(whole(), path, example_inputs=(images(),))
    assert "plan.yaml:2:9: " in str(caught.value)
    assert Plan.from_dict({"plan": 1, "region": "a.b"}) == Plan.from_dict({"plan": 1, "region": ["a.b"]})
    assert "region" not in Plan.from_dict({"plan": 1}).to_dict()


class Picky(Whole):
    """Lets nothing through, as a detector that was never trained: what it gives tells nothing of its parts."""

    def forward(self, images, double=False):
        return [{"scores": found["scores"][:, :0]} for found in super().forward(images, double)]


@pytest.mark.parametrize("kind", [Whole, Picky])
@pytest.mark.parametrize("names", [("body.net",), ("body.net", "head")], ids=["one", "several"])
def test_a_fault_in_a_slim_part_is_found(kind, names, monkeypatch):
    result = compiled(*names, model=kind().eval())
    regions, program = result.regions, result.program
    monkeypatch.setattr(type(regions), "spliced", lambda self, p: self._with(lambda r: _scaled(self.part(p, r).module)))
    with pytest.raises(VerifyError, match=r"slim region 'body.net' differs by 0.01 .*call 1"):
        regions.check(program)


def _scaled(module: nn.Module, kind: type = dict) -> nn.Module:
    """The module, whose results of that kind are a hundredth too large."""

    def scaled(_, __, out):
        return pytree.tree_map(lambda x: x * 1.01, out) if isinstance(out, kind) else out

    module.register_forward_hook(scaled)
    assert module.code, "else fx makes it at the first call, and calls hooks twice"
    return module


def test_a_fault_in_a_later_call_is_found(monkeypatch):
    result = compiled("body.net")
    regions, calls = result.regions, []

    def late(self, program):
        def hook(_, __, out):
            calls.append(1)
            return {"fine": out["fine"] + (len(calls) == 2), "coarse": out["coarse"]}

        def make(region):
            module = self.part(program, region).module
            module.register_forward_hook(hook)
            assert module.code
            return module

        return self._with(make)

    monkeypatch.setattr(type(regions), "spliced", late)
    with pytest.raises(VerifyError, match="call 2"):
        regions.check(result.program)


def test_the_check_runs_the_whole_once(monkeypatch):
    result, runs = compiled("body.net", "head"), []
    forward = Whole.forward
    monkeypatch.setattr(Whole, "forward", lambda self, *args: runs.append(self) or forward(self, *args))
    assert 0 <= result.regions.check(result.program) < 1e-5
    assert len(runs) == 1


class Odd(Whole):
    """Calls its head in two ways."""

    def __init__(self, second) -> None:
        super().__init__()
        self.second = second

    def forward(self, images):
        maps = self.body["net"](images[0][None])
        other = self.second(self, maps, images[1][None])
        return self.head(maps["fine"]), other


ODD = {
    "other numbers": (lambda m, maps, x: m.body["net"](x, double=True), "body.net", "double=True after x="),
    "more inputs": (lambda m, maps, x: m.head(maps["fine"], maps["coarse"]), "head", "maps_1="),
    "other dimensions": (lambda m, maps, x: m.head(maps["fine"][0]), "head", r"maps_0=float32\[_, _, _, _\] after"),
}


@pytest.mark.parametrize("name", ODD)
def test_a_region_is_called_in_one_way(name):
    second, region, message = ODD[name]
    model = Odd(second).eval()
    with pytest.raises(ModelError, match=rf"'{region}' is called in more than one way: .*{message}"):
        compiled(region, model=model)


@dataclass
class Maps:
    fine: torch.Tensor
    coarse: torch.Tensor


class Records(Backbone):
    def forward(self, x):
        return Maps(**super().forward(x))


class Reader(nn.Module):
    """Reads a part's record by attributes, or hands it on."""

    def __init__(self, reads: bool) -> None:
        super().__init__()
        self.net, self.reads = Records(), reads

    def forward(self, images):
        found = self.net(images[0][None])
        return found.fine if self.reads else found


def test_a_record_becomes_a_dict():
    assert compiled("net", model=Reader(False).eval()).report["region"]["difference"] < 1e-5
    with pytest.raises(ModelError, match="doesn't run with the slim regions in it: AttributeError") as caught:
        compiled("net", model=Reader(True).eval())
    assert "dicts" in str(caught.value)


class Switch(nn.Module):
    """Leaves its head out, or gives another kind of thing, where it finds that a part isn't the original."""

    def __init__(self, leaves_out: bool) -> None:
        super().__init__()
        self.net, self.head, self.leaves_out = Backbone(), Head(), leaves_out

    def forward(self, images):
        maps = self.net(images[0][None])
        whole = hasattr(self.net, "unread")
        if whole or not self.leaves_out:
            maps["found"] = self.head(maps["fine"], maps["coarse"])
        return {"maps": maps["fine"]} if whole or self.leaves_out else maps["fine"]


def test_the_whole_gives_the_same_kind_of_thing():
    with pytest.raises(ModelError, match=r"something else than the original: float32.* instead of a dict of 'maps'"):
        compiled("net", "head", model=Switch(False).eval())


def test_a_part_that_data_pass_by_is_checked_alone(monkeypatch):
    result = compiled("net", "head", model=Switch(True).eval())
    assert result.report["region"]["difference"] < 1e-5

    def spliced(self, program):
        return self._with(lambda r: _scaled(self.part(program, r).module, list))

    monkeypatch.setattr(type(result.regions), "spliced", spliced)
    with pytest.raises(VerifyError, match=r"slim region 'head' differs by 0\.01"):
        result.regions.check(result.program)


class Cache:
    """Something that no graph gives."""


class Caching(nn.Module):
    """A part that gives an object besides tensors, which the whole needs."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)

    def forward(self, x):
        return {"maps": self.conv(x), "cache": Cache()}


class Cached(nn.Module):
    """A whole that reads a part's object."""

    def __init__(self):
        super().__init__()
        self.part = Caching()

    def forward(self, x):
        found = self.part(x)
        assert isinstance(found["cache"], Cache)
        return found["maps"].mean((2, 3))


@pytest.mark.parametrize("mode", ["eval", "train"])
def test_a_region_leaves_nothing_out(mode):
    regions = find_regions(Cached(), ["part"], (torch.rand(2, 3, 4, 4),))
    with pytest.raises(ModelError, match=r"a region gives back more than tensors: 'cache' \(Cache\)"):
        regions.trace(mode)


def defaults(forward):
    """A decorator that takes a keyword for itself, and gives others that the forward has."""

    @functools.wraps(forward)
    def wrapper(self, *args, as_dict=True, **kwargs):
        kwargs["double"] = kwargs.get("double") or False
        found = forward(self, *args, **kwargs)
        return found if as_dict else found["fine"]

    return wrapper


class Decorated(Backbone):
    forward = defaults(Backbone.forward)


class Positional(nn.Module):
    """A forward whose decorator sets what it may also be given by position."""

    def __init__(self) -> None:
        super().__init__()
        self.net, self.fc = nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Conv2d(8, 8, 1)), nn.Linear(8, 2)

    def forward(self, x, double=None, scale=None):
        x = self.net(x) if scale is None else self.net(x) * scale
        return self.fc((2 * x if double else x).mean((2, 3)))


class Always(Positional):
    def forward(self, *args, **kwargs):
        return super().forward(*args, double=True, **kwargs)


class Sets(Positional):
    @functools.wraps(Positional.forward)
    def forward(self, *args, **kwargs):
        return super().forward(*args, double=True, **kwargs)


class Calls(nn.Module):
    """Calls a part in a given way."""

    def __init__(self, part, call) -> None:
        super().__init__()
        self.part, self.call = part, call

    def forward(self, x):
        if x.sum() > 1e9:
            return x
        return self.call(self.part, x)


DECORATED = {
    "keyword that the decorator takes": (Decorated, lambda part, x: part(x, as_dict=False)),
    "keyword that the decorator sets": (Decorated, lambda part, x: part(x, double=True)["fine"]),
    "the decorator sets what has no keyword": (Sets, lambda part, x: part(x)),
    "beside a keyword": (Sets, lambda part, x: part(x, scale=x.mean())),
    "all by keyword": (Sets, lambda part, x: part(scale=x.mean(), x=x)),
    "an inner call": (Always, lambda part, x: part(x=x, scale=None)),
}


@pytest.mark.parametrize("name", DECORATED)
def test_a_region_behind_a_decorator_is_called_as_the_model_calls_it(name, tmp_path):
    kind, call = DECORATED[name]
    torch.manual_seed(0)
    model, x = Calls(kind(), call).eval(), torch.rand(2, 3, 6, 6)
    result = compile(model, {"plan": 1, "region": "part", "passes": []}, (x,))
    torch.testing.assert_close(result.module(x), model(x))
    result.save(tmp_path / "out")
    spec = importlib.util.spec_from_file_location("model", tmp_path / "out/model.py")
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    expected = model(x)
    torch.testing.assert_close(made.splice(model)(x), expected)


@pytest.mark.parametrize("inputs", [lambda x: {"x": x}, lambda x: (x,), lambda x: {"scale": x.mean(), "x": x}])
def test_a_whole_model_behind_a_decorator(inputs):
    torch.manual_seed(0)
    model, given = Sets().eval(), inputs(torch.rand(2, 3, 6, 6))
    result = compile(model, {"plan": 1, "passes": []}, given)
    torch.testing.assert_close(called(result.module, given), called(model, given))


class KeyValues:
    """A cache that a decoder makes and its layers write into."""

    def __init__(self) -> None:
        self.seen = []


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(6, 16), nn.Linear(16, 6)

    def forward(self, x, past=None, use_cache=True):
        keys = self.up(x)
        if past is not None:
            past.seen.append(keys)
        x = x + self.down(F.relu(keys))
        return (x, KeyValues()) if use_cache else (x, None)


class Decoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer, self.head = Layer(), nn.Linear(6, 3)

    def forward(self, x, use_cache=True):
        past = KeyValues() if use_cache else None
        x, past = self.layer(x, past, use_cache=use_cache)
        return {"logits": self.head(x), "past": past}


def test_a_cache_that_a_region_is_given_can_be_put_aside(tmp_path):
    torch.manual_seed(0)
    model, x = Decoder().eval(), torch.rand(2, 5, 6)
    plan = {"plan": 1, "passes": [{"score": "l1"}, {"select": "50%"}, "shrink"]}
    with pytest.raises(ModelError, match="region 'layer': the example input 'past' holds a KeyValues") as caught:
        compile(model, {**plan, "region": "layer"}, (x,))
    assert "region: {layer: {past: null}}" in caught.value.hint
    with pytest.raises(ModelError, match="gives back more than tensors") as caught:
        compile(model, {**plan, "region": {"layer": {"past": None}}}, (x,))
    assert "region: {layer: {use_cache: false}}" in caught.value.hint
    result = compile(model, {**plan, "region": {"layer": {"past": None, "use_cache": False}}}, (x,))
    assert result.module.layer.up.out_features == 8
    assert result.lock["region"] == {"layer": {"past": None, "use_cache": False}}
    model_again, slim = copy.deepcopy(model), result.module(x)["logits"]
    result.save(tmp_path / "out")
    spec = importlib.util.spec_from_file_location("model", tmp_path / "out/model.py")
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    assert torch.equal(made.splice(model)(x)["logits"], slim)
    again = compile(model_again, Plan.from_dict(result.lock), (x,))
    assert again.lock["hashes"] == result.lock["hashes"]


def test_an_argument_that_a_region_doesn_t_have(tmp_path):
    path = tmp_path / "plan.yaml"
    path.write_text("plan: 1\nregion:\n  layer: {passed: null}\n", encoding="utf-8")
    with pytest.raises(PlanError, match="region 'layer' has no argument 'passed'") as caught:
        compile(Decoder().eval(), path, (torch.rand(2, 5, 6),))
    assert "did you mean 'past'" in str(caught.value)
    assert "plan.yaml:3:" in str(caught.value)


def test_called_takes_every_kind_of_batch():
    def given(*args, **kwargs):
        return args, kwargs

    assert called(given, 1) == ((1,), {})
    assert called(given, (1, 2)) == ((1, 2), {})
    assert called(given, {"a": 1}) == ((), {"a": 1})


TABLE: dict[int, torch.Tensor] = {}


class Remembering(nn.Module):
    """A model that counts its calls and keeps a table; its head looks at values."""

    calls = 0

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3))

    def forward(self, x):
        type(self).calls += 1
        y = self.body(x)
        scale = TABLE.setdefault(y.shape[1], torch.arange(4.0))
        return y * scale[:, None, None] * y.max().item()


def test_the_runs_of_the_whole_model_leave_what_it_remembers():
    plan = {"plan": 1, "region": ["body"], "passes": ["score", {"select": "50%"}, "shrink"]}
    model = Remembering().eval()
    compile(model, plan, (torch.rand(2, 3, 8, 8),))
    assert (Remembering.calls, TABLE) == (0, {})

"""Mode `train`: a slim module that gives in each mode what the original gives in that mode."""

from __future__ import annotations

import copy
import importlib.util
import re
import types
from collections import Counter, namedtuple
from collections.abc import Callable
from dataclasses import dataclass

import onnxruntime
import pytest
import torch
import torch.nn.functional as F
import torchvision
from nets import Made, lively
from oracle import difference, selection, zeroed
from torch import Tensor, nn

from prunec.compiler import compile as prune
from prunec.compiler.cost.model import cost
from prunec.compiler.emit.python import emit_source, saved_tensors
from prunec.compiler.errors import ModelError
from prunec.compiler.groups.analysis import analyse
from prunec.compiler.ir.program import Program
from prunec.compiler.ir.train_eval import has_both
from prunec.compiler.rewrite.shrink import remove_units, removed_positions
from prunec.compiler.text.parser import from_text
from prunec.compiler.text.printer import to_text
from prunec.compiler.tracing.both_modes import trace_modes
from prunec.compiler.tracing.trace import recorded
from prunec.compiler.verify.reference import Masked
from prunec.compiler.verify.verify import verify

Outputs = namedtuple("Outputs", ["logits", "aux"])


@dataclass
class Record:
    logits: Tensor
    aux: Tensor


def conv(inputs: int, outputs: int, *more: nn.Module) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), *more)


def head(inputs: int) -> nn.Sequential:
    hidden = (nn.Conv2d(inputs, 8, 1), nn.ReLU(inplace=True), nn.AdaptiveAvgPool2d(2), nn.Flatten())
    return nn.Sequential(*hidden, nn.Linear(32, 6), nn.ReLU(inplace=True), nn.Linear(6, 4))


def parts() -> dict[str, nn.Module]:
    relu = nn.ReLU(inplace=True)
    return {"a": conv(3, 8, relu), "b": conv(8, 8, relu), "c": conv(8, 8), "aux": head(8), "fc": nn.Linear(8, 4)}


def trunk(m, x):
    y = m.b(m.a(x))
    z = F.relu_(m.c(y).add_(y))
    return y, m.fc(z.mean((2, 3)))


def a_tuple(m, x):
    y, logits = trunk(m, x)
    return (logits, m.aux(y)) if m.training else logits


def a_named_tuple(m, x):
    y, logits = trunk(m, x)
    return Outputs(logits, m.aux(y)) if m.training else logits


def a_record(m, x):
    y, logits = trunk(m, x)
    return Record(logits, m.aux(y)) if m.training else {"logits": logits}


def a_dict(m, x):
    y, out = trunk(m, x)
    result = {"out": out}
    if m.training:
        result["aux"] = m.aux(y)
    return result


def deep_supervision(m, x):
    """The decoder's levels; in eval mode the last alone."""
    outputs = []
    for block in (m.a, m.b, m.c):
        x = block(x)
        outputs.append(m.side(x))
    return outputs if m.training else outputs[-1]


def softened(m, x):
    logits = trunk(m, x)[1]
    return logits if m.training else F.softmax(logits, dim=1)


def features_in_training(m, x):
    z = m.b(m.a(x)).mean((2, 3))
    return (z, m.fc(z)) if m.training else m.fc(z).softmax(-1)


def dropped(m, x):
    y = F.dropout(m.b(m.a(x)), 0.5, training=m.training)
    y = F.dropout2d(y, 0.1, m.training and True)
    y = torch.dropout(y, 0.2, m.training)
    return m.fc(F.dropout(y.mean((2, 3)), 0.3, bool(m.training)))


def noise_in_either(m, x):
    """Dropout that stays on, and one that only some configurations have."""
    y = F.dropout(m.b(m.a(x)), 0.5, training=True)
    y = F.dropout(y, 0.5, training=m.training and m.fc.out_features > 99)
    logits = m.fc(y.mean((2, 3)))
    return (logits, m.aux(y)) if m.training else logits


def drop_path(m, x):
    """Stochastic depth: what it multiplies by comes from the generator, in train mode."""
    y = m.a(x)
    z = m.b(y)
    if m.training:
        z = z * (torch.rand((z.shape[0], 1, 1, 1), dtype=z.dtype, device=z.device) < 0.5)
    return m.fc((y + z).mean((2, 3)))


def stochastic_depth(m, x):
    """Noise drawn into empty memory, and a sum in place."""
    y = m.a(x)
    z = m.b(y)
    if m.training:
        noise = torch.empty((z.shape[0], 1, 1, 1), dtype=z.dtype, device=z.device).bernoulli_(0.5)
        z = z * noise.div_(0.5)
    z += y
    return m.fc(m.c(z).mean((2, 3)))


def attention(m, x):
    q, k, v = m.qkv(x).chunk(3, -1)
    y = F.scaled_dot_product_attention(q, k, v, dropout_p=0.25 if m.training else 0.0)
    return m.fc(y)


def written_before_the_head(m, x):
    """The head reads what the trunk overwrites later, and a view of it."""
    y = m.a(x)
    view = y[:, :, 1:]
    if m.training:
        early = m.aux(y[:, :, :2, :2])
    z = m.b(y.mul_(0.5)) + view.mean()
    logits = m.fc(z.mean((2, 3)))
    return (logits, early) if m.training else logits


def overwritten_in_training(m, x):
    """Train mode writes into what eval mode reads: the two can't have one memory."""
    y = m.a(x)
    if m.training:
        y += 0.25
    return m.fc(m.b(y).mean((2, 3)))


def overwritten_in_eval(m, x):
    y = m.a(x)
    if not m.training:
        y[:, :, 0] = 0.0
    return m.fc(m.b(y).mean((2, 3)))


def other_constants(m, x):
    """Constants of the code are numbered as they come."""
    y = m.a(x)
    if m.training:
        y = y * torch.tensor([0.5, 1.0, 2.0, 1.0, 0.5, 1.0], dtype=y.dtype)
    y = y + torch.arange(6, dtype=y.dtype) / 6
    return m.fc(m.b(y).mean((2, 3)))


def standardised(m, x):
    w = m.a[0].weight
    w = (w - w.mean((1, 2, 3), keepdim=True)) / w.std((1, 2, 3), keepdim=True)
    y = m.b(F.relu(F.conv2d(x, w, padding=1)))
    logits = m.fc(y.mean((2, 3)))
    return (logits, m.aux(y)) if m.training else logits


def eval_alone(m, x):
    """What eval mode alone computes stands before what both do."""
    y = m.a(x)
    if not m.training:
        y = y.clamp(max=1.5)
    return m.fc(m.b(y).mean((2, 3)))


def the_same(m, x):
    return m.fc(F.dropout(m.b(m.a(x)), 0.0, m.training).mean((2, 3)))


def by_batch_norm(m, x):
    n = m.b[1]
    y = F.batch_norm(m.b[0](m.a(x)), n.running_mean, n.running_var, n.weight, n.bias, m.training, 0.1, n.eps)
    logits = m.fc(F.relu(y).mean((2, 3)))
    return (logits, m.aux(y)) if m.training else logits


def tokens() -> dict[str, nn.Module]:
    return {"qkv": nn.Linear(6, 24), "fc": nn.Linear(8, 4)}


NETS: dict[str, tuple[Callable, Callable, bool]] = {
    "a tuple": (parts, a_tuple, True),
    "a named tuple": (parts, a_named_tuple, True),
    "a record": (parts, a_record, True),
    "a dict": (parts, a_dict, True),
    "deep supervision": (lambda: {**parts(), "side": nn.Conv2d(8, 2, 1)}, deep_supervision, True),
    "softened": (parts, softened, True),
    "features in training": (parts, features_in_training, True),
    "dropped": (parts, dropped, False),
    "noise in either": (parts, noise_in_either, True),
    "drop path": (parts, drop_path, True),
    "stochastic depth": (parts, stochastic_depth, True),
    "attention": (tokens, attention, False),
    "written before the head": (parts, written_before_the_head, True),
    "overwritten in training": (parts, overwritten_in_training, True),
    "overwritten in eval": (parts, overwritten_in_eval, True),
    "other constants": (parts, other_constants, True),
    "standardised": (parts, standardised, True),
    "eval alone": (parts, eval_alone, True),
    "the same": (parts, the_same, False),
    "by batch norm": (parts, by_batch_norm, True),
}
"""A network's parts, its forward, and whether its modes differ by more than flags."""

STORED_COMPUTED = {"standardised"}
"""Networks whose slim weights aren't gathered from the original's, so that no zeros in these are the same."""


QUIET = {"dropped": ["eval"], "attention": ["eval"], "noise in either": []}
"""The modes in which a network has no noise of the shape of what is pruned, of which a slim one draws other numbers."""


WITH_FLAGS = {"attention", "noise in either", "standardised"}
"""Networks whose joint program doesn't have the very nodes of the traces: flags or weights are computed otherwise."""


def inputs(name: str) -> tuple[Tensor]:
    shape = (3, 5, 6) if NETS[name][0] is tokens else (3, 3, 6, 6)
    return (torch.randn(shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64),)


def built(name: str) -> Made:
    torch.manual_seed(0)
    make, run, _ = NETS[name]
    return lively(Made(make(), run))


def traced(name: str) -> tuple[Made, Program]:
    model = built(name)
    program, warnings = trace_modes(model, inputs(name), "train")
    assert not warnings
    assert has_both(program.graph) == NETS[name][2]
    return model, program


def given(module: nn.Module, mode: str, x: tuple[Tensor, ...]):
    """What a copy of the module gives in a mode, with seeded noise."""
    module = copy.deepcopy(module).train(mode == "train")
    torch.manual_seed(3)
    with torch.no_grad():
        return bare(module(*x))


def bare(value):
    """Records as the dicts that a compiled model gives; a batch norm's own copy isn't looked at."""
    return dict(vars(value)) if isinstance(value, Record) else value


def loaded(program: Program, name: str = "Made") -> nn.Module:
    """The module that the emitted source makes."""
    made = types.ModuleType("made")
    exec(compile(emit_source(program), "model.py", "exec"), made.__dict__)
    module = vars(made)[name]()
    module.load_state_dict(saved_tensors(program))
    return module.eval()


def equal(one, other) -> bool:
    return difference(one, other) == 0.0 and type(one).__name__ == type(other).__name__


@pytest.mark.parametrize("mode", ["eval", "train"])
@pytest.mark.parametrize("name", NETS)
def test_the_program_gives_what_the_model_gives_in_each_mode(name, mode):
    model, program = traced(name)
    want = given(model, mode, inputs(name))
    assert difference(given(program.module, mode, inputs(name)), want) <= (1e-12 if name in STORED_COMPUTED else 0.0)
    assert type(given(program.module, mode, inputs(name))) is type(want)


@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("name", NETS)
def test_the_slim_module_is_the_zeroed_model_in_each_mode(name, seed):
    model, program = traced(name)
    analysis = analyse(program)
    keep = selection(analysis, seed, 0.5)
    assert not keep.all()
    slim, removed = remove_units(program, keep), removed_positions(analysis, keep)
    verify(slim, Masked(program, removed), pass_name="shrink", exact=True)
    if name in STORED_COMPUTED:
        return
    old = zeroed(model, removed)
    for mode in QUIET.get(name, ["eval", "train"]):
        assert difference(given(slim.module, mode, inputs(name)), given(old, mode, inputs(name))) < 1e-9, mode


@pytest.mark.parametrize("name", NETS)
def test_source_and_module_are_one_in_each_mode(name):
    _, program = traced(name)
    slim = remove_units(program, selection(analyse(program), 1, 0.5))
    module, made = slim.module, loaded(slim)
    assert module.state_dict().keys() == made.state_dict().keys() == saved_tensors(slim).keys()
    for mode in ("eval", "train"):
        assert equal(given(made, mode, inputs(name)), given(module, mode, inputs(name))), mode


@pytest.mark.parametrize("name", NETS)
def test_the_text_of_both_modes_can_be_read_back(name):
    _, program = traced(name)
    text = to_text(program)
    again = from_text(text)
    assert to_text(again) == text
    assert has_both(again.graph) == has_both(program.graph)
    for mode in ("eval", "train"):
        wanted = recorded(built(name), inputs(name), mode=mode).graph
        assert name in WITH_FLAGS or len(program.half(mode).graph.nodes) == len(wanted.nodes)
        nodes = [node.name for node in program.half(mode).graph.nodes]
        assert [node.name for node in again.half(mode).graph.nodes] == nodes


SPLIT = {"overwritten in training": {"a.1", "a.2"}, "overwritten in eval": {"a.1", "a.2", "b.0", "b.1", "fc"}}
"""Layers that are called once for each mode, since their memory may not be shared; then those that read it."""


@pytest.mark.parametrize("name", NETS)
def test_layers_of_both_modes_are_called_once(name):
    """Also where the modes part on the way: they meet again."""
    model, program = traced(name)
    trained = recorded(model, inputs(name), mode="train").graph
    wanted = Counter(node.target for node in trained.nodes if node.op == "call_module")
    calls = Counter(node.target for node in program.graph.nodes if node.op == "call_module")
    assert set(calls - wanted) == SPLIT.get(name, set())


# --- what a compile makes of it --------------------------------------------------------------------------------------

PASSES = [{"score": "l1"}, {"select": {"ratio": 0.5}}, "shrink"]


class Data:
    """Images and labels; the same in every split."""

    def train(self):
        generator = torch.Generator().manual_seed(4)
        for _ in range(2):
            images = torch.randn(8, 3, 6, 6, generator=generator)
            yield images, torch.randint(0, 4, (8,), generator=generator)

    val = test = train


def small(run: Callable) -> tuple[Made, Tensor]:
    torch.manual_seed(0)
    return lively(Made(parts(), run)).float(), torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(5))


def test_a_compile_writes_both_modes_and_exports_eval_mode(tmp_path):
    model, x = small(softened_with_aux)
    plan = {"plan": 1, "mode": "train", "passes": PASSES, "export": [{"onnx": {"dynamic": []}}]}
    result = prune(model, plan, (x,), Data())
    result.save(tmp_path / "out")
    made = imported(tmp_path / "out" / "model.py").load()
    onnx = onnxruntime.InferenceSession(tmp_path / "out" / "model.onnx")
    (run,) = onnx.run(None, {onnx.get_inputs()[0].name: x.numpy()})
    assert difference(torch.from_numpy(run), given(made, "eval", (x,))) < 1e-5
    for mode in ("eval", "train"):
        assert equal(given(made, mode, (x,)), given(result.module, mode, (x,)))
    assert set(given(made, "train", (x,))) == {"out", "aux"}
    assert result.report["warnings"] == []
    assert set(result.report["accuracy"]) == {"before", "after"}
    again = prune(model, tmp_path / "out" / "plan.lock.json", (x,), Data())
    assert equal(given(again.module, "train", (x,)), given(result.module, "train", (x,)))


def softened_with_aux(m, x):
    y, logits = trunk(m, x)
    return {"out": logits, "aux": m.aux(y)} if m.training else logits.softmax(1)


def imported(path):
    spec = importlib.util.spec_from_file_location("made", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", ["a tuple", "softened", "drop path", "eval alone", "other constants"])
def test_costs_are_those_of_eval_mode_and_parameters_those_of_both(name):
    model, both = traced(name)
    alone, _ = trace_modes(model, inputs(name), "eval")
    assert (cost(both).macs, cost(both).memory) == (cost(alone).macs, cost(alone).memory)
    heads = sum(p.numel() for p in model.aux.parameters()) if name == "a tuple" else 0
    assert cost(alone).params == cost(both).params - heads


def test_the_loss_of_a_criterion_is_of_train_modes_outputs():
    """Auxiliary heads get scores from it, and logits are taken instead of shares."""
    model, x = small(softened_with_aux)
    plan = {"plan": 1, "mode": "train", "passes": [{"score": {"criterion": "taylor"}}]}
    scores = prune(model, plan, (x,), Data()).program.facts["scores"]
    assert {"aux.0", "aux.4"} <= set(scores)
    assert all(values.max() > 0 for name, values in scores.items() if name.startswith("aux"))


REWRITES = {
    "fold_bn": ([*PASSES, "fold_bn"], "in 3 places, .*: a.1, b.1, c.1$"),
    "merge": ([{"cluster": {"ratio": 0.5}}, {"merge": {"inexact": "mean"}}], None),
    "shrink": (PASSES, None),
}


@pytest.mark.parametrize("name", REWRITES)
def test_rewrites_hold_in_both_modes(name):
    passes, message = REWRITES[name]
    model, x = small(a_tuple)
    result = prune(model, {"plan": 1, "mode": "train", "passes": passes}, (x,))
    assert has_both(result.program.graph)
    assert [bool(re.search(message or "^$", warning)) for warning in result.report["warnings"]] == [True] * bool(
        message
    )
    made = loaded(result.program)
    for mode in ("eval", "train"):
        assert equal(given(made, mode, (x,)), given(result.module, mode, (x,)))


def test_taking_out_dropout_is_told():
    model, x = small(dropped)
    model.a.append(nn.Dropout(0.5))
    report = prune(model, {"plan": 1, "mode": "train", "passes": ["eliminate"]}, (x,)).report
    assert [
        re.search(r"in 5 places, .*: a\.3, dropout, dropout2d, \.\.\.$", text) is not None
        for text in report["warnings"]
    ]
    assert len(report["warnings"]) == 1


def with_targets(m, x, target=None):
    y, logits = trunk(m, x)
    return (logits, m.aux(y), F.cross_entropy(logits, target)) if m.training else logits


def test_inputs_that_train_mode_alone_reads_may_be_left_out():
    class Loss(Made):
        def forward(self, x, target=None):
            return with_targets(self, x, target)

    torch.manual_seed(0)
    model, x = lively(Loss(parts(), with_targets)).float(), torch.randn(2, 3, 6, 6)
    target = torch.tensor([1, 3])
    plan = {"plan": 1, "mode": "train", "passes": PASSES}
    result = prune(model, plan, {"x": x, "target": target})
    made = loaded(result.program, "Loss")
    assert [node.name for node in result.program.deployed.graph.find_nodes(op="placeholder")] == ["x"]
    assert torch.equal(result.program.deployed.inputs[0], x)
    assert equal(given(made, "eval", (x,)), given(result.module, "eval", (x,)))
    assert equal(given(made, "train", (x, target)), given(result.module, "train", (x, target)))
    assert len(given(made, "train", (x, target))) == 3
    with pytest.raises(ModelError, match="cross_entropy"):
        prune(model, plan, (x,))


def test_a_slim_module_is_compiled_again_in_both_modes():
    model, x = small(a_tuple)
    plan = {"plan": 1, "mode": "train", "passes": PASSES}
    once = prune(model, plan, (x,))
    twice = prune(once.module, plan, (x,))
    assert sum(p.numel() for p in twice.module.parameters()) < sum(p.numel() for p in once.module.parameters())
    assert [len(given(twice.module, mode, (x,))) for mode in ("eval", "train")] == [2, 2]
    assert isinstance(given(twice.module, "train", (x,)), tuple)


def test_a_module_of_both_modes_is_copied_and_cast_like_any_other():
    module = remove_units(traced("a tuple")[1], selection(analyse(traced("a tuple")[1]), 1, 0.5)).module
    copied = copy.deepcopy(module).float()
    assert {tensor.dtype for tensor in copied.parameters()} == {torch.float32}
    assert {tensor.dtype for tensor in module.parameters()} == {torch.float64}
    copied.load_state_dict(module.state_dict())
    (x,) = inputs("a tuple")
    assert (
        difference(given(copied, "train", (x.float(),)), tuple(y.float() for y in given(module, "train", (x,)))) < 1e-4
    )


def test_googlenet_gives_its_named_tuple_in_train_mode_alone():
    torch.manual_seed(0)
    model = torchvision.models.googlenet(init_weights=False, aux_logits=True, num_classes=10, transform_input=True)
    x = torch.randn(2, 3, 48, 48)
    result = prune(model.eval(), {"plan": 1, "mode": "train", "passes": PASSES}, (x,))
    assert given(result.module, "eval", (x,)).shape == (2, 10)
    assert given(result.module, "train", (x,))._fields == ("logits", "aux_logits2", "aux_logits1")
    assert result.module.aux1.fc1.in_features == result.module.aux1.conv.conv.out_channels * 16 == 1024

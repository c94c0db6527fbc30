"""Plans in which readers select what they read: network slimming where norms stand before the convolutions."""

from __future__ import annotations

import copy

import numpy as np
import onnxruntime
import pytest
import torch
from nets import lively
from torch import nn

from prunec.compiler import compile
from prunec.compiler.errors import PassError
from prunec.compiler.groups.analysis import analyse
from prunec.compiler.ir.granularity import Granularity
from prunec.compiler.report.explain import explanation
from prunec.compiler.text.parser import from_text
from prunec.compiler.text.printer import to_text
from prunec.compiler.tracing.trace import trace
from prunec.models.densenet import densenet
from prunec.models.preact_resnet import preact_resnet
from prunec.passes.axes import Axes

IMAGE = (torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0)),)

SCALES = {"criterion": "bn_scale", "normalize": "none"}
"""One threshold for all scales, as in network slimming."""


def norms(model: nn.Module) -> list[nn.BatchNorm2d]:
    return [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]


def live(model: nn.Module) -> nn.Module:
    """The model with scales from 0 to 1, and other statistics that say something."""
    torch.manual_seed(0)
    model = lively(model).float()
    for norm in norms(model):
        nn.init.uniform_(norm.weight, -1, 1)
    return model.eval()


def plan(incoming=True, **select):
    return {
        "plan": 1,
        "passes": [
            {"axes": {"incoming": incoming}},
            {"score": SCALES},
            {"select": select},
            "shrink",
            {"fold_constants": "none"},
        ],
    }


def outputs(model: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model(*IMAGE)


@pytest.mark.parametrize(
    ("build", "readers"),
    [
        (lambda: preact_resnet(164, (4, 8, 16)), ["*.bn1", "bn"]),
        (lambda: preact_resnet(20), True),
        (lambda: densenet(40, growth=4, stem=8), ["*norm"]),
    ],
    ids=["preact164", "preact20", "dense40"],
)
def test_the_global_percentile_keeps_the_scales_above_it(build, readers):
    """|gamma| > t stays, with t the score at position int(total * 40%), over all scales: incoming and outgoing ones."""
    model = live(build())
    result = compile(model, plan(readers, ratio=0.4, scope="global"), IMAGE)
    scales = torch.cat([norm.weight.detach().abs() for norm in norms(model)])
    threshold = scales.sort().values[int(len(scales) * 0.4)]
    kept = {name: int((m.weight.abs() > threshold).sum()) for name, m in model.named_modules() if m in norms(model)}
    left = {name: m.num_features for name, m in result.module.named_modules() if isinstance(m, nn.BatchNorm2d)}
    assert left == {name: max(count, 1) for name, count in kept.items()}
    assert sum(kept.values()) == int((scales > threshold).sum()) == len(scales) - int(len(scales) * 0.4) - 1
    assert result.report["cost"]["after"]["macs"] < 0.6 * result.report["cost"]["before"]["macs"]


def test_a_channel_that_one_norm_has_shut_goes_for_its_reader_without_a_loss():
    model = live(preact_resnet(20))
    shut = {"layer1.1.bn1": [0, 3, 17, 63], "layer2.0.bn1": [5], "bn": list(range(0, 256, 2))}
    for name, channels in shut.items():
        norm = model.get_submodule(name)
        norm.weight.data[channels] = 0
        norm.bias.data[channels] = 0
    result = compile(model, plan(threshold=1e-9), IMAGE)
    assert result.module.get_submodule("layer1.1.bn1").num_features == 60
    assert result.module.get_submodule("layer1.1.conv1").in_channels == 60
    assert result.module.get_submodule("layer2.0.bn1").num_features == 63
    assert result.module.fc.in_features == 128
    assert result.module.get_submodule("layer1.0.conv3").out_channels == 64  # others read them
    got, want = outputs(result.module), outputs(model)
    assert ((got - want).abs().max() / want.abs().max()) < 1e-5


def test_a_channel_that_all_norms_have_shut_leaves_the_stream():
    model = live(preact_resnet(20))
    for name in ("layer3.1.bn1", "bn"):
        norm = model.get_submodule(name)
        norm.weight.data[[7, 8, 200]] = 0
        norm.bias.data[[7, 8, 200]] = 0
    result = compile(model, plan(threshold=1e-9), IMAGE)
    assert result.lock["removed"]["layer3.0.conv3.weight"] == {"0": [7, 8, 200]}
    assert result.lock["removed"]["layer3.0.shortcut.weight"] == {"0": [7, 8, 200]}
    assert result.lock["removed"]["layer3.1.conv3.weight"] == {"0": [7, 8, 200]}
    assert result.lock["removed"]["layer3.1.conv1.weight"] == {"1": [7, 8, 200]}
    assert "index_select" not in result.module.code  # nobody reads less than there is
    assert ((outputs(result.module) - outputs(model)).abs().max() / outputs(model).abs().max()) < 1e-5


def test_what_lies_together_is_a_slice():
    model = live(preact_resnet(20))
    first, last = list(range(16)), [0, 1, 14, 15]
    units = {
        "bn.incoming": first,
        "layer3.1.bn1.incoming": first,
        "layer1.0.bn1.incoming": last,
        "layer2.0.bn1.incoming": [3],
    }
    select = {"plan": 1, "passes": [{"axes": {"incoming": True}}, {"select": {"units": units}}, "shrink"]}
    code = compile(model, select, IMAGE).module.code
    assert code.count("torch.index_select(") == 1
    assert "[(slice(None, None, None), slice(2, 14, None))]" in code
    assert "= self.bn(add_5)" in code  # the last stream has lost what neither of its readers has kept


def test_the_lock_gives_the_same_model(tmp_path):
    model = live(densenet(10))
    result = compile(model, plan(ratio=0.5), IMAGE)
    result.save(tmp_path / "out")
    again = compile(model, tmp_path / "out" / "plan.lock.json", IMAGE)
    assert again.lock["hashes"] == result.lock["hashes"]
    assert again.lock["removed"] == result.lock["removed"]
    assert torch.equal(outputs(again.module), outputs(result.module))


def test_the_onnx_file_gathers_along_the_channels(tmp_path):
    model = live(preact_resnet(11))
    result = compile(model, {**plan(ratio=0.5), "export": ["onnx"]}, IMAGE)
    result.save(tmp_path / "out")
    session = onnxruntime.InferenceSession(str(tmp_path / "out" / "model.onnx"))
    (got,) = session.run(None, {session.get_inputs()[0].name: IMAGE[0].numpy()})
    want = outputs(result.module).numpy()
    assert np.abs(got - want).max() / np.abs(want).max() < 1e-5


def test_rounds_cut_the_same_readers_further():
    model = live(preact_resnet(11))
    rounds = {
        "plan": 1,
        "passes": [
            {"axes": {"incoming": True}},
            *("score", {"select": 0.25}, "shrink"),
            *("score", {"select": 0.5}, "shrink"),
        ],
    }
    module = compile(model, rounds, IMAGE).module
    # A share is one of the traced model's units, and one gather reads the stream itself.
    assert module.get_submodule("layer2.0.bn1").num_features == 32
    assert module.bn.num_features == 128
    assert module.code.count("index_select(") <= 7


def test_a_budget_counts_what_a_reader_no_longer_reads():
    model = live(preact_resnet(20))
    for budget in (0.3, 0.7):
        for method in ("ranking", "greedy", "knapsack"):
            select = {"budget": {"macs": budget}, "method": method, "multiple_of": 1}
            passes = [{"axes": {"incoming": True}}, {"score": "l1"}, {"select": select}, "shrink"]
            cost = compile(model, {"plan": 1, "passes": passes}, IMAGE).report["cost"]
            assert 0.75 * budget < cost["after"]["macs"] / cost["before"]["macs"] <= budget


@pytest.mark.parametrize("criterion", ["l1", "l2", "fpgm", "random", "bn_scale", "taylor", "taylor_weight", "oracle"])
def test_criteria_score_what_a_reader_selects(criterion):
    model = live(preact_resnet(11, (2, 4, 4)))
    labels = torch.tensor([1, 2])
    passes = [{"axes": {"incoming": True}}, {"score": criterion}, {"select": 0.5}, "shrink"]
    result = compile(model, {"plan": 1, "passes": passes}, IMAGE, data=[(IMAGE[0], labels)])
    assert result.module.get_submodule("layer2.0.bn1").num_features == 4
    assert result.module.bn.num_features == 8


def test_taylor_gates_stand_where_the_reader_reads():
    """A unit's score is the loss's first-order change when its reader alone loses the channel."""
    model = live(preact_resnet(11, (2, 4, 4)))
    labels = torch.tensor([1, 2])
    scored = {"plan": 1, "passes": [{"axes": {"incoming": True}}, {"score": "taylor"}]}
    program = compile(model, scored, IMAGE, data=[(IMAGE[0], labels)]).program
    scores = program.facts["scores"].losses or program.facts["scores"]
    twin = copy.deepcopy(model)
    gate = torch.ones(8, requires_grad=True)
    twin.layer2[0].bn1.register_forward_hook(lambda m, x, y: y * gate[:, None, None])
    nn.functional.cross_entropy(twin(*IMAGE), labels).backward()
    got = torch.from_numpy(np.asarray(scores["layer2.0.bn1.incoming"])).float()
    assert got.argsort().tolist() == gate.grad.abs().argsort().tolist()


# -- what is said of it ------------------------------------------------------------------------------------------------


def test_a_text_says_who_selects():
    program = trace(live(preact_resnet(11)), IMAGE).derive(granularity=Granularity(incoming=(("*.bn1", "own"),)))
    again = from_text(to_text(program))
    assert again.granularity == program.granularity
    assert list(analyse(again).groups) == list(analyse(program).groups)


@pytest.mark.parametrize(
    ("incoming", "message", "keys"),
    [
        (["*.bn7"], r"no reader that could select what it reads is called '\*.bn7'", ("incoming", 0)),
        (["*.bn1", "*.bn2"], "can't be own at layer1.0.bn2.incoming.*nobody else reads what it reads", ("incoming", 1)),
        ({"layer1.0.conv3": "own"}, "nobody else reads what it reads", ("incoming", "layer1.0.conv3")),
    ],
)
def test_patterns_that_name_no_reader_that_shares(incoming, message, keys):
    program = trace(live(preact_resnet(11)), IMAGE)
    with pytest.raises(PassError, match=message) as caught:
        Axes(incoming=incoming).check(program)
    assert caught.value.keys == keys


def test_a_network_without_shared_values_gets_a_note():
    chain = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 1)).eval()
    notes = Axes(incoming=True).remarks(trace(chain, IMAGE))
    assert [note.subject for note in notes] == ["incoming"]


def test_selecting_what_goes_by_itself_is_refused():
    passes = [{"axes": {"incoming": True}}, {"select": {"units": {"layer1.0.conv3": [1]}}}, "shrink"]
    with pytest.raises(PassError, match="goes by itself where no reader keeps it"):
        compile(live(preact_resnet(11)), {"plan": 1, "passes": passes}, IMAGE)


def test_an_explanation_tells_who_selects():
    program = trace(live(preact_resnet(11)), IMAGE).derive(granularity=Granularity(incoming=(("*.bn1", "own"),)))
    found = explanation(program, "layer2.0.bn1.incoming")["group"]
    assert found["writers"] == ["layer2.0.bn1.weight[0]"]
    assert found["readers"] == ["layer2.0.conv1.weight[1]"]
    shared = explanation(program)["groups"][0]
    assert shared["pinned"] == [{"reason": "is read whole at layer1_0_shortcut", "units": 16}]

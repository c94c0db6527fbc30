"""The lock: hashes of weights, what was removed, and whether a lock keeps its word."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from nets import program_of

from prunec.compiler import compile
from prunec.compiler.driver.lock import check_data, check_model, check_result, entry, removed, sha256_of, versions
from prunec.compiler.errors import ModelError, Span
from prunec.compiler.ir.program import Axis
from prunec.passes.select import Select
from prunec.passes.shrink import Shrink

WEIGHTS = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.tensor(3), "empty": torch.empty(0, 2), "c": torch.ones(2)}


OTHER_WEIGHTS = {
    "another value": {"c": torch.tensor([1.0, 2.0])},
    "another shape": {"a": torch.arange(6.0).reshape(3, 2)},
    "another type": {"c": torch.ones(2).view(torch.int32)},
    "another name": {"d": torch.ones(2)},
    "negative zero": {"a": torch.tensor([[-0.0, 1, 2], [3, 4, 5]])},
}


def test_the_hash_knows_no_order_and_no_strides():
    turned = {name: WEIGHTS[name] for name in reversed(WEIGHTS)} | {"a": WEIGHTS["a"].T.contiguous().T}
    assert sha256_of(turned) == sha256_of(WEIGHTS)
    assert len(sha256_of(WEIGHTS)) == 64


@pytest.mark.parametrize("change", OTHER_WEIGHTS.values(), ids=OTHER_WEIGHTS)
def test_the_hash_sees_every_change(change):
    assert sha256_of(WEIGHTS | change) != sha256_of(WEIGHTS)


def test_a_file_that_a_training_names_is_found_from_the_lock(tmp_path):
    (tmp_path / "plans").mkdir()
    (tmp_path / "plans/own.py").write_text("import torch\n\nclass Own(torch.optim.SGD):\n    pass\n")
    plan = {"plan": 1, "passes": [{"finetune": {"optimizer": "own.py:Own", "updates": 2}}]}
    (tmp_path / "plans/plan.yaml").write_text(json.dumps(plan))
    net = torch.nn.Sequential(torch.nn.Linear(4, 5), torch.nn.Linear(5, 3)).eval()
    x, data = torch.zeros(2, 4), [(torch.ones(6, 4), torch.arange(6) % 3)]
    result = compile(net, tmp_path / "plans/plan.yaml", (x,), data)
    result.save(tmp_path / "out")
    said = json.loads((tmp_path / "out/plan.lock.json").read_text())
    assert said["passes"][0]["finetune"]["optimizer"] == "../plans/own.py:Own"
    (tmp_path / "out").rename(tmp_path / "there")
    again = compile(net, tmp_path / "there/plan.lock.json", (x,), data)
    assert torch.equal(again.module.state_dict()["0.weight"], result.module.state_dict()["0.weight"])


def test_what_was_removed_is_numbered_as_in_the_original():
    before = program_of("grouped")
    grouped = Axis("g.weight", 1)
    gone = {Axis("a.weight", 0): [1, 3], grouped: [0, before.size(grouped) - 1], Axis("g.weight", 0): []}
    origin = {axis: np.setdiff1d(np.arange(before.size(axis)), lost) for axis, lost in gone.items()}
    after = before.derive(origin={**origin, Axis("gone.weight", 0): np.arange(1)})
    assert removed(before, after) == {
        "a.weight": {"0": [1, 3]},
        "g.weight": {"1": [0, before.size(grouped) - 1]},
    }


def test_a_pass_is_written_without_its_defaults():
    assert entry(Select(ratio=0.5)) == {"select": {"ratio": 0.5}}
    assert entry(Shrink()) == "shrink"


def test_a_lock_holds_for_its_weights_alone():
    program = program_of("chain")
    hashes = {"model": sha256_of(program.tensors), "result": sha256_of(program.tensors)}
    check_model(hashes, program, None)
    check_model(None, program, None)
    assert check_result(hashes, program) is None
    assert check_result(None, program) is None
    other = program_of("residual")
    with pytest.raises(ModelError, match="not those that the lock was made of") as caught:
        check_model(hashes, other, Span("plan.lock.json", 3, 1))
    assert caught.value.at is not None
    assert "result's weights differ" in (check_result(hashes, other) or "")


def test_a_lock_tells_that_its_data_have_changed():
    hashes = {"model": "m", "result": "r", "data": "abc"}
    assert check_data(hashes, "abc") is None
    assert "the data have changed since the lock was made" in (check_data(hashes, "def") or "")
    for known, data in ((None, "def"), ({"model": "m"}, "def"), (hashes, None)):
        assert check_data(known, data) is None


def test_versions_are_of_all_that_computes():
    found = versions()
    assert found["torch"] == torch.__version__.partition("+")[0]
    assert {"prunec", "python", "numpy"} <= found.keys()


def test_removed_positions_that_contradict_the_passes_are_told(tmp_path):
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2)).eval()
    plan = {"plan": 1, "passes": [{"score": "l1"}, {"select": "50%"}, "shrink"]}
    lock = compile(net, plan, (torch.rand(2, 4),)).lock
    assert compile(net, lock, (torch.rand(2, 4),)).findings.warnings == ()
    lock["removed"]["0.weight"]["0"] = [0]
    file = tmp_path / "plan.lock.json"
    file.write_text(json.dumps(lock, indent=1))
    (warning,) = compile(net, file, (torch.rand(2, 4),)).findings.warnings
    line = next(i for i, text in enumerate(file.read_text().splitlines(), 1) if '"0.weight"' in text)
    assert warning.startswith(f"{file}:{line}: 'removed' says other positions of 0.weight than the lock's passes")

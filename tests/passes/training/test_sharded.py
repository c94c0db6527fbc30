"""Parameters that are divided among processes: the engine's fsdp, here made to run on the CPU."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from several import batches
from training_nets import small

from prunec.compiler import compile
from prunec.compiler.errors import PassError
from prunec.passes.finetune import Finetune
from prunec.passes.training.sharded import check_sharded

SUPPORT = Path(__file__).parents[2] / "support"


def test_divided_parameters_train_as_whole_ones_and_momentum_goes_on(tmp_path):
    script = SUPPORT / "fsdp_on_cpu.py"
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", str(script), str(tmp_path)]
    done = subprocess.run(launcher, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    ours = batches(8)
    pairs = zip(ours[::2], ours[1::2], strict=True)
    doubled = [(torch.cat([x, u]), torch.cat([y, v])) for (x, y), (u, v) in pairs]
    options = {"updates": 8, "lr": 0.1, "batch_norm": "freeze", "seed": 1, "schedule": "constant"}
    plan = {"plan": 1, "train": {"accelerator": "cpu"}, "passes": [{"finetune": options}]}
    wanted = compile(small(), plan, (torch.zeros(2, 3, 6, 6),), doubled).module.state_dict()
    for rank in range(2):
        found = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        assert found.keys() == wanted.keys()
        for name, tensor in wanted.items():
            assert torch.allclose(found[name].double(), tensor.double(), atol=1e-6), name


@pytest.mark.parametrize(
    ("options", "beside", "said"),
    [
        ({"early_stop": 2}, False, "'early_stop' needs whole parameters"),
        ({"keep": "best"}, False, "'keep' needs whole parameters"),
        ({}, True, "what this pass does beside the steps needs whole parameters"),
    ],
)
def test_what_reads_whole_parameters_is_refused_where_they_are_divided(options, beside, said):
    with pytest.raises(PassError, match=said):
        check_sharded(Finetune.model_validate(options), beside)
    with pytest.raises(PassError, match="holding the zeros that `block` has set needs whole parameters"):
        check_sharded(Finetune(), beside=False, masked=True)
    check_sharded(Finetune(), beside=False)

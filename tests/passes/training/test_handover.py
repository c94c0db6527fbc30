"""Values that go to another process: functions of files by their place, everything else as pickle has it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from prunec.compiler.driver.load import import_file
from prunec.passes.training import handover

FILE = """
class Scale:
    def __init__(self, by): self.by = by
    def __call__(self, x): return x * self.by

def twice(x): return 2 * x
"""

READ = """
import sys
from pathlib import Path
from prunec.passes.training import handover
function, scale = handover.read(Path(sys.argv[1]))
print(function(4), scale(4))
"""


def test_another_process_runs_the_file_that_a_function_is_from(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(FILE)
    first = import_file(path)
    import_file(path)  # the function of an older module of the same file goes, too
    handover.write((first.twice, first.Scale(3)), tmp_path / "value.pt")
    command = [sys.executable, "-c", READ, str(tmp_path / "value.pt")]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "8 12\n"


def test_a_function_of_the_script_that_runs_is_found_in_its_file(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "from pathlib import Path\nfrom prunec.passes.training import handover\n"
        "def twice(x): return 2 * x\n"
        "class Scale:\n    def __call__(self, x): return 5 * x\n"
        f"if __name__ == '__main__':\n    handover.write((twice, Scale()), Path({str(tmp_path / 'value.pt')!r}))\n"
    )
    subprocess.run([sys.executable, str(script)], check=True)
    command = [sys.executable, "-c", READ, str(tmp_path / "value.pt")]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "8 20\n"


@pytest.mark.parametrize("value", [lambda x: x, {"a": [lambda x: x]}], ids=["itself", "within"])
def test_what_no_process_can_find_is_refused(tmp_path: Path, value):
    with pytest.raises(handover.CantGo):
        handover.write(value, tmp_path / "value.pt")
    with pytest.raises(Exception, match="lambda"):
        handover.check(value)


def test_tensors_that_share_their_values_still_do(tmp_path):
    whole = torch.arange(6.0)
    handover.write((whole, whole[2:4]), tmp_path / "value.pt")
    again, part = handover.read(tmp_path / "value.pt")
    part.zero_()
    assert again.tolist() == [0, 1, 0, 0, 4, 5]

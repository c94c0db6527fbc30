"""MNN's converter starts no process and opens no connection, whatever its package would like to do."""

from __future__ import annotations

import pytest

from prunec.compiler.errors import TargetError
from prunec.compiler.targets import mnn_convert
from prunec.compiler.targets.child import in_child

WISHES = {
    "a process": "import subprocess; subprocess.run(['pip', 'install', 'something'])",
    "a shell": "import os; os.system('true')",
    "a connection": "import socket; socket.create_connection(('192.0.2.1', 80), timeout=1)",
    "a name's address": "import socket; socket.getaddrinfo('example.org', 80)",
    "a page": "import urllib.request; urllib.request.urlopen('http://192.0.2.1/', timeout=1)",
}


@pytest.mark.parametrize("wish", WISHES)
def test_what_a_converter_has_no_business_with_is_refused(tmp_path, monkeypatch, wish):
    (tmp_path / "_tools.py").write_text(f"def mnnconvert(args):\n    {WISHES[wish]}\n", encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(TargetError, match="it fails: PermissionError: a converter of models has no business"):
        in_child(f"{mnn_convert.__name__}:convert", "model.onnx", "model.mnn", what="it")


def test_the_compiled_converter_is_called_and_none_of_its_wrappers(tmp_path, monkeypatch):
    told = "import sys; print(*args); print('MNN' in sys.modules, 'MNN.tools' in sys.modules)"
    (tmp_path / "_tools.py").write_text(f"def mnnconvert(args):\n    {told}\n", encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    printed = in_child(f"{mnn_convert.__name__}:convert", "model.onnx", "model.mnn").log.split()
    assert printed[:3] == ["mnnconvert", "-f", "ONNX"]
    assert printed[-2:] == ["False", "False"]

"""Files of measured times: whole whoever writes at once, and where they lie."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from prunec.compiler.cost.latency.cache import Cache, cache_folder
from prunec.compiler.errors import OutputError


def test_processes_that_write_at_once_leave_whole_files(folder):
    cache = Cache(folder)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda n: cache.store({"a": 1}, [float(n)] * 1000), range(64)))
    found = cache.load({"a": 1})
    assert len(found) == 1000
    assert len(set(found)) == 1
    assert len(list(folder.iterdir())) == 1


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match=r"can't keep measured times in .*file") as caught:
        Cache(tmp_path / "file" / "inside").store({"a": 1}, 1)
    assert "PRUNEC_CACHE_DIR" in caught.value.hint


def test_where_times_are_kept(monkeypatch, tmp_path):
    assert cache_folder() == tmp_path / "times"
    monkeypatch.delenv("PRUNEC_CACHE_DIR")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "prunec"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr("sys.platform", "linux")
    assert cache_folder() == tmp_path / ".cache" / "prunec"

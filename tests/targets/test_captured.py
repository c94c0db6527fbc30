"""What is printed in a block is held back, whoever prints it; what other threads print isn't."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import threading
import warnings

import pytest

from prunec.compiler.targets.captured import KEPT, captured


def test_streams_descriptors_and_warnings_are_held_back(capfd):
    handler = logging.StreamHandler(open(2, "w", encoding="utf-8", closefd=False))  # noqa: SIM115
    with captured() as log:
        sys.stdout.write("out\n")
        sys.stderr.write("err\n")
        os.write(1, b"one\n")
        os.write(2, b"two \xff\n")
        handler.emit(logging.makeLogRecord({"msg": "logged"}))
        warnings.warn("a warning", stacklevel=1)
    assert sorted(log.text.splitlines()) == ["err", "logged", "one", "out", "two \ufffd"]
    assert "a warning" not in log.text
    sys.stdout.write("after\n")
    os.write(2, b"behind\n")
    assert capfd.readouterr() == ("after\n", "behind\n")


def test_other_threads_print_where_they_always_do(capfd):
    with captured() as log:
        thread = threading.Thread(target=lambda: sys.stderr.write("progress\n"))
        thread.start()
        thread.join()
        sys.stderr.write("converter\n")
    assert log.text == "converter"
    assert capfd.readouterr().err == "progress\n"


def test_a_second_thread_that_holds_back_waits_for_the_first(capfd):
    inside, order = threading.Event(), []

    def second():
        inside.wait()
        with captured() as log:
            order.append("second")
            os.write(1, b"second\n")
        order.append(log.text)

    thread = threading.Thread(target=second)
    thread.start()
    with captured() as log:
        inside.set()
        thread.join(0.2)
        os.write(1, b"first\n")
        order.append("first")
    thread.join()
    assert order == ["first", "second", "second"]
    assert log.text == "first"
    os.write(1, b"behind\n")
    sys.stdout.write("after\n")
    assert sorted(capfd.readouterr().out.split()) == ["after", "behind"]


def test_a_process_without_streams_needs_none():
    code = (
        "import os, sys; from prunec.compiler.targets.captured import captured\n"
        "with captured() as log: os.write(1, b'held'); print('shown to nobody')\n"
        "sys.stderr.write(f'{sys.stdout} {log.text}')\n"
    )
    found = subprocess.run(
        f'"{sys.executable}" -c "$CODE" >&-',
        shell=True,
        env={**os.environ, "CODE": code},
        capture_output=True,
        text=True,
    )
    assert (found.returncode, found.stderr) == (0, "None held")


def test_the_end_of_much_is_kept_and_an_error_passes():
    logs = []

    def fails():
        with captured() as log:
            logs.append(log)
            sys.stdout.write("x" * 10 * KEPT + "end")
            raise ValueError("stop")

    with pytest.raises(ValueError, match="stop"):
        fails()
    assert len(logs[0].text) == KEPT
    assert logs[0].text.endswith("xend")


def test_no_descriptor_is_left_open():
    before = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0
    for _ in range(20):
        with captured():
            os.write(1, b"x")
    assert not before or len(os.listdir("/proc/self/fd")) <= before + 1

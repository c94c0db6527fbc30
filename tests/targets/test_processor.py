"""The processor has a name."""

from __future__ import annotations

from prunec.compiler.targets.processor import processor


def test_a_processor_has_a_name():
    assert processor()

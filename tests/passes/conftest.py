"""Two small networks, traced once for each file of tests."""

from __future__ import annotations

import pytest
from calibrating import DATA, Chain, Stream, lively, program_of


@pytest.fixture(scope="module")
def chain():
    return lively(Chain())


@pytest.fixture(scope="module")
def program(chain):
    return program_of(chain, DATA)


@pytest.fixture(scope="module")
def stream():
    return program_of(lively(Stream()), DATA)

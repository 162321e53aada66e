"""The faults that the laws are checked with stand where they are said to: a moved line must not end that check."""

import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FAULTS = runpy.run_path(str(ROOT / "benchmarks" / "planted_faults.py"))["FAULTS"]


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault[5])
def test_the_line_to_spoil_is_there_once(fault):
    _, file, line, spoilt, tests, _ = fault
    assert (ROOT / "src" / "suffuse" / file).read_text().count(line) == 1
    assert spoilt != line
    assert all((ROOT / "tests" / word).exists() for word in tests.split() if word.endswith(".py"))

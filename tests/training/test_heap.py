"""The memory of freed tensors is kept while a model is trained, and handed back afterwards."""

import ctypes
import json
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or not hasattr(ctypes.CDLL(None), "mallopt"), reason="only glibc's heap can be told"
)

# In a process of its own: in one whose heap has holes, a tensor may find one of them.
SCRIPT = """
import contextlib, json, os, resource, torch
from suffuse.training.heap import keeping_heap

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(3):
        torch.ones(2**25)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

cpu, seen = torch.device("cpu"), {}
faults()
seen["loose"] = faults()
with keeping_heap(torch.device("cuda")):
    seen["another device"] = faults()
with keeping_heap(cpu):
    faults()
    seen["kept"] = faults()
    with keeping_heap(cpu):
        faults()
    faults()
    seen["kept after a block within"] = faults()
seen["afterwards"] = faults()
with contextlib.suppress(RuntimeError), keeping_heap(cpu):
    raise RuntimeError
seen["after an error"] = faults()
os.environ["MALLOC_TRIM_THRESHOLD_"] = "1"
with keeping_heap(cpu):
    faults()
    seen["told by the user"] = faults()
print(json.dumps(seen))
"""


@pytest.fixture(scope="module")
def seen():
    """Pages that the system has handed out for a tensor of 128 MB that is made and freed three times, by situation."""
    return json.loads(subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True).stdout)


@pytest.mark.parametrize("when", ["kept", "kept after a block within"])
def test_a_large_tensor_takes_the_place_of_the_last(seen, when):
    assert seen[when] < 0.1 * seen["loose"]


@pytest.mark.parametrize("when", ["another device", "afterwards", "after an error", "told by the user"])
def test_and_elsewhere_it_does_not(seen, when):
    assert seen[when] > 0.5 * seen["loose"]

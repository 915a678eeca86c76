"""Memory that a process keeps: measured in a process of its own, by the pages it has to fetch."""

from __future__ import annotations

import json
import platform
import subprocess
import sys

import pytest
import torch

from methods.training import heap

_PASSES = """
import json, resource, sys, torch
from methods.training import heap

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(5):
        torch.ones(10_000_000)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

by_itself = faults()
kept = heap.keep_freed_memory(torch.device("cpu"))
# An aligned block does not fit where one of its size was; soon there is room between two of them.
for _ in range(5):
    faults()
print(json.dumps([by_itself, kept, faults()]))
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
def test_large_tensors_take_no_new_pages_once_memory_is_kept() -> None:
    done = subprocess.run([sys.executable, "-c", _PASSES], capture_output=True, text=True, check=True)
    by_itself, kept, afterwards = json.loads(done.stdout)
    assert kept
    # 40 MB are 9,766 pages of 4 KiB; where the system gives out huge pages, some of 2 MiB.
    assert by_itself >= 5 * 20
    assert afterwards < by_itself / 10


def test_other_c_libraries_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "libc_ver", lambda: ("", ""))
    heap._kept.cache_clear()
    try:
        assert not heap.keep_freed_memory(torch.device("cpu"))
    finally:
        heap._kept.cache_clear()


def test_only_memory_of_the_cpu_is_concerned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heap, "_kept", lambda: pytest.fail("asked the C library"))
    assert not heap.keep_freed_memory(torch.device("cuda"))

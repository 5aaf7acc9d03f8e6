"""Freed memory is there for the next step without a page fault, and goes back to the system behind the last one."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

MEASURED = """
import resource
import torch
from tunesmith.model.freed_memory import freed_memory_kept

def faults_of_a_step():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    large, small = torch.empty(15 * 2**20), [torch.empty(2**20) for _ in range(8)]
    for tensor in (large, *small):
        tensor.zero_()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

def held():
    with open("/proc/self/statm") as sizes:
        return int(sizes.read().split()[1]) * resource.getpagesize()

faults_of_a_step()
outside = faults_of_a_step()
with freed_memory_kept("cpu"):
    faults_of_a_step()
    inside, most = faults_of_a_step(), held()
print(outside, inside, most - held())
"""
"""92 MiB a step: pages of 4 KiB would be 23,000."""

pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="this system's C library is not glibc")


def measured(**variables: str) -> list[int]:
    environment = os.environ | {"THP_MEM_ALLOC_ENABLE": "0"} | variables
    ran = subprocess.run([sys.executable, "-c", MEASURED], env=environment, capture_output=True, text=True, check=True)
    return [int(number) for number in ran.stdout.split()]


def test_the_second_step_meets_no_new_page_and_all_goes_back_afterwards() -> None:
    outside, inside, given_back = measured()
    assert outside > 10_000
    assert inside < outside / 10
    assert given_back > 80 * 2**20


@pytest.mark.parametrize(
    "variables",
    [{"MALLOC_TRIM_THRESHOLD_": "131072"}, {"GLIBC_TUNABLES": "glibc.malloc.mmap_threshold=131072"}],
    ids=["MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES"],
)
def test_who_has_told_glibc_what_to_do_is_obeyed(variables: dict[str, str]) -> None:
    outside, inside, *_ = measured(**variables)
    assert min(outside, inside) > 10_000

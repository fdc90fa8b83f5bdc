"""A program's temporary memory is kept between its runs, and given back when asked for."""

from __future__ import annotations

import json
import platform
import subprocess
import sys

import numpy as np
import pytest

from drifa_jax.cpu.memory import KeptMemory

MEASUREMENTS = """
import json, resource
import jax, jax.numpy as jnp
import numpy as np
from drifa_jax.cpu.memory import KeptMemory, run_programs_in_the_calling_thread

run_programs_in_the_calling_thread()

def program(i):
    return jnp.sum(jnp.zeros(2**25).at[i].set(i + 1.0))

def new_pages():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1])

i = jnp.int32(5)
compiled = jax.jit(program).lower(i).compile()
size = compiled.memory_analysis().temp_size_in_bytes
found = {"temporary": size // 4096, "without": [], "kept": [], "values": []}
for _ in range(3):
    before = new_pages()
    compiled(i).block_until_ready()
    found["without"].append(new_pages() - before)
memory, alive = KeptMemory(size), []
for number in range(8):
    before = new_pages()
    found["values"].append(float(memory.run(compiled, i)))
    found["kept"].append(new_pages() - before)
    alive.append(np.empty(100_000 * number + 10))
def failing(i):
    alive.append(np.zeros(1000))
    raise ArithmeticError
try:
    memory.run(failing, i)
except ArithmeticError:
    found["raised"] = True
before = resident()
memory.give_back()
found["returned"] = before - resident()
found["after"] = [float(memory.run(compiled, i)) for _ in range(2)]
print(json.dumps(found))
"""

glibc_only = pytest.mark.skipif(
    platform.libc_ver()[0] != "glibc", reason="only glibc's memory can be kept"
)


@pytest.fixture(scope="module")
def found():
    """What a process of its own measured, in pages; here JAX runs programs in other threads."""
    run = [sys.executable, "-c", MEASUREMENTS]
    return json.loads(subprocess.run(run, check=True, capture_output=True, text=True).stdout)


@glibc_only
def test_every_run_touches_new_pages_unless_memory_is_kept(found):
    assert min(found["without"]) > 0.9 * found["temporary"]


@glibc_only
def test_kept_memory_is_touched_once(found):
    # The process makes other allocations too, and a place may be lost in the first runs.
    assert sorted(found["kept"])[4] < 0.02 * found["temporary"]
    assert sum(found["kept"][-3:]) < 0.1 * found["temporary"]


@glibc_only
def test_memory_is_given_back_when_asked_for(found):
    assert found["returned"] > 0.9 * found["temporary"]


@glibc_only
def test_kept_memory_changes_no_value_before_and_after_it_was_given_back(found):
    assert found["values"] == [6.0] * 8
    assert found["after"] == [6.0] * 2


@glibc_only
def test_an_error_of_the_program_passes_through(found):
    assert found["raised"]


def test_nothing_is_kept_where_programs_run_in_another_thread(monkeypatch):
    monkeypatch.setattr("drifa_jax.cpu.memory._dispatches_to_another_thread", lambda: True)
    memory = KeptMemory(2**40)  # more than there is
    assert memory.run(np.add, np.int32(1), np.int32(2)) == 3
    memory.give_back()


@glibc_only
def test_memory_that_cannot_be_reserved_costs_nothing(monkeypatch):
    monkeypatch.setattr("drifa_jax.cpu.memory._dispatches_to_another_thread", lambda: False)
    memory = KeptMemory(2**62)
    assert [memory.run(np.add, np.int32(1), np.int32(2)) for _ in range(2)] == [3, 3]
    memory.give_back()

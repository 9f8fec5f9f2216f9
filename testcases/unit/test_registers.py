# SPDX-License-Identifier: GPL-2.0-or-later
"""What QEMU says of all registers, taken from a guest of two vCPUs, of which one slept."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lab.guest.registers import VcpuRegisters, parse_registers

TEXT = (Path(__file__).parent / "data/registers.txt").read_text()


def test_each_vcpu_is_read() -> None:
    assert parse_registers(TEXT) == (
        VcpuRegisters(vcpu=0, rip=0xFFFF_FFFF_8135_7CC3, halted=True, interrupts=True),
        VcpuRegisters(vcpu=1, rip=0xFFFF_FFFF_8116_0E31, halted=False, interrupts=False),
    )


def test_a_vcpu_that_was_never_started_is_read() -> None:
    line = "EIP=000fd09a EFL=00000002 [-------] CPL=0 II=0 A20=1 SMM=0 HLT=1"
    (seen,) = parse_registers(f"CPU#0\nEAX=00000000 EBX=00000000\n{line}\n")
    assert seen == VcpuRegisters(vcpu=0, rip=0xFD09A, halted=True, interrupts=False)


@pytest.mark.parametrize("cut", range(0, 6_000, 97))
def test_text_that_was_cut_gives_whole_vcpus_only(cut: int) -> None:
    assert parse_registers(TEXT[:cut]) in (parse_registers(TEXT)[:count] for count in range(3))


@given(st.text(alphabet="CPU#01RIP=FLHT abcdef[]\n", max_size=300))
def test_nonsense_gives_nothing_wrong(text: str) -> None:
    assert all(0 <= seen.rip < 2**64 for seen in parse_registers(text))

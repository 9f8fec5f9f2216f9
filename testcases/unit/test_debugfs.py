# SPDX-License-Identifier: GPL-2.0-or-later
"""What the guest's files are read as: the kernel's own form and nothing near it, however hostile the text."""

import contextlib
from collections.abc import Callable

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lab.errors import EvidenceError
from lab.evidence.debugfs import parse_cpu_list, parse_ledger, parse_nmi_row, parse_revisions, parse_state

#: Of Linux 6.1 with CPUs 1 and 3 offline; grep shows other lines that hold "CPU", too.
INTERRUPTS = """\
           CPU0       CPU2
 NMI:          5         40   Non-maskable interrupts
"""
INTERRUPTS_OF_ALL = """\
            CPU0       CPU1
  24:          0          0   PCI-MSI 16384-edge      CPU0
 NMI:         10          3   Non-maskable interrupts
"""
STATE = """\
load=3 mechanism=nmi-self tsc_khz=2000000 callers_left=0
cpu=0 role=primary arrival_tsc=1 wait_begin_tsc=2 wait_end_tsc=9 update_begin_tsc=3 update_end_tsc=8 \
result=0 revision=0x2
cpu=1 role=none arrival_tsc=0 wait_begin_tsc=0 wait_end_tsc=0 update_begin_tsc=0 update_end_tsc=0 \
result=-1 revision=0x1
"""
LEDGER = """\
cpu=0 nmi_ordinary=5 nmi_consumed=1 nmi_self_sent=2 nmi_dropped=4
cpu=1 nmi_ordinary=0 nmi_consumed=0 nmi_self_sent=0 nmi_dropped=0
"""

PARSERS: tuple[Callable[[str, int], object], ...] = (
    parse_state,
    parse_ledger,
    parse_nmi_row,
    parse_revisions,
    parse_cpu_list,
)


@pytest.mark.parametrize(
    ("text", "counts"),
    [
        (INTERRUPTS, (5, -1, 40, -1)),
        (INTERRUPTS_OF_ALL, (10, 3, -1, -1)),
        ("CPU3\nNMI: 7\n", (-1, -1, -1, 7)),
        (f"CPU0\nNMI: {2**64 - 1} x", (2**64 - 1, -1, -1, -1)),
    ],
)
def test_nmis_are_read_by_the_names_of_the_head(text: str, counts: tuple[int, ...]) -> None:
    assert parse_nmi_row(text, 4) == counts


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "no row NMI"),
        ("CPU0 CPU1\n", "no row NMI"),
        ("NMI: 1 2\n", "no row NMI"),
        ("CPU0 CPU1\nNMI: 1 Non-maskable interrupts\n", "no row NMI"),
        # Nobody can say which two of three CPUs the head leaves out.
        ("CPU0 CPU1\nNMI: 1 2 3 Non-maskable interrupts\n", "no row NMI"),
        ("CPU0 CPU1\nNMI: 1 -2 Non-maskable interrupts\n", "no row NMI"),
        ("CPU0 CPU1\nNMI: 1 0x2 Non-maskable interrupts\n", "no row NMI"),
        ("CPU0 CPU1\nNMI: 1 \u0663 Non-maskable interrupts\n", "no row NMI"),
        (f"CPU0\nNMI: {2**64}\n", "no row NMI"),
        (f"CPU0\nNMI: {'9' * 5_000}\n", "no row NMI"),
        (f"CPU{'9' * 5_000}\nNMI: 1\n", "no row NMI"),
        ("CPU0 CPU0\nNMI: 1 2 Non-maskable interrupts\n", "twice"),
    ],
    ids=lambda value: value[:40],
)
def test_a_row_that_may_be_misread_is_refused(text: str, said: str) -> None:
    with pytest.raises(EvidenceError, match=said):
        parse_nmi_row(text, 4)


def test_revisions_are_read_in_the_order_of_the_cpus() -> None:
    assert parse_revisions("0x2\n-1\n0xffffffff\n0x0\n", 4) == (2, -1, 0xFFFF_FFFF, 0)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "0x2\n0x2\n0x2\n",
        # A file of two lines would shift all that follow.
        "0x2\n0x2\n0x2\n0x2\n0x2\n",
        "0x2\n2\n0x2\n0x2\n",
        "0x2\n-2\n0x2\n0x2\n",
        "0x2\n0123\n0x2\n0x2\n",
        "0x2\n0x100000000\n0x2\n0x2\n",
        "0x2\n0x\n0x2\n0x2\n",
        "0x2\ncat:\n0x2\n0x2\n",
        f"0x2\n0x{'f' * 5_000}\n0x2\n0x2\n",
    ],
    ids=lambda text: text[:20],
)
def test_what_are_not_so_many_revisions_is_refused(text: str) -> None:
    with pytest.raises(EvidenceError, match="not 4 numbers"):
        parse_revisions(text, 4)


@pytest.mark.parametrize(
    ("text", "cpus"),
    [("0\n", (0,)), ("0-3\n", (0, 1, 2, 3)), ("0,2\n", (0, 2)), ("2,0-1\n", (0, 1, 2)), ("00-3", (0, 1, 2, 3))],
)
def test_lists_of_cpus_are_read(text: str, cpus: tuple[int, ...]) -> None:
    assert parse_cpu_list(text, 4) == cpus


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("\n", "form"),
        ("0,\n", "form"),
        ("0-\n", "form"),
        ("-1\n", "form"),
        ("0-3:1/2\n", "form"),
        ("0 1\n", "form"),
        ("\u0660\n", "form"),
        (f"{'0' * 5_000}\n", "form"),
        ("0-4\n", "names 0 to 4: the guest has 4"),
        ("4\n", "names 4 to 4"),
        ("3-1\n", "names 3 to 1"),
        ("0-99999\n", "names 0 to 99999"),
    ],
    ids=lambda value: value[:20],
)
def test_what_is_no_list_of_the_guests_cpus_is_refused(text: str, said: str) -> None:
    with pytest.raises(EvidenceError, match=said):
        parse_cpu_list(text, 4)


def test_state_and_ledger_are_read() -> None:
    state, ledger = parse_state(STATE, 2), parse_ledger(LEDGER, 2)

    assert (state.load, state.mechanism, state.tsc_khz, state.callers_left) == (3, "nmi-self", 2_000_000, 0)
    assert [(cpu.cpu, cpu.role, cpu.wait_end_tsc, cpu.result, cpu.revision) for cpu in state.cpus] == [
        (0, "primary", 9, 0, 2),
        (1, "none", 0, -1, 1),
    ]
    assert [(each.cpu, each.ordinary, each.consumed, each.self_sent, each.dropped) for each in ledger] == [
        (0, 5, 1, 2, 4),
        (1, 0, 0, 0, 0),
    ]


@pytest.mark.parametrize("number", ["05", "-05", "0X2", "1e3", "9" * 21, str(2**64), str(-(2**63) - 1), "", "--1"])
def test_a_number_that_no_kernel_prints_is_refused(number: str) -> None:
    with pytest.raises(EvidenceError, match=r"ledger line 1 .*nmi_ordinary|ledger line 1 is not of"):
        parse_ledger(LEDGER.replace("nmi_ordinary=5", f"nmi_ordinary={number}"), 2)
    with pytest.raises(EvidenceError, match=r"state line 2 .*arrival_tsc|state line 2 is not of"):
        parse_state(STATE.replace("arrival_tsc=1", f"arrival_tsc={number}"), 2)


#: Pieces of the real files and of what a hostile guest would put in their place.
PIECES = st.sampled_from(
    [
        *("0", "1", "-1", "00", "0123", "0x", "0xf", "9" * 22, "CPU0", "CPU1", "NMI:", "cpu=0", "cpu=1", "-", ","),
        *("\n", " ", "\x1c", "\u2028"),
        *STATE.split(),
        *LEDGER.split(),
    ]
)


@settings(max_examples=300, deadline=None)
@given(text=st.one_of(st.lists(st.one_of(PIECES, st.just("\n"))).map(" ".join), st.text(max_size=30)), cpus=st.just(2))
def test_hostile_text_is_evidence_or_refused_and_nothing_else(text: str, cpus: int) -> None:
    for parse in PARSERS:
        # What is kept must go into the evidence folder, whose numbers have 64 bits.
        with contextlib.suppress(EvidenceError):
            msgspec.json.encode(parse(text, cpus))


@settings(max_examples=300, deadline=None)
@given(data=st.data(), number=st.one_of(st.integers(), st.text("0123456789abcdefx-", max_size=25)))
def test_numbers_of_any_length_are_evidence_or_refused(data: st.DataObject, number: int | str) -> None:
    parse, text = data.draw(
        st.sampled_from(
            [
                (parse_state, STATE),
                (parse_ledger, LEDGER),
                (parse_nmi_row, INTERRUPTS_OF_ALL),
                (parse_revisions, "0x1\n0x1"),
            ]
        )
    )
    old = data.draw(st.sampled_from(["=1", "=2", "=0", "10 ", "0x1"]))
    with contextlib.suppress(EvidenceError):
        msgspec.json.encode(parse(text.replace(old, f"={number}" if "=" in old else f"{number} "), 2))

# SPDX-License-Identifier: GPL-2.0-or-later
"""Places found by disassembly: in functions made for the case, and the errors that name what was not found."""

import struct
import sys

import msgspec
import pytest

from lab.errors import UsageError
from lab.kernelimage.code_ranges import find_places, find_stretch
from lab.kernelimage.landmarks import BACKTRACE, NMI_HANDLER, find_landmarks, make_symboliser
from lab.kernelimage.vmlinux import Function, Kernel, Object
from lab.mechanisms.code_places import Call, Copied, CopiedStretch, Copies, Path, Return
from lab.mechanisms.mechanism import Landmarks, Mechanism
from lab.mechanisms.table import MECHANISMS

BASE = 0xFFFFFFFF81000000
RET = b"\xc3"
TEST_AL = b"\x84\xc0"
CALL_POINTER = b"\xff\x50\x30"  # call *0x30(%rax)
WRMSR_79 = b"\xb9\x79\x00\x00\x00\x0f\x30"
#: Names of the functions in order, 64 bytes apart.
NAMES = ("check", "wait.constprop.0", "panic", "outer", "asm_exc_nmi", "tail", "table")


def start_of(name: str) -> int:
    return BASE + 64 * NAMES.index(name)


class _Code:
    """One function as it grows."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.data = b""

    @property
    def here(self) -> int:
        return start_of(self.name) + len(self.data)

    def put(self, data: bytes) -> int:
        at = self.here
        self.data += data
        return at

    def call(self, name: str, opcode: bytes = b"\xe8") -> int:
        return self.put(opcode + struct.pack("<i", start_of(name) - self.here - 5))

    def jne(self, over: int) -> int:
        """Jump over so many bytes behind this instruction."""
        return self.put(b"\x75" + bytes([over]))


def make_kernel(*objects: Object, **codes: bytes) -> Kernel:
    text = b""
    for name in NAMES:
        text += codes.get(name.split(".")[0], RET).ljust(64, b"\x90")
    functions = tuple(
        Function(name, start_of(name), start_of(name) + len(codes.get(name.split(".")[0], RET))) for name in NAMES
    )
    return Kernel(functions, {BASE: text}, objects)


def make_outer() -> tuple[bytes, dict[str, int]]:
    """Make ``if (!wait()) return; while (check()) pause; panic(); -> release``, with the ways crossed as gcc does."""
    outer, at = _Code("outer"), {}
    outer.put(b"\x53")  # push
    at["wait"] = outer.call("wait.constprop.0")
    at["waited"] = outer.put(TEST_AL)
    outer.jne(2)
    at["timeout"] = outer.put(b"\x5b" + RET)
    at["check"] = outer.call("check")
    at["checked"] = outer.put(TEST_AL)
    outer.jne(5)
    at["panic"] = outer.call("panic")
    at["pointer"] = outer.put(CALL_POINTER)
    at["released"] = outer.put(b"\x5b" + RET)
    return outer.data, at


def test_calls_and_their_returns_are_found_also_of_clones_and_through_pointers() -> None:
    code, at = make_outer()
    kernel = make_kernel(outer=code)

    assert find_places(kernel, "outer") == (start_of("outer"),)
    assert find_places(kernel, "wait") == (start_of("wait.constprop.0"),)
    assert find_places(kernel, Call("wait", ("inlined_away", "outer"))) == (at["wait"],)
    assert find_places(kernel, Return(Call("wait", ("outer",)))) == (at["waited"],)
    assert find_places(kernel, Call("", ("outer",))) == (at["pointer"],)
    assert find_places(kernel, Return(Call("", ("outer",)))) == (at["released"],)
    assert find_places(kernel, Return(Call("check", ("outer",)))) == (at["checked"],)


def test_a_path_holds_what_leads_to_its_end_and_nothing_else() -> None:
    code, at = make_outer()
    kernel = make_kernel(outer=code)
    path = Path(Return(Call("wait", ("outer",))), Call("check", ("outer",)))

    assert find_stretch(kernel, path) == ((at["waited"], at["timeout"]), (at["check"], at["checked"]))
    assert find_stretch(kernel, "wait") == ((start_of("wait.constprop.0"), start_of("wait.constprop.0") + 1),)


def test_behind_a_panic_no_way_goes_on() -> None:
    code, _ = make_outer()
    kernel = make_kernel(outer=code)

    with pytest.raises(UsageError, match="no way leads from 'panic' to 'check'"):
        find_stretch(kernel, Path(Return(Call("panic", ("outer",))), Call("check", ("outer",))))


def test_a_call_as_the_last_thing_is_found_and_has_no_return() -> None:
    tail = _Code("tail")
    tail.put(b"\x90")
    at = tail.call("wait.constprop.0", b"\xe9")
    kernel = make_kernel(tail=tail.data)

    assert find_places(kernel, Call("wait", ("tail",))) == (at,)
    with pytest.raises(UsageError, match="the call to 'wait' does not return to 'tail'"):
        find_places(kernel, Return(Call("wait", ("tail",))))


def test_a_jump_through_a_pointer_is_no_call_and_stops_the_search() -> None:
    table = _Code("table")
    table.call("wait.constprop.0")
    table.put(b"\xff\xe0")  # jmp *%rax
    table.call("check")
    kernel = make_kernel(table=table.data)

    with pytest.raises(UsageError, match="'table' has 0 calls through a pointer: one was looked for"):
        find_places(kernel, Call("", ("table",)))
    with pytest.raises(UsageError, match="'table' jumps through a pointer"):
        find_stretch(kernel, Path(Return(Call("wait", ("table",))), Call("check", ("table",))))


@pytest.mark.parametrize(
    ("place", "sentence"),
    [
        (Call("wait", ("gone", "away")), "none of the functions gone, away is in this kernel"),
        (Call("wait", ("check",)), "'check' has 0 calls to 'wait': one was looked for"),
        (Call("wayt", ("outer",)), "landmark 'wayt' is not in this kernel"),
        ("nowhere", "landmark 'nowhere' is not in this kernel"),
    ],
)
def test_a_place_that_is_not_there_is_named(place: str | Call, sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        find_places(make_kernel(outer=make_outer()[0]), place)


def test_two_calls_of_the_same_are_ambiguous() -> None:
    outer = _Code("outer")
    outer.call("check")
    outer.call("check")

    with pytest.raises(UsageError, match="'outer' has 2 calls to 'check': one was looked for"):
        find_places(make_kernel(outer=outer.data + RET), Call("check", ("outer",)))


def make_mechanism(call_in: str) -> Mechanism:
    marks = Landmarks(
        load_begin="outer",
        load_end=Return(Call("check", ("outer",))),
        call_in=call_in,
        release=Return(Call("check", ("outer",))),
        primary_release=Return(Call("", ("outer",))),
        self_nmi="",
        wait_loop="check",
        wait_region=("check", Path(Return(Call("wait", ("outer",))), Call("check", ("outer",)))),
    )
    like = MECHANISMS[0]
    return Mechanism(name="made", summary="", base=like.base, bit=3, expectation=like.expectation, landmarks=marks)


def test_landmarks_are_written_for_every_place_and_every_range() -> None:
    code, at = make_outer()
    marks = find_landmarks(make_kernel(outer=code, tail=WRMSR_79 + RET), [make_mechanism("wait")])
    text = marks.to_text()

    assert [point.address for point in marks.points if point.kind == "release"] == [at["checked"], at["released"]]
    assert f"region 8 {at['waited']:x} {at['timeout']:x}\n" in text
    assert f"region 8 {at['check']:x} {at['checked']:x}\n" in text
    assert f"point call-in 8 {start_of('wait.constprop.0'):x}\n" in text


def test_where_a_kernel_sends_nmis_for_backtraces_is_a_landmark_whatever_the_mechanism_is(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def find() -> list[str]:
        kernel = make_kernel(outer=make_outer()[0], tail=WRMSR_79 + RET)
        lines = find_landmarks(kernel, [make_mechanism("wait")]).to_text().splitlines()
        return [line for line in lines if "backtrace" in line]

    assert find() == []
    monkeypatch.setattr(sys.modules[__name__], "NAMES", (*NAMES, BACKTRACE))
    assert find() == [f"point backtrace ffff {start_of(BACKTRACE):x}"]


def test_where_a_kernel_calls_its_nmi_handlers_is_a_landmark_in_all_that_the_compiler_made_of_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def find() -> list[str]:
        kernel = make_kernel(outer=make_outer()[0], tail=WRMSR_79 + RET)
        lines = find_landmarks(kernel, [make_mechanism("wait")]).to_text().splitlines()
        return [line for line in lines if "nmi-handler" in line]

    assert find() == []
    made = (f"{NMI_HANDLER}.constprop.0", f"{NMI_HANDLER}.isra.0.constprop.1", f"{NMI_HANDLER}.part.0")
    monkeypatch.setattr(sys.modules[__name__], "NAMES", (*NAMES, *made))
    assert find() == [f"point nmi-handler ffff {start_of(name):x}" for name in made]


def test_a_landmark_that_is_missing_is_named_with_its_mechanism() -> None:
    kernel = make_kernel(outer=make_outer()[0], tail=WRMSR_79 + RET)

    with pytest.raises(UsageError, match="mechanism 'made', landmark call-in: landmark 'weight' is not in this kernel"):
        find_landmarks(kernel, [make_mechanism("weight")])


COPIES = Copies(template="handler", first="copy_first", step="copy_step", count="copies")
TEMPLATE = 0xFFFFFFFF81800040
#: A handler of 32 bytes in three copies, with its labels; the last label is the first address behind it.
OBJECTS = (
    Object("handler", TEMPLATE, 0x20),
    Object("arrive", TEMPLATE + 4, 0),
    Object("leave", TEMPLATE + 0x10, 0),
    Object("write", TEMPLATE + 0x18, 0),
    Object("handler_end", TEMPLATE + 0x20, 0),
    Object("copy_first", 0x3A000, 0),
    Object("copy_step", 0x2000, 0),
    Object("copies", 3, 0),
)


def replace_object(name: str, **changes: int) -> tuple[Object, ...]:
    return tuple(msgspec.structs.replace(each, **changes) if each.name == name else each for each in OBJECTS)


def test_a_label_is_found_in_every_copy_and_not_in_the_template() -> None:
    kernel = make_kernel(*OBJECTS)

    assert find_places(kernel, Copied("arrive", COPIES)) == (0x3A004, 0x3C004, 0x3E004)
    stretch = CopiedStretch("arrive", "leave", COPIES)
    assert find_stretch(kernel, stretch) == ((0x3A004, 0x3A010), (0x3C004, 0x3C010), (0x3E004, 0x3E010))


@pytest.mark.parametrize(
    ("objects", "sentence"),
    [
        (replace_object("arrive", start=TEMPLATE - 1), "'arrive' is not in 'handler'"),
        (replace_object("arrive", start=TEMPLATE + 0x20), "'arrive' is not in 'handler'"),
        (replace_object("copy_step", start=0x1F), "3 copies of 'handler' with 32 bytes do not go 31 bytes apart"),
        (replace_object("handler", size=0), "'arrive' is not in 'handler'"),
        (replace_object("copies", start=0), "0 copies of 'handler'"),
        (replace_object("copies", start=257), "257 copies of 'handler'"),
        (OBJECTS[1:], "this kernel has 0 symbols 'handler' that are no functions: one is needed"),
        ((*OBJECTS, OBJECTS[1]), "this kernel has 2 symbols 'arrive' that are no functions: one is needed"),
    ],
)
def test_copies_that_cannot_be_are_refused(objects: tuple[Object, ...], sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        find_places(make_kernel(*objects), Copied("arrive", COPIES))


def test_a_stretch_of_copies_that_ends_before_it_begins_is_refused() -> None:
    with pytest.raises(UsageError, match="'arrive' does not come behind 'leave'"):
        find_stretch(make_kernel(*OBJECTS), CopiedStretch("leave", "arrive", COPIES))


def make_copying_mechanism() -> Mechanism:
    marks = msgspec.structs.replace(
        make_mechanism("wait").landmarks,
        call_in=Copied("arrive", COPIES),
        primary_call_in="check",
        update=Copied("write", COPIES),
        wait_region=(CopiedStretch("arrive", "leave", COPIES),),
    )
    return msgspec.structs.replace(make_mechanism("wait"), landmarks=marks)


def test_an_update_in_a_copy_opens_a_window_whatever_the_mechanism_is() -> None:
    kernel = make_kernel(*OBJECTS, outer=make_outer()[0], tail=WRMSR_79 + RET)
    lines = find_landmarks(kernel, [make_copying_mechanism()]).to_text().splitlines()

    site = f"point wrmsr79 ffff {start_of('tail') + 5:x}"
    assert [line for line in lines if "wrmsr79" in line] == [
        "point wrmsr79 ffff 3a018",
        "point wrmsr79 ffff 3c018",
        "point wrmsr79 ffff 3e018",
        site,
    ]
    assert {"point call-in 8 3a004", "point call-in 8 3e004", f"point call-in 8 {start_of('check'):x}"} <= set(lines)
    assert "region 8 3c004 3c010" in lines


def test_an_address_in_a_copy_is_named_after_the_template() -> None:
    kernel = make_kernel(*OBJECTS)
    symbolise = make_symboliser(kernel, [make_copying_mechanism()])

    assert symbolise(0x3A000) == "handler+0x0"
    assert symbolise(0x3E01F) == "handler+0x1f"
    assert symbolise(0x3A020) == symbolise(0x40000) == ""
    assert symbolise(start_of("outer")) == "outer+0x0"

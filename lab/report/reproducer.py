# SPDX-License-Identifier: GPL-2.0-or-later
"""A scenario that repeats a trial on another build of its kernel. Pure: evidence in, scenario out."""

from collections.abc import Iterator
from typing import Final

import msgspec

from lab.model.evidence import EventKind, Evidence
from lab.model.placed import Placed
from lab.model.scenario import Scenario

_ADDRESS: Final = "0x"


def name_places(evidence: Evidence) -> tuple[Scenario, bool]:
    """Return the scenario with symbol and offset in place of addresses, which fit one build only.

    The observer's records have both. A name with two addresses in one kernel, as static functions may have, is none.

    :return: and whether an address is left that no record names
    """
    if not any(placed.at.startswith(_ADDRESS) for placed in evidence.scenario.placed):
        return evidence.scenario, False
    names = dict(_list_names(evidence))
    addresses: dict[str, set[int]] = {}
    for pc, symbol in names.items():
        addresses.setdefault(symbol, set()).add(pc)
    sure = {pc: symbol for pc, symbol in names.items() if len(addresses[symbol]) == 1}
    placed = tuple(_name(each, sure) for each in evidence.scenario.placed)
    scenario = msgspec.structs.replace(evidence.scenario, placed=placed)
    return scenario, any(each.at.startswith(_ADDRESS) for each in placed)


def _name(placed: Placed, names: dict[int, str]) -> Placed:
    if not placed.at.startswith(_ADDRESS):
        return placed
    return msgspec.structs.replace(placed, at=names.get(int(placed.at, 16), placed.at))


def _list_names(evidence: Evidence) -> Iterator[tuple[int, str]]:
    if evidence.observer is None:
        return
    for event in evidence.observer.events:
        # Of a taken NMI the address is where the vCPU goes on.
        if event.pc and event.symbol and event.kind is not EventKind.NMI_TAKEN:
            yield event.pc, event.symbol
    for window in evidence.observer.windows:
        for sibling in window.siblings:
            for block in sibling.blocks:
                if block.pc and block.symbol:
                    yield block.pc, block.symbol

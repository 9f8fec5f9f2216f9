# SPDX-License-Identifier: GPL-2.0-or-later
"""Where the vCPUs of a guest were that stopped answering, in words."""

from typing import Final

from lab.judge.finding import clean
from lab.model.evidence import Evidence

#: More than any guest has; a foreign folder may tell of any number.
_MAX_VCPUS: Final = 64


def describe_stall(evidence: Evidence) -> tuple[str, ...]:
    """Return where each vCPU of a guest that stopped answering was, one line each; what is missing comes last."""
    stall = evidence.stall
    if stall is None:
        return ()
    lines = []
    for vcpu in stall.vcpus[:_MAX_VCPUS]:
        line = f"vCPU {vcpu.vcpu} {'halted ' if vcpu.halted else ''}at {clean(vcpu.symbol) or hex(vcpu.pc)}"
        lines.append(line + ("" if vcpu.interrupts is None else f", interrupts {'on' if vcpu.interrupts else 'off'}"))
    if stall.problem:
        lines.append(f"by the observer's last blocks: {clean(stall.problem)}")
    if stall.memory:
        lines.append(f"memory: {clean(stall.memory)}")
    return tuple(lines)

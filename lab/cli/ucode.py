# SPDX-License-Identifier: GPL-2.0-or-later
"""The command that makes microcode files, good and malformed."""

from pathlib import Path
from typing import Annotated

import typer

from lab.cli.app import JsonOption, print_json, print_text
from lab.errors import UsageError
from lab.host.files import write_whole
from lab.microcode.files import FILES, UcodeCpu, find_file
from lab.microcode.update import firmware_name

#: What guests run at boot: lab.guest.config.BOOT_REVISION, which is not imported to list files.
GUEST_REVISION = "0x2007006"


def ucode(
    name: Annotated[str | None, typer.Argument(help="which file (default: list all)")] = None,
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="where to write it; must not be there yet")] = None,
    signature: Annotated[str, typer.Option(help="CPUID.1 EAX of the CPU that it is for")] = "0x50654",
    platform: Annotated[str, typer.Option(help="the CPU's platform bit (microcode/processor_flags)")] = "0x1",
    revision: Annotated[str, typer.Option(help="what the CPU runs now (microcode/version)")] = GUEST_REVISION,
    as_json: JsonOption = False,
) -> None:
    """Make an Intel microcode file by name, good or malformed, or list those that there are."""
    cpu = UcodeCpu(
        signature=_read_number("signature", signature),
        platform=_read_number("platform", platform),
        revision=_read_number("revision", revision),
    )
    cpu.check()
    if name is None:
        if out is not None:
            raise UsageError("--out goes with a file's name: 'lab ucode' lists those that there are")
        _list(as_json)
        return
    file = find_file(name)
    if out is None:
        raise UsageError(f"--out is missing: say where to write '{name}'")
    data = file.make(cpu)
    if data is None:
        raise UsageError(f"'{name}' stands for {file.summary}: there is nothing to write")
    if out.is_symlink() or out.exists():
        raise UsageError(f"'{out}' is there already: name a file that is not")
    write_whole(out, data)
    _tell(file.name, file.summary, out, data, cpu, as_json)


def _list(as_json: bool) -> None:
    if as_json:
        print_json({"files": [{"name": each.name, "summary": each.summary} for each in FILES]})
        return
    for each in FILES:
        print_text(f"{each.name:28} {each.summary}")


def _tell(name: str, summary: str, path: Path, data: bytes, cpu: UcodeCpu, as_json: bool) -> None:
    asked_for = f"intel-ucode/{firmware_name(cpu.signature)}"
    if as_json:
        print_json(
            {
                "name": name,
                "summary": summary,
                "file": str(path),
                "bytes": len(data),
                "asked_for_as": asked_for,
                "cpu": cpu,
            }
        )
        return
    print_text(f"{path}: {summary}; {len(data)} bytes, which the kernel asks for as {asked_for}")


def _read_number(flag: str, text: str) -> int:
    try:
        return int(text, 0)
    except ValueError:
        raise UsageError(f"{flag} '{text[:40]}' is not a number: write 10 or 0x0a") from None

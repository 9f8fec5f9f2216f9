# SPDX-License-Identifier: GPL-2.0-or-later
"""The command that serves the page of a run or campaign while it grows."""

import contextlib
import sys
from pathlib import Path
from typing import Annotated

import typer

from lab.cli.app import complain, print_text
from lab.errors import EvidenceError, HostError, UsageError

MAX_PORT = 65_535


def serve(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="the folder of a run or campaign")],
    port: Annotated[int, typer.Option(help="0 for a free one", min=0, max=MAX_PORT)] = 0,
    address: Annotated[str, typer.Option(help="of the interface to listen on")] = "127.0.0.1",
    expose: Annotated[
        bool, typer.Option("--expose", help="allow an address that other hosts reach: they can read the whole folder")
    ] = False,
) -> None:
    """Serve the page of a run or campaign, written again as trials end, until Ctrl-C."""
    if not folder.is_dir():
        raise UsageError(f"'{folder}' is not a folder: that of a run or of a campaign is needed")
    from lab.campaign.database import NAME, is_running
    from lab.campaign.run_folder import RECORDS
    from lab.cli.ending import write_page
    from lab.report.server import FolderServer, LivePage, check_loopback

    check_loopback(address, expose)
    root = folder.resolve()

    def is_growing() -> bool:
        with contextlib.suppress(HostError):
            return (root / NAME).is_file() and is_running(root)
        return False

    watched = tuple(root / name for name in (NAME, f"{NAME}-wal", RECORDS))
    try:
        with (
            contextlib.suppress(KeyboardInterrupt),
            LivePage(watched, lambda: write_page(root), _warn),
            FolderServer(root, address, port, is_growing) as server,
        ):
            print_text(f"serving {folder} at {server.url} until Ctrl-C")
            # Whoever started the lab reads the port from a pipe.
            sys.stdout.flush()
            server.serve()
    except EvidenceError as error:
        raise UsageError(str(error)) from error


def _warn(text: str) -> None:
    complain(f"the page was not written again: {text}", 0)

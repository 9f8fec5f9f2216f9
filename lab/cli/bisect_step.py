# SPDX-License-Identifier: GPL-2.0-or-later
"""What ``git bisect run`` starts for each commit of ``lab bisect``: ``python -m lab.cli.bisect_step FOLDER LIFELINE``.

Its exit status is git's protocol. So nothing here may end with a status from 1 to 127 by accident: git would take a
crash of the lab for a bad commit.
"""

import os
import signal
import sys
import threading
import traceback
from pathlib import Path
from typing import Final, NoReturn

INTERRUPTED: Final = 130
CRASHED: Final = 201


def main() -> NoReturn:
    """Try the commit that is checked out."""
    status = CRASHED
    try:
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        folder, lifeline = Path(sys.argv[1]), int(sys.argv[2])
        threading.Thread(target=_watch, args=(lifeline,), daemon=True).start()
        status = _try(folder)
    except KeyboardInterrupt:
        status = INTERRUPTED
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    sys.exit(status)


def _watch(lifeline: int) -> None:
    """End this process as Ctrl-C does, once the lab that started it is gone."""
    os.read(lifeline, 1)
    os.kill(os.getpid(), signal.SIGTERM)


def _try(folder: Path) -> int:
    from lab.bisect.bisection import SAID
    from lab.bisect.step import STATUS, Standing, Step, read_asked, read_step, write_step
    from lab.bisect.trying import try_commit
    from lab.build.git_tree import read_commit
    from lab.errors import LabError

    asked = read_asked(folder)
    commit = read_commit(Path(asked.tree))
    step = read_step(folder, commit)
    if step is None:
        try:
            step = try_commit(asked, folder, _tell)
        except LabError as error:
            step = Step(commit=commit, standing=Standing.ABORTED, reason=str(error))
        write_step(folder, step)
    _tell(f"{SAID}{commit[:12]} is {step.standing.value}: {step.reason}")
    return STATUS[step.standing]


def _tell(line: str) -> None:
    from lab.report.text import clean

    sys.stdout.write(f"{clean(' '.join(line.split()))}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()

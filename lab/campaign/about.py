# SPDX-License-Identifier: GPL-2.0-or-later
"""What a run or campaign was about and ran on, whichever of the two it is, for mail and for exchange formats."""

import shlex
from pathlib import Path

import msgspec

from lab.campaign.database import NAME, open_reader
from lab.campaign.facts import read_facts
from lab.campaign.old_runs import read_old_run
from lab.campaign.reader import read_campaign_spec
from lab.model.evidence import Images
from lab.model.scenario import Scenario
from lab.model.scenario_file import to_words


class About(msgspec.Struct, frozen=True, kw_only=True):
    """What was asked for, and on what it ran.

    :param id: the same for each reading of the folder, and another one for each campaign
    :param started: wall-clock time, ISO 8601
    :param seed: of all trials; empty in runs of labs that did not note it
    :param command: the words of the command line, empty for a campaign of a file
    :param images: of each kernel that was booted, empty in stores of labs that did not note them
    :param host: facts about the host that led the last sitting, by name
    :param asked: scenario to the words of a command line that ask for it; a sweep has too many to name
    """

    id: str
    lab_version: str
    started: str
    summary: str
    seed: str
    command: tuple[str, ...]
    images: tuple[Images, ...]
    host: dict[str, str]
    asked: dict[str, str] = {}


def read_about(folder: Path) -> About:
    """Read what a folder is about.

    :raise UsageError: the folder holds no campaign, or several
    :raise EvidenceError: the folder holds no run and no campaign, or a damaged one
    """
    if not (folder / NAME).exists():
        info = read_old_run(folder).info
        return About(
            id=f"{info.started} {' '.join(info.command)}",
            lab_version=info.lab_version,
            started=info.started,
            summary=f"{info.trials_asked} trials",
            seed=info.host.get("run seed", ""),
            command=info.command,
            images=info.images,
            host=info.host,
            asked={each.name: _ask(info.scenario, each.name) for each in info.mechanisms},
        )
    uid, spec = read_campaign_spec(folder)
    with open_reader(folder) as connection:
        ((version, started),) = connection.execute("SELECT lab_version, started FROM campaigns")
        rows = connection.execute("SELECT about FROM sittings ORDER BY id").fetchall()
    sittings = [read_facts(text, folder / NAME) for (text,) in rows]
    return About(
        id=uid,
        lab_version=version,
        started=started,
        summary=spec.summary,
        seed=str(spec.seed),
        command=spec.command,
        images=tuple(dict.fromkeys(images for each in sittings for images in each.images)),
        host=sittings[-1].host if sittings else {},
        asked={part.name: shlex.join(to_words(part.scenario)) for part in spec.parts if not part.points},
    )


def _ask(shared: Scenario, mechanism: str) -> str:
    return shlex.join(to_words(msgspec.structs.replace(shared, mechanism=mechanism)))

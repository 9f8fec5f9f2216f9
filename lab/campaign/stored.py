# SPDX-License-Identifier: GPL-2.0-or-later
"""What a store's texts mean: what its campaign is about, and where its evidence is."""

import re
from pathlib import Path
from typing import Final

import msgspec

from lab.campaign.definition import CampaignSpec
from lab.errors import EvidenceError, UsageError

#: As :meth:`lab.campaign.store.CampaignStore.create` draws it.
_UID: Final = re.compile(r"[0-9a-f]{32}", re.ASCII)


def read_spec(text: str, path: Path) -> CampaignSpec:
    """Return a campaign's description as it was stored.

    :raise EvidenceError: this lab cannot read it
    """
    try:
        spec = msgspec.json.decode(text, type=CampaignSpec)
        for part in spec.parts:
            part.scenario.check()
    except (msgspec.MsgspecError, ValueError, RecursionError, UsageError) as error:
        raise EvidenceError(f"'{path}' holds a campaign that this lab does not understand: {error}") from error
    return spec


def find_root(evidence_dir: str, uid: str, folder: Path) -> Path:
    """Return the folder that names of a campaign's evidence are relative to; nothing is touched.

    :param evidence_dir: as a store has it, empty for the campaign's own folder
    :param folder: the campaign's own
    :raise EvidenceError: a foreign store has what is no path of ours
    """
    if not evidence_dir:
        return folder
    if not Path(evidence_dir).is_absolute() or ".." in Path(evidence_dir).parts or _UID.fullmatch(uid) is None:
        raise EvidenceError(f"a store says that evidence is in {evidence_dir[:80]!r}, which is no place of ours")
    return Path(evidence_dir, uid)

# SPDX-License-Identifier: GPL-2.0-or-later
"""The begin of a campaign: it can be killed in its first build, and one whose images cannot be made leaves nothing."""

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from night_samples import FakeExecutor, NoImages, make_done, make_spec

from lab.build.images import ImageSet
from lab.campaign.definition import CampaignSpec
from lab.campaign.image_transfer import ImageSource
from lab.campaign.reader import summarise
from lab.campaign.sitting import Watch, Where, resume_campaign, start_campaign
from lab.errors import BuildError
from lab.host.paths import ROOT
from lab.report.campaign_page import write_campaign_report


def build(_: CampaignSpec) -> NoImages:
    return NoImages()


@contextlib.contextmanager
def join(_: ImageSource) -> Iterator[FakeExecutor]:
    yield FakeExecutor(make_done)


WHERE = Where(join=join)

KILLED = """
import os, signal, sys
from pathlib import Path
from night_samples import make_spec
from lab.campaign.sitting import Watch, Where, start_campaign

def build(spec):
    os.kill(os.getpid(), signal.SIGKILL)

start_campaign(Path(sys.argv[1]), make_spec(trials=4), build, Where(), Watch())
"""


def test_a_campaign_that_is_killed_in_its_first_build_is_resumed(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join((str(ROOT), str(Path(__file__).parent)))}
    words = (sys.executable, "-c", KILLED, str(tmp_path))
    assert subprocess.run(words, env=environment, timeout=60, check=False).returncode == -signal.SIGKILL
    (summary,) = summarise(tmp_path)
    assert (summary.state, summary.done, summary.planned, summary.sittings) == ("killed", 0, 4, 0)
    assert write_campaign_report(tmp_path).exists()
    result = resume_campaign(tmp_path, lambda spec: spec, build, WHERE, Watch())
    assert result.finished
    (summary,) = summarise(tmp_path)
    assert (summary.state, summary.done, summary.sittings) == ("finished", 4, 1)


def test_a_campaign_that_is_interrupted_in_its_first_build_is_resumed(tmp_path: Path) -> None:
    def interrupt(_: CampaignSpec) -> dict[str, ImageSet]:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        start_campaign(tmp_path, make_spec(trials=2), interrupt, WHERE, Watch())
    assert resume_campaign(tmp_path, lambda spec: spec, build, WHERE, Watch()).finished


@pytest.mark.parametrize("elsewhere", [False, True])
def test_a_campaign_whose_images_cannot_be_made_leaves_nothing(tmp_path: Path, elsewhere: bool) -> None:
    folder, shared = tmp_path / "out", tmp_path / "shared"
    folder.mkdir()
    shared.mkdir()

    def fail(_: CampaignSpec) -> dict[str, ImageSet]:
        raise BuildError("the kernel does not build")

    where = Where(join=join, evidence_dir=str(shared) if elsewhere else "")
    with pytest.raises(BuildError):
        start_campaign(folder, make_spec(trials=2), fail, where, Watch())
    assert list(folder.iterdir()) == []
    assert [path for path in shared.rglob("*") if path.is_file()] == []
    assert start_campaign(folder, make_spec(trials=2), build, where, Watch()).finished

# SPDX-License-Identifier: GPL-2.0-or-later
"""The timeline of one trial as a picture that stands alone."""

import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
from kept_evidence import FOLDER

from lab.errors import EvidenceError
from lab.report.picture import KEYS, draw_picture

SVG = "{http://www.w3.org/2000/svg}"


def test_a_caught_control_is_drawn_with_its_breach_and_a_key_to_each_shape() -> None:
    picture = ElementTree.fromstring(draw_picture(FOLDER / "stop-machine"))
    said = [text.text for text in picture.iter(f"{SVG}text")]
    assert "The first breach of the window, enlarged" in said
    assert {name for _, name in KEYS} <= set(said)
    shapes = {path.get("class") for path in picture.iter(f"{SVG}path")}
    assert {"m-entry", "m-hazard"} <= shapes


def test_a_sound_mechanism_is_drawn_without_a_breach() -> None:
    picture = ElementTree.fromstring(draw_picture(FOLDER / "nmi-self"))
    assert "The first breach of the window, enlarged" not in [text.text for text in picture.iter(f"{SVG}text")]


def test_a_picture_loads_nothing() -> None:
    drawn = draw_picture(FOLDER / "stop-machine")
    assert "http" not in drawn.replace('xmlns="http://www.w3.org/2000/svg"', "")


def test_a_folder_without_evidence_is_refused(tmp_path: Path) -> None:
    with pytest.raises(EvidenceError):
        draw_picture(tmp_path)

# SPDX-License-Identifier: GPL-2.0-or-later
"""What a campaign and the worker processes of its own host say to each other: msgspec values on a pipe."""

from pathlib import Path
from typing import Any, Final

import msgspec

from lab.campaign.job import Broken, Job, Missing, TrialDone, Unstarted


class Withdraw(msgspec.Struct, frozen=True, tag=True):
    """To a worker: end the trial of this campaign if it still waits for the host's vCPUs."""

    campaign: str


class Ready(msgspec.Struct, frozen=True, tag=True):
    """From a worker: it can run trials."""


class Failed(msgspec.Struct, frozen=True, tag=True):
    """From a worker, in place of a trial: this host cannot run trials.

    :param reason: one sentence
    """

    reason: str


Order = Job | Withdraw
Answer = Ready | TrialDone | Broken | Unstarted | Missing | Failed


def _encode_path(value: Any) -> str:
    if isinstance(value, Path):
        return str(value)
    raise NotImplementedError(f"{type(value).__name__} is no part of a message")


def _decode_path(kind: type, value: Any) -> Any:
    if kind is Path:
        return Path(value)
    raise NotImplementedError(f"{kind.__name__} is no part of a message")


_ENCODER: Final = msgspec.msgpack.Encoder(enc_hook=_encode_path)
_ORDERS: Final[msgspec.msgpack.Decoder[Order]] = msgspec.msgpack.Decoder(Order, dec_hook=_decode_path)
_ANSWERS: Final[msgspec.msgpack.Decoder[Answer]] = msgspec.msgpack.Decoder(Answer, dec_hook=_decode_path)


def encode(message: Order | Answer) -> bytes:
    """Return a message as bytes."""
    return _ENCODER.encode(message)


def read_order(data: bytes) -> Order:
    """Return what a campaign said to a worker."""
    return _ORDERS.decode(data)


def read_answer(data: bytes) -> Answer:
    """Return what a worker said to its campaign."""
    return _ANSWERS.decode(data)

# SPDX-License-Identifier: GPL-2.0-or-later
"""The observer's Python side: the file and socket it shares with the lab, and the evidence read from them."""

from lab.observer.link import LinkMessage, ObserverLink, Processor

__all__ = ["LinkMessage", "ObserverLink", "Processor"]

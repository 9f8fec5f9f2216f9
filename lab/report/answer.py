# SPDX-License-Identifier: GPL-2.0-or-later
"""Answers the mail's question for one mechanism, and says how sure the answer is. Pure: sums in, words out.

A trial without a break shows protection only if the siblings needed protection. So the headline counts only the trials
in which an NMI was proven pending on a live sibling in its core's window.
"""

import math

from lab.expected.tally import MechanismResult, Tally
from lab.mechanisms.mechanism import CONTROLS
from lab.report.statistics import compute_interval

#: The probability that a bound or an interval is wrong.
RISK = 0.05


def bound_percent(tally: Tally) -> float | None:
    """Return the upper bound of the share of trials that break, in percent, at 95 % confidence, if no trial broke.

    Exact, one-sided (Clopper and Pearson). For many trials the bound is 3 / n, the rule of three.
    """
    if tally.broken or not tally.held:
        return None
    return 100.0 * float(1 - RISK ** (1 / tally.held))


def compute_interval_percent(tally: Tally) -> tuple[float, float] | None:
    """Return the 95 % interval of the share of trials that break, in percent, among the trials that could tell.

    Exact, two-sided (Clopper and Pearson). None if no trial could tell.
    """
    told = tally.held + tally.broken
    if not told:
        return None
    low, high = compute_interval(tally.broken, told, RISK)
    return 100.0 * low, 100.0 * high


def format_bound(percent: float) -> str:
    """Return an upper bound with two significant digits, rounded up: a smaller number would claim too much."""
    scale = 10.0 ** (1 - math.floor(math.log10(percent)))
    # A number that is whole except for rounding error stays whole.
    return f"{math.ceil(percent * scale - 1e-9) / scale:g}"


def answer(result: MechanismResult) -> tuple[str, str]:
    """Answer the mail's question for one mechanism: return a headline, which contains the bound, and a sentence."""
    quiet, harmless, struck = result.quiet, result.harmless, result.struck
    if quiet.broken and harmless.broken:
        return "Neither", (
            f"the sibling left its wait in {_tell_share(quiet)}"
            f" and executed nasty instructions in {_tell_share(harmless)}"
        )
    if quiet.broken and struck.harmless.held:
        return f"No nasty ones, {_tell_bound(struck.harmless)}", (
            f"the sibling left its wait in {_tell_share(quiet)}, and no nasty instruction was seen in the"
            f" {struck.harmless.held} trials that could tell and in which an NMI was pending on a sibling"
        )
    if quiet.broken:
        return "Not quiet", f"the sibling left its wait in {_tell_share(quiet)}; whether harmlessly is unseen"
    if harmless.broken:
        return "Nasty ones", f"the sibling executed nasty instructions in {_tell_share(harmless)}"
    if not quiet.held:
        return "Unknown", f"none of {quiet.trials} trials could tell"
    if not struck.quiet.held:
        return _tell_nothing_reached(result)
    if not result.met or result.expectation in CONTROLS:
        # If the judge does not catch a control, the lab is blind. The sibling is not proven quiet.
        return "Not shown", (
            f"no break was seen in the {struck.quiet.held} of {quiet.trials} trials that could tell and in which an NMI"
            " was pending on a sibling, which is no answer while this mechanism is not as expected"
        )
    return f"No instruction at all, {_tell_bound(struck.quiet)}", (
        f"nothing outside its wait was seen in the {struck.quiet.held} of {quiet.trials} trials that could tell and in"
        " which an NMI was pending on a sibling"
    )


def _tell_nothing_reached(result: MechanismResult) -> tuple[str, str]:
    struck, trials = result.struck, result.quiet.trials
    if not struck.sent:
        return "No NMI was sent", f"{trials} trials without an NMI show nothing of what one would do"
    masked = f"; in {struck.masked} of them NMIs met the masked LINT1 of a sibling" if struck.masked else ""
    return "No NMI reached a sibling", (
        f"of {struck.sent} NMIs in {trials} trials none was proven pending on a live sibling in its core's window"
        f"{masked}"
    )


def _tell_bound(tally: Tally) -> str:
    bound = bound_percent(tally)
    return "" if bound is None else f"breaks in fewer than {format_bound(bound)} % of trials (95 %)"


def _tell_share(tally: Tally) -> str:
    told, interval = tally.held + tally.broken, compute_interval_percent(tally)
    low, high = interval or (0.0, 100.0)
    share = 100 * tally.broken / told if told else 0.0
    return (
        f"{tally.broken} of the {told} trials that could tell ({share:.3g} %, 95 % interval {low:.3g} to {high:.3g} %)"
    )

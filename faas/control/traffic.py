"""What people say of traffic, in the state's words: weights of versions, plans of canaries, names of aliases."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping
from typing import Final

from faas.errors import BadRequestError
from faas.invocation import STICKY_COOKIE, STICKY_HEADER, Alias
from faas.state.base import CanaryPlan

MAX_STEPS: Final = 20

_ALIAS = re.compile(r"[a-z0-9]([a-z0-9\-]{0,61}[a-z0-9])?")
_HEADER = re.compile(r"[A-Za-z0-9!#$%&'*+\-.^_`|~]{1,100}")


def alias_name(text: str) -> str:
    """
    Return *text*, if an alias may be called so.

    Raises: BadRequestError; what could be a version number is none.
    """
    if not _ALIAS.fullmatch(text) or text.isdigit():
        raise BadRequestError(
            f"an alias {text[:80]!r} can't be; use lower-case letters, digits and '-', and not digits alone"
        )
    return text


def sticky_by(text: str) -> str:
    """Return *text*, if it says how clients are told apart; raises BadRequestError."""
    if text in {"", STICKY_COOKIE}:
        return text
    if text.startswith(STICKY_HEADER) and _HEADER.fullmatch(text.removeprefix(STICKY_HEADER)):
        return text
    raise BadRequestError(f"sticky {text[:80]!r} is neither 'cookie' nor 'header:NAME'")


def split_of(before: Alias | None, name: str, alias: str, weights: Mapping[int, float], sticky: str) -> Alias:
    """
    Return the alias that shares requests out by *weights*, version → percent.

    The version that it named *before* stays the first one where it is one of the two, so that a client which is known
    keeps its side while the weights change.
    Raises: BadRequestError if there are not one or two versions, or the weights don't make 100.
    """
    shares = {version: weight for version, weight in weights.items() if weight != 0}
    if not shares or len(weights) > 2:
        raise BadRequestError("give one version, or two: requests are split between two versions at most")
    if any(not 0 < weight <= 100 for weight in shares.values()) or abs(sum(shares.values()) - 100) > 1e-6:
        told = ", ".join(f"{version}={weight:g}" for version, weight in weights.items())
        raise BadRequestError(f"the weights {told} are not percents that make 100 together")
    if len(shares) == 1:
        return Alias(name, alias, next(iter(shares)))
    first, second = shares
    if before is not None and before.version == second:
        first, second = second, first
    return Alias(name, alias, first, second, shares[second], sticky_by(sticky))


def checked(plan: CanaryPlan) -> CanaryPlan:
    """Return *plan*, if a canary can go by it; raises BadRequestError."""
    steps = plan.steps
    if not steps or len(steps) > MAX_STEPS or any(not 0 < step <= 100 for step in steps):
        raise BadRequestError(f"the steps of a canary are 1 to {MAX_STEPS} percents, over 0 and up to 100")
    if any(later <= earlier for earlier, later in itertools.pairwise(steps)):
        raise BadRequestError("each step of a canary is more than the one before it; write e.g. 10,25,50,100")
    if not 0 <= plan.interval_s <= 86_400 * 7:
        raise BadRequestError("the interval of a canary is 0 seconds to 7 days")
    if not 0 <= plan.max_error_rate <= 1:
        raise BadRequestError("the error rate of a canary is a part of 1; 5 % is 0.05")
    if plan.max_p99_ms < 0 or plan.max_p99_ratio < 0 or (plan.max_p99_ms and plan.max_p99_ratio):
        raise BadRequestError("limit a canary's p99 in milliseconds or as a multiple of the old version's, not both")
    if not 1 <= plan.min_requests <= 1_000_000:
        raise BadRequestError("the requests that a canary needs at least are 1 to 1000000")
    return plan

"""Fixtures of the OpenAI endpoints."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from openai_fakes import HERMES, FakeModels, Site, card, site


@pytest.fixture
def models() -> FakeModels:
    """A service with a model without tools and one with."""
    return FakeModels(card(), card("tooled", HERMES))


@pytest.fixture
async def api(models: FakeModels) -> AsyncIterator[Site]:
    """The endpoints, open, over ``models``."""
    async with site(models) as one:
        yield one

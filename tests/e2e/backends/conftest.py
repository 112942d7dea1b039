"""Mirrors of Nitter on loopback."""

import pytest
from tests.e2e.backends.nitter_site import Mirror, Site


@pytest.fixture
def site() -> Site:
    """A site without tweets."""
    return Site()


@pytest.fixture
def mirror_of(serve):
    """Start a mirror of a site; `instead` answers, or gives None for the site's own answer."""

    async def start(site: Site, instead=None) -> Mirror:
        mirror = Mirror(site, instead)
        mirror.url = (await serve(mirror.answer)).rstrip("/")
        return mirror

    return start

"""What docs/peers.md claims: our program is as short as the peer's beside it. That ours work, the page's own blocks show."""

import re
from pathlib import Path

import pytest

PAGE = (Path(__file__).parents[1] / "docs" / "peers.md").read_text()
PEERS = ["aiolimiter", "pyrate-limiter", "aiometer", "throttled-py", "Scrapy", "Crawlee", "litellm Router", "twscrape"]
# As wide as a line of ours may be: no program is made short by long lines.
WIDEST = 130


def programs_of(peer):
    """Theirs and ours, as the lines that are not blank."""
    (section,) = re.findall(rf"^## {peer}\b.*?(?=^## )", PAGE, re.MULTILINE | re.DOTALL)
    (theirs,) = re.findall(r"^```py\n(.*?)^```$", section, re.MULTILINE | re.DOTALL)
    (ours,) = re.findall(r"^```python\n(.*?)^```$", section, re.MULTILINE | re.DOTALL)
    return [[line for line in program.splitlines() if line.strip()] for program in (theirs, ours)]


@pytest.mark.parametrize("peer", PEERS)
def test_ours_is_as_short_or_shorter(peer):
    theirs, ours = programs_of(peer)
    assert 0 < len(ours) <= len(theirs)
    assert max(map(len, ours)) <= WIDEST


def test_every_program_of_ours_has_a_peer():
    assert len(re.findall(r"^```py$", PAGE, re.MULTILINE)) == len(re.findall(r"^```python$", PAGE, re.MULTILINE)) == len(PEERS)

"""What of `SnscrapeBackend` needs no server: its options, its targets, and the import of a package that is older than Python."""

import subprocess
import sys

import pytest

from tidegate import ConfigError
from tidegate.backends.snscrape import Scrape, ScrapeError, SnscrapeBackend

# ---- The package


def run(program: str) -> str:
    """What a program prints that takes warnings for errors."""
    done = subprocess.run([sys.executable, "-W", "error", "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("has_find_module", [True, False], ids=["Python 3.11", "Python 3.12"])
def test_import_needs_nothing_that_python_has_removed(has_find_module):
    """Neither does it warn. The modules are where the package would have put them itself."""
    assert run(f"""
import importlib.machinery
if hasattr(importlib.machinery.FileFinder, "find_module") and not {has_find_module}:
    del importlib.machinery.FileFinder.find_module
from tidegate.backends.snscrape import SnscrapeBackend
print(repr(SnscrapeBackend("sns", "telegram-channel", "30/min")))
import snscrape.modules
import snscrape.modules.telegram as telegram
print(snscrape.modules.telegram is telegram, *snscrape.modules.__all__)
""").splitlines() == [
        "<SnscrapeBackend 'sns' telegram-channel: BackendQuota('30/min', concurrency=32)>",
        "True facebook instagram mastodon reddit telegram twitter vkontakte weibo",
    ]


@pytest.mark.skipif(sys.version_info >= (3, 12), reason="the package cannot be imported in its own way")
def test_a_package_that_was_imported_before_is_used():
    assert "True" in run("""
import warnings
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import snscrape.modules
before = snscrape.modules.telegram
from tidegate.backends.snscrape import SnscrapeBackend
SnscrapeBackend("sns", "telegram-channel")
print(snscrape.modules.telegram is before, snscrape.modules.__all__.count("telegram") == 1)
""")


def test_module_is_imported_without_the_package_and_its_session():
    loaded = run("import sys, tidegate.backends.snscrape; print(*sys.modules)").split()
    assert "tidegate.backends.snscrape" in loaded
    assert not {"snscrape", "requests", "bs4", "lxml"} & set(loaded)


def test_missing_package_is_said_with_the_way_out():
    assert run("""
import sys
class Nowhere:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "snscrape":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Nowhere())
from tidegate.backends.snscrape import SnscrapeBackend
try:
    SnscrapeBackend("sns", "telegram-channel")
except ModuleNotFoundError as error:
    print(error)
""").startswith("tidegate.backends.snscrape needs snscrape, and snscrape is not installed: pip install 'snscrape")


# ---- Options

SCRAPERS = [
    "twitter-user",
    "twitter-search",
    "telegram-channel",
    "mastodon-profile",
    "mastodon-toot",
    "reddit-user",
    "weibo-user",
]


@pytest.mark.parametrize("scraper", SCRAPERS)
def test_every_scraper_goes_by_its_name(scraper):
    assert scraper in repr(SnscrapeBackend("sns", scraper))


@pytest.mark.parametrize(
    "scraper, near",
    [
        ("telegram-chanel", ["near ones are telegram-channel"]),
        ("twitter", ["twitter-user", "twitter-search"]),
        ("mastodon-user", ["mastodon-profile"]),
        ("zzz", ["it has facebook-community, facebook-group", "weibo-user"]),
        (7, ["it has facebook-community, facebook-group", "weibo-user"]),
    ],
)
def test_wrong_scraper_is_refused_with_those_that_are_near(scraper, near):
    with pytest.raises(ConfigError, match=f"scraper={scraper!r}: snscrape has no such scraper") as refused:
        SnscrapeBackend("sns", scraper)
    assert all(each in str(refused.value) for each in near)
    assert refused.value.option == "scraper"


WRONG = {
    "max_items": [0, -1, 1.5, "many"],
    "arguments": [["retries"], {1: 2}, {"proxies": {"https": "http://user:s3cret@proxy.example"}}],
    "proxies": ["http://user:s3cret@proxy.example", {"https": 8080}],
    "message_timeout": [0, -1, "soon", float("nan")],
    "timeout": [0, "soon"],
    "base_url": [
        "", "localhost:8000", "ftp://localhost", "http://", "http://localhost:99999", "http://[/", "http://localhost/?s3cret=1",
        "http://user:s3cret@localhost", 7, {"t.me": "http://localhost"}, {"https://t.me": "localhost"},
        {"https://t.me/s/": "http://localhost"}, {7: "http://localhost"},
    ],
}  # fmt: skip


@pytest.mark.parametrize("option, value", [(option, value) for option, values in WRONG.items() for value in values])
def test_option_that_cannot_work_is_refused(option, value):
    with pytest.raises(ConfigError, match=option) as refused:
        SnscrapeBackend("sns", "telegram-channel", **{option: value})
    assert refused.value.option == option
    assert "s3cret" not in str(refused.value)


# ---- Targets and errors


def test_a_scrape_is_a_target_like_any_other():
    one = Scrape("twitter-search", "python", mode="top")
    assert one == Scrape("twitter-search", "python", mode="top")
    assert hash(one) == hash(Scrape("twitter-search", "python", mode="top"))
    assert one not in (Scrape("twitter-search", "python"), Scrape("twitter-user", "python", mode="top"), "python")
    assert repr(one) == "Scrape('twitter-search', 'python', mode=...)"


def test_an_error_says_where_and_what():
    assert str(ScrapeError("status 500", url="https://t.me/s/ada", status=500)) == "https://t.me/s/ada: status 500"
    assert str(ScrapeError("no posts")) == "no posts"

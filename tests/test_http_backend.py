"""Options of `HttpBackend` that cannot work are refused when it is made, by name and with the way out."""

import sys

import pytest

from tidegate import ConfigError
from tidegate.backends.http import HttpBackend


@pytest.mark.parametrize(
    "url",
    [
        "", "api.example", "/users/{target}", "ftp://api.example/", "http://", "http://api.example:99999/", "http://[/",
        "https://api.example/v1", "https://api.example/?page=1", "https://api.example/#top", "https://api.example/{name}",
        "https://{target}.example/", "{target}/users", 7, None,
    ],
)  # fmt: skip
def test_unusable_url_is_refused(url: str):
    with pytest.raises(ConfigError, match="url"):
        HttpBackend("web", url)


@pytest.mark.parametrize(
    "url",
    [
        "https://api.example/",
        "https://api.example/v1/",
        "https://api.example/users/{target}",
        "https://api.example/?q={target}",
        "{target}",
    ],
)
def test_url_has_three_forms(url: str):
    assert repr(HttpBackend("web", url)) == f"<HttpBackend 'web' GET {url.partition('?')[0]}>"


def test_refused_url_shows_no_secret():
    with pytest.raises(ConfigError) as refused:
        HttpBackend("web", "https://user:word@api.example/v1?key=word")
    assert "word" not in str(refused.value)
    assert "https://api.example/v1" in str(refused.value)


@pytest.mark.parametrize(
    "option, value",
    [
        ("method", ""), ("method", "GET /"), ("method", 7),
        ("max_redirects", -1), ("max_redirects", 1.5),
        ("parse", "json"), ("client", 3),
        ("headers", "X-Key: 1"), ("headers", {"X-Key": "1\r\nX-Other: 2"}), ("headers", {"X-Key": 7}),
    ],
)  # fmt: skip
def test_unusable_option_is_refused(option: str, value: object):
    with pytest.raises(ConfigError, match=option):
        HttpBackend("web", "https://api.example/", **{option: value})


def test_two_authorizations_are_refused():
    with pytest.raises(ConfigError, match="Authorization"):
        HttpBackend("web", "https://user:word@api.example/", headers={"authorization": "Bearer x"})


def test_refused_header_shows_its_name_and_not_its_value():
    with pytest.raises(ConfigError) as refused:
        HttpBackend("web", "https://api.example/", headers={"X-Key": "word\n"})
    assert "X-Key" in str(refused.value)
    assert "word" not in str(refused.value)


def test_missing_aiohttp_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "aiohttp", None)
    with pytest.raises(ConfigError, match="pip install"):
        HttpBackend("web", "https://api.example/")

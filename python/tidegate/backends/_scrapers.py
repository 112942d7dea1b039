"""The scrapers of the snscrape package, by the names that its command line has for them."""

from __future__ import annotations

import importlib
import importlib.util
import pkgutil
import sys
import threading
from difflib import get_close_matches
from types import ModuleType
from typing import Any

from tidegate import ConfigError

PACKAGE = "snscrape.modules"
MOST_NEAR = 5

_importing = threading.Lock()


def base() -> Any:
    """The module `snscrape.base`.

    Raises:
        ModuleNotFoundError: The package is not installed.
    """
    try:
        return importlib.import_module("snscrape.base")
    except ModuleNotFoundError as error:
        msg = f"tidegate.backends.snscrape needs snscrape, and {error.name} is not installed: pip install 'snscrape>=0.7'"
        raise ModuleNotFoundError(msg, name=error.name) from None


def scraper_named(name: str) -> Any:
    """The class of a scraper.

    Raises:
        ConfigError: There is none of that name; says which are near.
        ModuleNotFoundError: The package is not installed.
    """
    known = _all()
    if isinstance(name, str) and name in known:
        return known[name]
    near = get_close_matches(name, known, MOST_NEAR, 0.5) if isinstance(name, str) else []
    # A wrong second half, as in 'reddit-users', is seldom all that is wrong.
    service = str(name).partition("-")[0]
    near += [other for other in known if other.startswith(f"{service}-") and other not in near]
    few = ", ".join(near or known)
    msg = f"scraper={name!r}: snscrape has no such scraper; {'near ones are' if near else 'it has'} {few}"
    raise ConfigError(msg, option="scraper", value=name)


def _all() -> dict[str, Any]:
    """Every scraper that has a name, in alphabetical order."""
    kinds = [base().Scraper]
    with _importing:
        _import_modules()
        for kind in kinds:
            kinds += kind.__subclasses__()
    return {kind.name: kind for kind in sorted(kinds[1:], key=lambda kind: str(kind.name)) if kind.name is not None}


def _import_modules() -> None:
    """Import all of `snscrape.modules`, whose own `__init__` does so by `find_module`, which Python 3.12 does not have.

    The package is made without running that, and filled as it would be.
    """
    package = sys.modules.get(PACKAGE)
    if package is None:
        spec = importlib.util.find_spec(PACKAGE)
        assert spec is not None, "a package that has a base has modules"
        package = importlib.util.module_from_spec(spec)
        package.__dict__["__all__"] = []
        sys.modules[PACKAGE] = package
        sys.modules["snscrape"].__dict__["modules"] = package
    for _, name, _ in pkgutil.iter_modules(package.__path__):
        if not isinstance(vars(package).get(name), ModuleType):
            setattr(package, name, importlib.import_module(f"{PACKAGE}.{name}"))
            package.__all__.append(name)

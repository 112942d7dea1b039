"""How a user's objects appear in messages, logs and reprs: briefly, without secrets, and whatever their own methods do."""

import re
from collections.abc import Callable

# Characters of a target or of a handler's message that one of ours quotes.
LONGEST = 300
# The part of a URL that may hold a password, and the parts that may hold a token.
USER = re.compile(r"(?<=//)[^/@?#\s]*@")
QUERY = re.compile(r"[?#].*", re.DOTALL)


def shown(target: object) -> str:
    """A target. Of a text that could be a URL, user, password, query and fragment are left out."""
    if isinstance(target, str):
        target = QUERY.sub(lambda found: f"{found[0][0]}…", USER.sub("", target))
    return _brief(target, repr)


def said(error: BaseException) -> str:
    """The message of an exception."""
    return _brief(error, str)


def _brief(value: object, text: Callable[[object], str]) -> str:
    try:
        brief = text(value)
    except Exception as error:  # noqa: BLE001 - it belongs to the user
        brief = f"<{type(value).__name__}, which cannot be shown: {type(error).__name__}>"
    return brief if len(brief) <= LONGEST else f"{brief[: LONGEST - 1]}…"

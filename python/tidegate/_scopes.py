"""What limits that are `per` something count a request by."""

from collections.abc import Collection, Mapping

HOST = "host"


def scopes_of(target: object, given: object, limited: Collection[str]) -> object:
    """The scopes that a request carries: those that were given and, if limits count by it, the host of its target.

    What was given is not checked here.
    """
    if HOST not in limited or (isinstance(given, Mapping) and HOST in given):
        return given
    host = host_of(target)
    if host is None:
        return given
    if given is None:
        return {HOST: host}
    return {HOST: host, **given} if isinstance(given, Mapping) else given


def host_of(target: object) -> str | None:
    """The host of an http(s) URL, in lower case and without its port; None for anything else.

    Example:
        >>> host_of("https://user@Example.org:8080/path")
        'example.org'
    """
    if not isinstance(target, str) or not target[:8].lower().startswith(("http://", "https://")):
        return None
    from urllib.parse import urlsplit  # a tenth of what `import tidegate` would take

    try:
        return urlsplit(target).hostname or None
    except ValueError:  # such as brackets that do not belong together
        return None

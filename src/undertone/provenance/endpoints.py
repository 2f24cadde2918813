"""What configs that name an endpoint may hold: an address without secrets, and the name of the key's variable."""

from __future__ import annotations

from urllib.parse import urlsplit


def plain_url(url: str) -> str:
    """The address without its last slash.

    Raises:
        ValueError: no http address, or one that holds a user, a password or a query: configs are written to disk.
    """
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError("an endpoint is an http or https address, such as http://localhost:8000/v1")
    if parts.username or parts.password or parts.query:
        raise ValueError("an endpoint's address holds no user, password or query: name the variable that holds the key")
    return url.rstrip("/")


def variable_name(name: str | None) -> str | None:
    """The name as it is.

    Raises:
        ValueError: it does not look like the name of an environment variable, so that it may be the key itself.
    """
    if name is not None and not (name.isidentifier() and name.isupper()):
        raise ValueError("the NAME of an environment variable, such as OPENAI_API_KEY, never the key")
    return name

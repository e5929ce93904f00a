"""Who may talk to the server: robot names that are safe in a path, the token, and requests from web pages."""

from __future__ import annotations

import contextlib
import hmac
import ipaddress
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from vla_adapt.serving.protocol import WireError, one_line

_ROBOT_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
_TOKEN_SCHEMES = ("api-key", "bearer")


def is_robot_name(name: str) -> bool:
    """Whether `name` may be served: at most 64 of letters, digits, `_.-`, starting with a letter or digit."""
    return _ROBOT_NAME.fullmatch(name) is not None


def find_robot(name: Any, cards: Mapping[str, dict[str, Any]]) -> str:
    """The robot a request means; an empty name means the only one there is.

    Raises:
        WireError: `unknown_robot`, naming those served.
    """
    if name in ("", None) and len(cards) == 1:
        return next(iter(cards))
    if isinstance(name, str) and is_robot_name(name) and name in cards:
        return name
    served = ", ".join(sorted(cards)) or "none"
    asked = "no robot named" if name in ("", None) else f"no robot {one_line(repr(name), 60)}"
    raise WireError("unknown_robot", f"{asked}; this server has: {served}. Connect to /robots/<name>")


def read_token(path: str | Path) -> str:
    """The secret in a token file (surrounding blanks removed).

    Raises:
        ValueError: the file is missing, unreadable, empty or has several lines.
    """
    try:
        text = Path(path).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"token file {path}: cannot be read ({error}); write one secret into it") from None
    if not text or len(text.splitlines()) != 1:
        raise ValueError(f"token file {path}: wanted one line with the secret, got {len(text.splitlines())}")
    return text


def check_token(authorization: str | None, token: str | None) -> None:
    """Compares `Authorization: Api-Key X` or `Bearer X` in constant time; no token configured lets all in.

    Raises:
        WireError: `unauthorized`.
    """
    if token is None:
        return
    scheme, _, secret = (authorization or "").partition(" ")
    given = secret.strip().encode("utf-8", "surrogateescape") if scheme.lower() in _TOKEN_SCHEMES else b""
    if not hmac.compare_digest(given, token.encode("utf-8")):
        raise WireError(
            "unauthorized", "missing or wrong token; send the header 'Authorization: Api-Key <token>'"
        )


def check_origin(origin: str | None, host: str | None, guarded: bool = False) -> None:
    """Refuses requests started by a web page of another site: a browser must not drive a robot on localhost.

    A page of this very address is accepted, but without a token only where that is an IP address or
    `localhost`: any other name may have been pointed here by the page's owner (DNS rebinding).

    Args:
        origin: the header `Origin`; None: no browser.
        host: the header `Host`.
        guarded: whether requests carry a token.

    Raises:
        WireError: `forbidden_origin`.
    """
    if origin is None:
        return
    try:
        page = urlsplit(origin)
        same = page.netloc == host and (guarded or _is_address(page.hostname or ""))
    except ValueError:  # a broken IPv6 address
        same = False
    if not same:
        raise WireError(
            "forbidden_origin", f"requests from web pages of {one_line(origin, 80)} are not accepted"
        )


def _is_address(host: str) -> bool:
    with contextlib.suppress(ValueError):
        return bool(ipaddress.ip_address(host))
    return host == "localhost"

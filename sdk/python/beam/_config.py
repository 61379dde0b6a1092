"""Which node to talk to, and with which token.

First found wins: arguments; GATEWAY_HOST, GATEWAY_PORT, API_HOST, API_PORT,
BEAM_TOKEN; the same as BETA9_GATEWAY_HOST, BETA9_GATEWAY_PORT,
BETA9_TOKEN; the context (BEAM_CONTEXT, else "default") in ~/.beam/config.ini
(CONFIG_PATH for another file); 127.0.0.1:1993.
"""

from __future__ import annotations

import os
from typing import Dict, NamedTuple, Optional

from beam._errors import InvalidError, NotFoundError

DEFAULT_HOST = "127.0.0.1"
DEFAULT_PORT = 1993
DEFAULT_API_PORT = 1994
DEFAULT_CONTEXT = "default"


class Config(NamedTuple):
    """One way to reach a mesh."""

    host: str = DEFAULT_HOST
    port: int = DEFAULT_PORT
    api_host: str = DEFAULT_HOST
    api_port: int = DEFAULT_API_PORT
    token: str = ""

    @property
    def tls(self) -> bool:
        """As in the stock client, on ports that end in 443; never on loopback,
        where nodes speak plaintext on whatever port they were given."""
        local = self.host == "localhost" or self.host == "::1" or self.host.startswith("127.")
        return str(self.port).endswith("443") and not local


def resolve(
    host: Optional[str] = None,
    port: Optional[int] = None,
    token: Optional[str] = None,
    context: Optional[str] = None,
) -> Config:
    """The configuration of this process.

    >>> resolve(host="box2", port=2993, token="t").host
    'box2'
    """
    section = _section(context)

    def first(*names: str, key: str = "") -> str:
        for name in names:
            value = os.environ.get(name, "").strip()
            if value:
                return value
        return section.get(key, "").strip()

    # A named context is an explicit choice: it comes before the environment.
    if context and section:
        host = host or section.get("gateway_host")
        port = port or _port(section.get("gateway_port", ""), "gateway_port")
        token = token or section.get("token")
    host = host or first("GATEWAY_HOST", "BETA9_GATEWAY_HOST", key="gateway_host") or DEFAULT_HOST
    port = port or _port(first("GATEWAY_PORT", "BETA9_GATEWAY_PORT", key="gateway_port"), "GATEWAY_PORT") or DEFAULT_PORT
    api_port = _port(first("API_PORT", "BETA9_GATEWAY_PORT_HTTP", key="api_port"), "API_PORT") or DEFAULT_API_PORT
    return Config(
        host=host,
        port=port,
        api_host=first("API_HOST", "BETA9_GATEWAY_HOST_HTTP", key="api_host") or host,
        api_port=api_port,
        token=token or first("BEAM_TOKEN", "BETA9_TOKEN", key="token"),
    )


def _port(text: str, name: str) -> Optional[int]:
    if not text or text == "0":
        return None
    if text.isdigit() and 0 < int(text) < 65536:
        return int(text)
    raise InvalidError("%s=%s is not a port" % (name, text), "ports go from 1 to 65535; a node's is 1993")


def _section(context: Optional[str]) -> Dict[str, str]:
    asked = context or os.environ.get("BEAM_CONTEXT", "")
    path = os.environ.get("CONFIG_PATH") or os.path.join(os.path.expanduser("~"), ".beam", "config.ini")
    if not os.path.exists(path):
        if asked and asked != DEFAULT_CONTEXT:
            raise NotFoundError("no context %r: %s does not exist" % (asked, path), "make it with 'beam config create'")
        return {}
    import configparser

    parser = configparser.ConfigParser(interpolation=None, default_section="\0none")
    try:
        parser.read(path, encoding="utf-8")
    except (configparser.Error, UnicodeDecodeError, OSError) as exc:
        text = str(exc).replace("\n", " ")
        raise InvalidError("cannot read %s: %s" % (path, text), "mend the file, or move it away") from exc
    name = asked or DEFAULT_CONTEXT
    if parser.has_section(name):
        return dict(parser.items(name))
    if asked and asked != DEFAULT_CONTEXT:
        known = ", ".join(parser.sections()) or "none"
        raise NotFoundError("no context %r in %s (there: %s)" % (asked, path, known), "'beam config list' shows them")
    return {}

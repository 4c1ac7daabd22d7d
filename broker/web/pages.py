"""How the two pages look alike (static/page.css), and JSON that their scripts can read."""

from typing import Any

from flask import Blueprint
from flask.json.provider import DefaultJSONProvider

from broker.wire.plain_json import json_text

SHARED = Blueprint(
    "shared", __name__, static_folder="static", static_url_path="/shared"
)  #: the style sheet of both
HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": (
        "default-src 'self'; object-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}


class PageJson(DefaultJSONProvider):
    """A page's JSON: its script can read every answer, whatever was measured; classes keep their order."""

    sort_keys = False

    def dumps(self, obj: Any, **kwargs: Any) -> str:
        """One answer; what is no number is null."""
        del kwargs  # Flask's own: how to indent for a person
        return json_text(obj)

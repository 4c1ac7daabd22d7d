"""Who uses the page, as far as that is known, and what the audit log is told of it."""

import ipaddress

from flask import current_app, request

from broker.audit import AuditLog

_MOST_LETTERS = 64
_ONE_HOUSE = 64  #: leading bits of an IPv6 address that one subscriber has: all others are its own to choose


def visitor(*, is_behind_proxy: bool) -> str:
    """Where the request under way comes from; behind a proxy, what that has added last to what it was told."""
    told = request.headers.get("X-Forwarded-For", "") if is_behind_proxy else ""
    return _house_of(told.rpartition(",")[2].strip() or request.remote_addr or "")


def _house_of(address: str) -> str:
    try:
        found = ipaddress.ip_address(address)
    except ValueError:
        return address[:_MOST_LETTERS]
    if isinstance(found, ipaddress.IPv4Address):
        return str(found)
    return str(found.ipv4_mapped or ipaddress.ip_network((found, _ONE_HOUSE), strict=False))


def note_visit(event: str, **fields: object) -> None:
    """Tell what the request under way has done, and from where it came."""
    audit_log: AuditLog = current_app.config["AUDIT"]
    told = request.headers.get("X-Forwarded-For")  # by a proxy, or by whoever likes to
    audit_log.note(event, address=request.remote_addr, forwarded=told, **fields)

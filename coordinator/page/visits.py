"""What the audit log is told of who uses the page."""

from flask import current_app, request

from broker.audit import AuditLog


def note_visit(event: str, **fields: object) -> None:
    """Tell what the request under way has done, and from where it came."""
    audit_log: AuditLog = current_app.config["AUDIT"]
    told = request.headers.get("X-Forwarded-For")  # by a proxy, or by whoever likes to
    audit_log.note(event, address=request.remote_addr, forwarded=told, **fields)

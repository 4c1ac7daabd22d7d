"""Whether all is well, for whoever watches from outside: a cluster's probes, a proxy, a monitor. No token is asked.

    GET /livez     200 as long as this process answers; while the broker is away it waits, and a restart would not help
    GET /readyz    200 while it has its place at the broker, and takes launches
    GET /healthz   200 while nothing is in the way; else 503

"status" says what it is.
"""

from flask import Blueprint, Response, current_app, jsonify

from coordinator.page.scheduler import Scheduler

HEALTH = Blueprint("health", __name__)


def _scheduler() -> Scheduler:
    scheduler: Scheduler = current_app.config["SCHEDULER"]
    return scheduler


@HEALTH.get("/livez")
def live() -> tuple[Response, int]:
    """That this process answers."""
    return _told(None)


@HEALTH.get("/readyz")
def ready() -> tuple[Response, int]:
    """Whether it can work."""
    return _told(_why_not_ready())


@HEALTH.get("/healthz")
def health() -> tuple[Response, int]:
    """Whether it can work, and is not held up."""
    held_up = None if _scheduler().takes_messages else "the broker takes no messages now: see its alarms"
    return _told(_why_not_ready() or held_up)


def _why_not_ready() -> str | None:
    status = _scheduler().latest.snapshot.status
    if not _scheduler().is_connected:
        return "the broker is away"
    return None if status and status.is_ready else "the coordinator is starting, or waits behind another one"


def _told(fault: str | None) -> tuple[Response, int]:
    told = {"status": fault or "ok", "is_connected": _scheduler().is_connected}
    return jsonify(told), 503 if fault else 200

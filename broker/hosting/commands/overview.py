"""What `broker status` shows: of the broker, its nodes, its queues, and who is connected."""

from typing import Any

from broker.hosting.management import Fields, Management

_MEGABYTE = 1_000_000


def look(management: Management, vhost: str) -> dict[str, Any]:
    """What `status --json` prints."""
    nodes = management.nodes()
    return {
        "version": management.overview()["rabbitmq_version"],
        "virtual_host": vhost,
        "memory_bytes": sum(node.get("mem_used", 0) for node in nodes),
        "nodes": [_node(node) for node in nodes],
        "alarms": management.alarms(),
        "queues": [_queue(queue) for queue in management.queues(vhost)],
        "connections": [_connection(connection) for connection in management.connections(vhost)],
    }


def _node(node: Fields) -> dict[str, Any]:
    return {
        "name": node["name"],
        "is_running": bool(node.get("running")),
        "memory_bytes": node.get("mem_used", 0),
        "cut_off_from": node.get("partitions", []),
    }


def _queue(queue: Fields) -> dict[str, Any]:
    return {
        "name": queue["name"],
        "ready": queue.get("messages_ready", 0),
        "unacked": queue.get("messages_unacknowledged", 0),
        "consumers": queue.get("consumers", 0),
    }


def _connection(connection: Fields) -> dict[str, Any]:
    given = connection.get("user_provided_name") or connection.get("client_properties", {}).get(
        "connection_name"
    )
    return {
        "name": given or connection.get("name", ""),
        "user": connection.get("user", ""),
        "state": connection.get("state", ""),
    }


def table(found: dict[str, Any]) -> str:
    """The same for a person."""
    alarms = ", ".join(found["alarms"]) or "none"
    lines = [
        f"RabbitMQ {found['version']}, virtual host {found['virtual_host']}, "
        f"{found['memory_bytes'] / _MEGABYTE:.0f} MB of memory, alarms: {alarms}",
        "",
        *_node_lines(found["nodes"]),
        *_rows(found["queues"], ("name", "ready", "unacked", "consumers"), "queue", "no queues yet"),
        "",
        *_rows(found["connections"], ("name", "user", "state"), "connection", "no connections"),
    ]
    if found["certificates"]:
        lines += ["", *_rows(found["certificates"], ("whose", "subject", "days_left"), "certificate", "")]
    return "\n".join(lines)


def _node_lines(nodes: list[dict[str, Any]]) -> list[str]:
    """Of a cluster alone."""
    rows = [
        {
            "name": node["name"],
            "state": "running" if node["is_running"] else "down",
            "memory": f"{node['memory_bytes'] / _MEGABYTE:.0f} MB",
            "cut off from": ", ".join(node["cut_off_from"]) or "-",
        }
        for node in nodes
    ]
    return (
        [*_rows(rows, ("name", "state", "memory", "cut off from"), "node", ""), ""] if len(nodes) > 1 else []
    )


def _rows(entries: list[dict[str, Any]], fields: tuple[str, ...], title: str, otherwise: str) -> list[str]:
    if not entries:
        return [otherwise]
    table = [(title, *fields[1:]), *(tuple(str(entry[field]) for field in fields) for entry in entries)]
    widths = [max(len(row[column]) for row in table) for column in range(len(fields))]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in table
    ]

"""What the demo of compose.yaml does once, before anybody is served: settings of the broker, data, accounts.

Each step leaves alone what is there already, so that a second start is none.
"""

import base64
import hashlib
import json
import secrets
from pathlib import Path

import click

import worker.cli
from broker.command import CommandGroup
from broker.errors import BrokerError
from broker.hosting import accounts as hosting
from broker.hosting.management import Management
from broker.hosting.private import wait_until
from broker.link.access import Access
from broker.link.invitation import write_invitation
from broker.logs import configure
from deploy.synthetic import XraySet, write_xrays

ADMINISTRATOR = "administrator"
HOST = "demo-broker"
SITES = ("hospital-1", "hospital-2", "hospital-3")
NAMES = ("coordinator", *SITES, "test-set")
_SALT_BYTES = 4  # RabbitMQ's own
_READY_SECONDS = 60.0

_folder = click.Path(path_type=Path, file_okay=False, exists=True)


@click.group(cls=CommandGroup)
def main() -> None:
    """The steps, in the order in which compose.yaml asks for them."""
    configure()


@main.command()
@click.argument("folder", type=_folder)
def settings(folder: Path) -> None:
    """Write definitions.json with the one account that the broker begins with, and its login beside it."""
    if (folder / "definitions.json").exists():
        return
    password = secrets.token_urlsafe(24)
    login = folder / ADMINISTRATOR
    login.touch(mode=0o600)
    login.write_text(f"{ADMINISTRATOR}:{password}")
    (folder / "definitions.json").write_text(json.dumps(definitions(password), indent=2))


def definitions(password: str) -> dict[str, object]:
    """What RabbitMQ loads before it listens: with it there is no account but this, and so no guest."""
    everything = {"configure": ".*", "write": ".*", "read": ".*"}
    user = {
        "name": ADMINISTRATOR,
        "password_hash": hash_of(password, secrets.token_bytes(_SALT_BYTES)),
        "hashing_algorithm": "rabbit_password_hashing_sha256",
        "tags": "administrator",
    }
    return {
        "users": [user],
        "vhosts": [{"name": "/"}],
        "permissions": [{"user": ADMINISTRATOR, "vhost": "/", **everything}],
    }


def hash_of(password: str, salt: bytes) -> str:
    """A password as RabbitMQ keeps it: salt, and SHA-256 of salt and password."""
    return base64.b64encode(salt + hashlib.sha256(salt + password.encode()).digest()).decode()


@main.command()
@click.argument("folder", type=_folder)
@click.option("--patients", type=click.IntRange(4), default=24, show_default=True, help="Of each class.")
def data(folder: Path, patients: int) -> None:
    """Make X-rays up, and cut them into one site for each hospital by patient."""
    if (folder / "sites").exists():
        return
    write_xrays(folder / "xrays", XraySet(train_patients=patients, test_patients=patients // 2))
    words = ["split", str(folder / "xrays"), "--into", str(len(SITES)), "--out", str(folder / "sites")]
    worker.cli.main(words, standalone_mode=False)


@main.command()
@click.argument("settings_folder", type=_folder)
@click.argument("out", type=_folder)
@click.option("--broker", "address", default=f"{HOST}:5672", show_default=True, help="As the others know it.")
@click.option("--management", default=f"{HOST}:15672", show_default=True, help="As this step knows it.")
def accounts(settings_folder: Path, out: Path, address: str, management: str) -> None:
    """Invite everybody, each by a file of its own."""
    login = (settings_folder / ADMINISTRATOR).read_text()
    administrator = Management(f"http://{login}@{management}")
    if not wait_until(administrator.is_ready, _READY_SECONDS):
        raise BrokerError(f"The management API at {management} was not ready after {_READY_SECONDS:.0f} s.")
    for name in NAMES:
        invitation = out / f"{name}.toml"
        if not invitation.exists():
            invited = hosting.invite(administrator, "/", name)
            url = f"amqp://{invited.user}:{invited.password}@{address}/%2F"
            write_invitation(invitation, Access(amqp_url=url, name=name))


if __name__ == "__main__":
    main(prog_name="python -m deploy.compose_steps")

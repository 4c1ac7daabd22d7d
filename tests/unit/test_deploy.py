"""What deploy/ and the locks say holds: by each format's own validator, and among each other."""

import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from deploy.audit import judge
from tests.composed import demo, services

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
KUBERNETES = DEPLOY / "kubernetes.yaml"
BROKER = DEPLOY / "kubernetes-broker.yaml"
RUNTIME_LOCK = ROOT / "requirements-runtime.lock"
_BIN = Path(sys.executable).parent


def said_by(tool: str, *words: str) -> str:
    """What a validator says to files that it takes."""
    done = subprocess.run([_BIN / tool, *words], capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_the_compose_file_is_one() -> None:
    """By the compose specification's own schema."""
    said_by("check-jsonschema", "--builtin-schema", "vendor.compose-spec", "deploy/compose.yaml")


def test_the_dockerfile_is_as_hadolint_wants_it() -> None:
    """Not even a word of advice."""
    assert said_by("hadolint", "--failure-threshold", "style", "deploy/Dockerfile") == ""


def test_kubernetes_takes_each_resource() -> None:
    """By Kubernetes's own schemas, with no field that it does not know."""
    said = said_by("kubernetes-validate", "--strict", "deploy/kubernetes.yaml")
    assert said.count(" passed for resource ") == len(resources(KUBERNETES)), said


def test_the_cluster_operator_takes_the_broker() -> None:
    """Its custom resource stands in no schema of Kubernetes; the settings are those of rabbitmq.conf."""
    import jsonschema  # late: it takes 3 s

    (found,) = resources(BROKER)
    jsonschema.validate(found, json.loads((ROOT / "tests/schemas/rabbitmqcluster.json").read_text()))
    text = (DEPLOY / "rabbitmq.conf").read_text(encoding="utf-8")
    settings = [line for line in text.splitlines() if line and not line.startswith("#")]
    assert found["spec"]["rabbitmq"]["additionalConfig"].splitlines() == settings


def resources(path: Path) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all(path.read_text(encoding="utf-8")))


def named(kind: str) -> dict[str, dict[str, Any]]:
    return {each["metadata"]["name"]: each for each in resources(KUBERNETES) if each["kind"] == kind}


def pods() -> Iterator[tuple[dict[str, str], dict[str, Any]]]:
    """The labels of each pod that is asked for, and what is in it."""
    for deployment in named("Deployment").values():
        template = deployment["spec"]["template"]
        yield template["metadata"]["labels"], template["spec"]


def test_every_claim_is_defined() -> None:
    """A pod whose claim nobody makes waits for ever."""
    wanted = {
        volume["persistentVolumeClaim"]["claimName"]
        for _, pod in pods()
        for volume in pod["volumes"]
        if "persistentVolumeClaim" in volume
    }
    assert wanted == set(named("PersistentVolumeClaim"))


def test_every_mount_has_its_volume() -> None:
    """Within its own pod."""
    for _, pod in pods():
        (container,) = pod["containers"]
        assert {each["name"] for each in container["volumeMounts"]} == {
            each["name"] for each in pod["volumes"]
        }


def test_services_and_budgets_find_their_pods() -> None:
    """By a label that a pod has, or that the operator gives to the broker's."""
    (broker,) = resources(BROKER)
    labels = [labels for labels, _ in pods()]
    labels.append({"app.kubernetes.io/name": broker["metadata"]["name"]})
    selectors = [each["spec"]["selector"] for each in named("Service").values()]
    selectors += [each["spec"]["selector"]["matchLabels"] for each in named("PodDisruptionBudget").values()]
    assert len(selectors) == 3
    for selector in selectors:
        assert selector in labels


def test_the_page_is_probed() -> None:
    """Its Service sends nobody to a coordinator that does not answer, and a broker that is away restarts nothing."""
    (container,) = [
        pod["containers"][0] for _, pod in pods() if pod["containers"][0]["name"] == "coordinator"
    ]
    (port,) = container["ports"]
    for kind, path in (
        ("startupProbe", "/livez"),
        ("livenessProbe", "/livez"),
        ("readinessProbe", "/readyz"),
    ):
        assert container[kind]["httpGet"] == {"path": path, "port": port["name"]}
    assert named("Service")["warren-page"]["spec"]["ports"][0]["targetPort"] == port["name"]


def test_no_container_of_ours_is_root_or_can_change_its_image() -> None:
    """In compose and Kubernetes alike."""
    ours = [each for each in demo().values() if each["image"] == "warren"]
    assert len(ours) == 9
    for service in ours:
        assert service["user"] == "1000:1000"
        assert service["read_only"] is True
        assert service["cap_drop"] == ["ALL"]
    for _, pod in pods():
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["containers"][0]["securityContext"]["readOnlyRootFilesystem"] is True


def test_the_broker_alone_is_what_it_was() -> None:
    """Who runs the rest by hand starts it by name, or with `broker up`: guest, on loopback, and no demo."""
    broker = services()["broker"]
    assert broker["profiles"] == ["broker"]
    assert "depends_on" not in broker
    assert broker["environment"]["RABBITMQ_DEFAULT_USER"] == "${WARREN_USER:-guest}"
    for service in services().values():
        for port in service.get("ports", []):
            assert port.startswith("127.0.0.1:"), port


def test_every_file_of_deploy_is_named_in_its_readme() -> None:
    """What is not named is not found."""
    text = (DEPLOY / "README.md").read_text(encoding="utf-8")
    files = [path for path in DEPLOY.rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    unnamed = {path.name for path in files if path.name not in text}
    assert unnamed <= {"README.md", "__init__.py"}


# The locks


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def pins(path: Path) -> dict[str, str]:
    """Each package's version."""
    found = re.findall(r"^([A-Za-z0-9_.-]+)==([^\s;]+)", path.read_text(encoding="utf-8"), re.MULTILINE)
    return {normal(name): version for name, version in found}


def project() -> dict[str, Any]:
    return dict(tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"])


def test_what_users_install_is_what_is_tested() -> None:
    """The runtime lock has the versions of the development lock, but for what this system does not need."""
    tested = pins(ROOT / "requirements.lock")
    runtime = pins(RUNTIME_LOCK)
    assert {name for name, version in runtime.items() if tested.get(name) != version} <= {"colorama"}
    wanted = {normal(re.split(r"[ ><=\[]", each)[0]) for each in project()["dependencies"]}
    assert wanted <= set(runtime)


def test_the_runtime_lock_has_no_development_tools() -> None:
    """What tests, lints or audits does not go to a hospital."""
    tools = {normal(re.split(r"[ ><=\[]", each)[0]) for each in project()["optional-dependencies"]["dev"]}
    assert tools & set(pins(RUNTIME_LOCK)) == set()


def test_every_package_of_the_runtime_lock_has_its_hashes() -> None:
    """`pip install --require-hashes` takes it as a whole, from wherever the files come."""
    text = RUNTIME_LOCK.read_text(encoding="utf-8")
    entries = re.split(r"^(?=[A-Za-z0-9])", text, flags=re.MULTILINE)[1:]
    assert len(entries) == len(pins(RUNTIME_LOCK)) > 40
    for entry in entries:
        assert re.search(r"--hash=sha256:[0-9a-f]{64}", entry), entry.split()[0]
    assert "://" not in text


FLAW = {"name": "b", "version": "1", "vulns": [{"id": "CVE-1", "fix_versions": ["2"]}]}
SOUND = {"name": "a", "version": "1", "vulns": []}
UNSEEN = {"name": "c", "skip_reason": "Dependency not found and could not be audited"}


@pytest.mark.parametrize(
    ("packages", "code", "word"),
    [
        ([SOUND], 0, "1 packages, none"),
        ([SOUND, FLAW, UNSEEN], 1, "b 1: CVE-1, mended in 2"),
        ([SOUND, UNSEEN], 3, "could not be reached for 1 of 2"),
        ([], 3, "this is no audit"),
    ],
)
def test_an_audit_that_saw_nothing_is_none(packages: list[dict[str, Any]], code: int, word: str) -> None:
    """pip-audit passes over what it could not look up, and ends with 0."""
    found, said = judge(json.dumps({"dependencies": packages}))
    assert found == code
    assert word in said


def test_an_audit_without_a_report_is_none() -> None:
    """Where nothing answers, pip-audit writes none."""
    assert judge("")[0] == 3


@pytest.mark.parametrize("path", ["requirements.lock", "requirements-runtime.lock"])
def test_locks_name_no_host(path: str) -> None:
    """Each site has a registry of its own, or none."""
    assert not re.search(
        r"(--index|--find-links|--trusted|https?:)", (ROOT / path).read_text(encoding="utf-8")
    )

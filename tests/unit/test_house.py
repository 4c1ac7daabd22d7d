"""The rules of the house, read from the source with `ast`: the three floors, and what stands in one place alone."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path

import pytest

from broker import errors

ROOT = Path(__file__).parents[2]
FLOORS = ("broker", "worker", "coordinator")
MOST_IN_A_ROOM = 13
PURE = (
    "coordinator/learning/aggregation.py", "coordinator/learning/exact_sum.py", "coordinator/learning/measures.py",
    "coordinator/learning/strategies/averages.py", "coordinator/learning/strategies/median.py",
    "coordinator/learning/rounds.py", "coordinator/learning/membership.py", "coordinator/learning/stopping.py",
)  # fmt: skip
#: A person who calls `coordinator.simulate` wants both sides in one process, and a relay is both; nothing else is, and
#: each is imported by one file alone.
BOTH_SIDES = {
    "coordinator/starting/simulation.py": "coordinator/__init__.py",
    "coordinator/starting/relay/above.py": "coordinator/starting/relay/command.py",
}
KERAS_IN_COORDINATOR = {
    "coordinator/keras/task_models.py",
    "coordinator/keras/child.py",
    "coordinator/keras/building.py",
    "coordinator/keras/keeper.py",
}


def sources(floor: str) -> list[Path]:
    return sorted((ROOT / floor).rglob("*.py"))


@cache
def imported(path: Path, *, top_level_only: bool = False) -> frozenset[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return frozenset(names_in(tree.body if top_level_only else ast.walk(tree)))


def names_in(nodes: Iterable[ast.AST]) -> Iterator[str]:
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def roots(path: Path, *, top_level_only: bool = False) -> set[str]:
    return {name.split(".")[0] for name in imported(path, top_level_only=top_level_only)}


def users_of(package: str) -> set[str]:
    return {
        str(path.relative_to(ROOT)) for floor in FLOORS for path in sources(floor) if package in roots(path)
    }


def test_no_import_runs_up() -> None:
    """The broker knows nothing of the other two; worker and coordinator never import each other."""
    for floor, forbidden in {
        "broker": {"worker", "coordinator"}, "worker": {"coordinator"}, "coordinator": {"worker"},
    }.items():  # fmt: skip
        for path in sources(floor):
            assert str(path.relative_to(ROOT)) in BOTH_SIDES or not roots(path) & forbidden, path


@pytest.mark.parametrize("both_sides", BOTH_SIDES)
def test_what_is_both_sides_is_imported_by_nobody_but_who_asks_for_it(both_sides: str) -> None:
    """The coordinator's own process stays without TensorFlow and without workers."""
    module = both_sides.removesuffix(".py").replace("/", ".")
    users = {str(path.relative_to(ROOT)) for path in sources("coordinator") if module in imported(path)}
    assert users == {BOTH_SIDES[both_sides]}
    assert not any(module in imported(ROOT / user, top_level_only=True) for user in users)


@pytest.mark.parametrize(
    ("package", "names"), [("coordinator", "RunResult run simulate strategies"), ("worker", "WorkResult run")]
)
def test_a_package_gives_its_names_when_they_are_asked_for(package: str, names: str) -> None:
    """`import coordinator` costs nothing, and all that it exports is there; `run` needs no TensorFlow."""
    script = (
        f"import sys, {package}; before = set(sys.modules) & {{'numpy', 'click', 'pika'}}; {package}.run; "
        f"print(sorted(before), [name for name in ('tensorflow', 'keras') if name in sys.modules]); "
        f"print(*sorted({package}.__all__)); [getattr({package}, name) for name in {package}.__all__]"
    )
    answer = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert answer.stdout.splitlines() == ["[] []", names]


def test_one_room_imports_pika_and_one_file_msgpack() -> None:
    """The seam to the broker and the wire's encoding are each in one place."""
    assert {str(Path(name).parent) for name in users_of("pika")} == {"broker/link/rabbitmq"}
    assert users_of("msgpack") == {"broker/wire/codec.py"}


def is_private(name: str) -> bool:
    return any(part.startswith("_") and not part.endswith("__") for part in name.split("."))


def private_names_of_others(tree: ast.AST) -> Iterator[str]:
    """Those that are imported, or looked up in anything but `self`."""
    yield from filter(is_private, names_in(ast.walk(tree)))
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and is_private(node.attr) and ast.unparse(node.value) != "self":
            yield node.attr
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("getattr", "hasattr", "setattr"):
            yield from (
                ast.unparse(name) for name in node.args[1:2] if is_private(ast.unparse(name).strip("'"))
            )


def origins(tree: ast.AST) -> Iterator[tuple[str, str]]:
    """Each imported name, and the package that it comes from."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            packages_of = [alias.name.split(".")[0] for alias in node.names]
            yield from (
                (each.asname or root, root) for each, root in zip(node.names, packages_of, strict=True)
            )
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from ((alias.asname or alias.name, node.module.split(".")[0]) for alias in node.names)


def children_of_pika(tree: ast.AST) -> Iterator[str]:
    """Classes with a base from pika: what is private on their `self` may be pika's."""
    its = {name for name, package in origins(tree) if package == "pika"}
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef) and its & {ast.unparse(base).split(".")[0] for base in node.bases}:
            yield node.name


def touches_of_pika(source: str) -> list[str]:
    tree = ast.parse(source)
    return [*private_names_of_others(tree), *children_of_pika(tree)]


def test_what_is_private_in_pika_is_touched_in_one_file() -> None:
    """The one that tells in the log when it no longer does its work."""
    touching = {
        name for name in users_of("pika") if touches_of_pika((ROOT / name).read_text(encoding="utf-8"))
    }
    assert touching == {"broker/link/rabbitmq/pika_stand_ins.py"}


@pytest.mark.parametrize(
    "source",
    [
        "import pika\npika.connection.Connection._send_message",
        "from pika.adapters.utils import io_services_utils as utils\nutils._AsyncTransportBase",
        "from pika.adapters.utils.io_services_utils import _AsyncTransportBase",
        "import pika._private",
        "self._connection._transport.abort()",
        "getattr(connection, '_transport')",
        "import pika\nclass Mine(pika.SelectConnection): ...",
        "from pika import SelectConnection as Theirs\nclass Mine(Theirs): ...",
    ],
)
def test_a_touch_of_a_private_name_is_seen(source: str) -> None:
    """The rule above looks at something."""
    assert touches_of_pika(source)


def test_own_private_names_are_no_touch() -> None:
    """What begins with an underscore on `self` is the file's own, unless its class is pika's child."""
    assert touches_of_pika("import pika\nclass A:\n    def b(self): self._c(pika.spec.__name__)") == []


def test_the_server_under_the_pages_is_set_up_in_one_place() -> None:
    """Caps, and that nothing goes to a temporary file, hold for both pages; werkzeug's server is for debugging."""
    assert users_of("waitress") == {"broker/web/http_server.py"}
    for floor in FLOORS:
        for path in sources(floor):
            assert "werkzeug.serving" not in imported(path), path


def test_dicom_is_read_in_one_place() -> None:
    """What pydicom says may quote a patient's tags; the file that keeps it in is the only one that hears it."""
    assert users_of("pydicom") == {"worker/data/dicom.py", "worker/data/dicom_codecs.py"}


def test_archives_are_opened_in_one_place_a_kind() -> None:
    """A `.keras` file is read within limits by one file alone; others do no more than name zipfile's errors."""
    allowed = {"broker/model/archive.py", "worker/data/arrays.py", "worker/learning/saved_model.py"}
    assert users_of("zipfile") == allowed
    for name in allowed - {"broker/model/archive.py"}:
        assert "ZipFile(" not in (ROOT / name).read_text(encoding="utf-8"), name


def sleeps(path: Path) -> bool:
    """Whether a file calls time.sleep, by whatever name."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    calls = (node for node in ast.walk(tree) if isinstance(node, ast.Attribute))
    is_called = any(call.attr == "sleep" and ast.unparse(call.value) in ("time", "asyncio") for call in calls)
    return is_called or bool(imported(path) & {"time.sleep", "asyncio.sleep"})


def test_nothing_sleeps() -> None:
    """The product waits so that it can be stopped; a test waits for what is to come, and no longer."""
    assert [str(path) for path in everything() if sleeps(path)] == []


def everything() -> list[Path]:
    return [path for folder in (*FLOORS, "deploy", "tests") for path in sources(folder)]


def cases_in(path: Path) -> Iterator[ast.FunctionDef]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
            yield node


def test_every_test_states_its_rule() -> None:
    """In a docstring: the name says what happens, the rule says why that is right."""
    bare = [
        f"{path.name}:{test.name}"
        for path in sources("tests")
        for test in cases_in(path)
        if not ast.get_docstring(test)
    ]
    assert bare == []


def classes_by_base() -> dict[str, set[str]]:
    """Every class of the product and its bases' names."""
    return {
        node.name: {ast.unparse(base).rsplit(".", 1)[-1] for base in node.bases}
        for floor in FLOORS
        for path in sources(floor)
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.ClassDef)
    }


def test_every_error_of_ours_stands_in_the_one_tree() -> None:
    """The docstring of `broker.errors` draws all of them, each below its base and with its exit code."""
    lines = re.findall(r"^([│├└─ ]*)(\w+) +(\d)  .+$", errors.__doc__ or "", re.MULTILINE)
    drawn = [(len(lead) // 4, name, int(code)) for lead, name, code in lines]
    ours, bases = {"WarrenError"}, classes_by_base()
    while more := {name for name, its in bases.items() if its & ours} - ours:
        ours |= more
    assert {name for _, name, _ in drawn} == ours
    above: list[str] = []
    for depth, name, code in drawn:
        kind = getattr(errors, name)
        above[depth:] = [name]
        assert kind.exit_code == code, name
        assert depth == 0 or kind.__base__.__name__ == above[depth - 1], name


def contents(package: Path) -> list[str]:
    """What a package's contents page lists, in its order."""
    page = ast.get_docstring(ast.parse((package / "__init__.py").read_text(encoding="utf-8"))) or ""
    return re.findall(r"^    ([a-z_0-9]+)/? +\S", page, re.MULTILINE)


def packages() -> list[Path]:
    """Floors, rooms, and rooms within rooms."""
    return sorted(path.parent for floor in FLOORS for path in (ROOT / floor).rglob("__init__.py"))


def inside(package: Path) -> set[str]:
    files = {path.stem for path in package.glob("*.py")} - {"__init__", "__main__"}
    return files | {path.parent.name for path in package.glob("*/__init__.py")}


@pytest.mark.parametrize("package", packages(), ids=lambda path: str(path.relative_to(ROOT)))
def test_every_file_is_on_the_contents_page_of_its_room(package: Path) -> None:
    """A newcomer finds what there is in one place, and no more in one room than can be overlooked."""
    assert sorted(contents(package)) == sorted(inside(package))
    assert len(inside(package)) <= MOST_IN_A_ROOM


def modules_in(floor: str) -> dict[str, Path]:
    """Every module of a floor by its dotted name."""
    parts = {path: path.relative_to(ROOT).with_suffix("").parts for path in sources(floor)}
    return {".".join(part for part in its if part != "__init__"): path for path, its in parts.items()}


@pytest.mark.parametrize("floor", FLOORS)
def test_rooms_stand_on_each_other_in_the_order_of_the_contents_page(floor: str) -> None:
    """No room knows what stands below it on the page, so there is no circle between rooms, either."""
    modules, order = modules_in(floor), contents(ROOT / floor)
    runs_up = [
        f"{name} imports {used}"
        for name, path in modules.items()
        for used in imported(path) & modules.keys()
        if "__main__" not in name
        and name.count(".")
        and used.count(".")
        and order.index(used.split(".")[1]) > order.index(name.split(".")[1])
    ]
    assert runs_up == []


def says_that_nothing_runs_up(package: Path) -> bool:
    return "nothing imports what stands below it" in (package / "__init__.py").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "package",
    list(filter(says_that_nothing_runs_up, packages())),
    ids=lambda path: str(path.relative_to(ROOT)),
)
def test_files_stand_on_each_other_where_the_contents_page_says_so(package: Path) -> None:
    """A page that is read from the top down is read in an order in which everything rests on what was read."""
    order, room = contents(package), ".".join(package.relative_to(ROOT).parts)
    runs_up = [
        f"{path.stem} imports {used}"
        for path in package.glob("*.py")
        if path.stem in order
        for used in order[order.index(path.stem) + 1 :]
        if f"{room}.{used}" in imported(path)
    ]
    assert runs_up == []


@pytest.mark.parametrize("floor", FLOORS)
def test_no_files_import_each_other_in_a_circle(floor: str) -> None:
    """What a file rests on can be read before it: those that rest on nothing left are taken away, time and again."""
    modules = modules_in(floor)
    rests_on = {name: imported(path) & (modules.keys() - {name}) for name, path in modules.items()}
    while free := {name for name, used in rests_on.items() if not used & rests_on.keys()}:
        rests_on = {name: used for name, used in rests_on.items() if name not in free}
    assert rests_on == {}


def test_nothing_imports_pickle() -> None:
    """Nothing that arrives is ever run."""
    for package in ("pickle", "marshal", "shelve", "dill", "cloudpickle"):
        assert users_of(package) == set()


def test_tensorflow_is_imported_late_or_in_the_child_process() -> None:
    """`--help` and `status` answer at once, and the coordinator process stays small."""
    for floor in FLOORS:
        for path in sources(floor):
            if str(path.relative_to(ROOT)) not in KERAS_IN_COORDINATOR:
                assert not roots(path, top_level_only=True) & {"tensorflow", "keras"}, path


def test_the_learning_is_pure() -> None:
    """Rounds, aggregation and membership know no broker link, no clock, no disk and no TensorFlow."""
    forbidden = {"time", "datetime", "threading", "os", "pathlib", "pika", "tensorflow", "keras", "logging"}
    for name in PURE:
        assert not roots(ROOT / name) & forbidden, name
        assert not imported(ROOT / name) & {"broker.link.seam", "broker.link.memory"}, name
        assert not any(used.startswith("broker.link.rabbitmq") for used in imported(ROOT / name)), name


@pytest.mark.parametrize("command", ["coordinator.cli", "worker.cli", "broker.cli"])
def test_a_command_line_starts_without_tensorflow(command: str) -> None:
    """Loading the command line loads neither TensorFlow nor Keras nor matplotlib, nor what reads rare images."""
    late = ("tensorflow", "keras", "matplotlib", "pydicom", "imagecodecs", "tifffile")
    script = f"import sys, {command}; print([name for name in {late} if name in sys.modules])"
    answer = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert answer.stdout.strip() == "[]"


def test_the_names_of_measures_stand_in_one_file_of_the_coordinator() -> None:
    """A column, a chart, a line of the log and the model's card call a measure the same."""
    ours = {"loss", "balanced_accuracy", "auc", "accuracy", "val_", "central_"}
    found = {
        str(path.relative_to(ROOT))
        for path in sources("coordinator")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Constant) and node.value in ours
    }
    # What Keras is told stands where its models are made.
    assert found - KERAS_IN_COORDINATOR == {"coordinator/learning/measure_names.py"}

"""The shape of the code base, held against the code itself: floors, doors, sizes, weight at the door."""

from __future__ import annotations

import ast
import importlib
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "undertone"

FLOORS = (
    ("errors", "stats", "sequential", "verdicts"),
    ("rows", "registry"),
    ("provenance",),
    ("models", "launch"),
    ("traits", "vectors", "training"),
    ("lab", "language_model"),
    ("judges",),
    ("domains",),
    ("teachers", "filters", "evaluation", "doctor", "mechanism"),
    ("transfer",),
    ("studies",),
    ("api",),
    ("report", "cli", "inspect_tasks", "__main__", "__init__"),
)  # lowest first; `__init__` is the package's own face: lazy names
SIDEWAYS = {  # the only imports inside a floor, all one way
    ("sequential", "stats"),
    ("mechanism", "evaluation"),
    ("cli", "report"),
    ("__main__", "cli"),
}

DOORS = {
    "from_pretrained": {
        "models.loading",
        "models.names",
        "models.attaching",
    },  # names: a hub name's commit, from its config alone
    "apply_chat_template": {"models.templates"},
    "register_forward_hook": {"models.layers"},
    "register_forward_pre_hook": {"models.layers"},
    "register_full_backward_hook": {"models.layers"},
    "print": {"cli", "cli.printing", "cli.vector"},
}
LIGHT = (
    "errors", "stats", "sequential", "verdicts", "rows", "registry", "provenance", "traits", "judges", "domains", "filters.rules",
    "report",
)  # fmt: skip
HEAVY = {"torch", "transformers", "peft", "accelerate"}
CATCH_ALL = {"utils", "util", "common", "helpers", "helper", "misc", "core", "services", "types"}

LONGEST_FUNCTION = 60  # lines of code: a screen; the docstring is not counted
LONGEST_MODULE = 450
LONGER_MODULES = {
    "rows": 510,
    "lab.world": 600,
}  # many small things of one kind, easier to read in one place


@cache
def modules() -> dict[str, ast.Module]:
    """Dotted name below ``undertone`` -> its tree; a folder's ``__init__`` has the folder's name."""
    found = {}
    for path in sorted(SOURCE.rglob("*.py")):
        parts = path.relative_to(SOURCE).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)
        found[name] = ast.parse(path.read_text(encoding="utf-8"), str(path))
    return found


def imports(name: str) -> Iterator[str]:
    """Modules of undertone that a module imports anywhere: at its head, lazily, or for types only."""
    for node in ast.walk(modules()[name]):
        if isinstance(node, ast.Import):
            wanted = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name}: relative import in line {node.lineno}"
            wanted = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for full in wanted:
            inside = full.removeprefix("undertone.")
            if inside != full:
                yield inside if inside in modules() else inside.rpartition(".")[0] or inside


def room(module: str) -> str:
    return module.partition(".")[0]


def test_every_room_has_a_floor() -> None:
    known = {name for floor in FLOORS for name in floor}
    assert {room(module) for module in modules()} <= known, "give the new room a floor in FLOORS"


def test_a_room_imports_only_from_lower_floors() -> None:
    height = {name: level for level, floor in enumerate(FLOORS) for name in floor}
    upwards = [
        f"{module} imports {wanted}"
        for module in modules()
        for wanted in imports(module)
        if room(wanted) in height  # `from undertone import __version__` names no room
        and room(wanted) != room(module)
        and height[room(wanted)] >= height[room(module)]
        and (room(module), room(wanted)) not in SIDEWAYS
    ]
    assert not upwards


def test_there_is_no_circle_of_imports() -> None:
    graph = {module: set(imports(module)) - {module} for module in modules()}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" → ".join(error.args[1]))


@pytest.mark.parametrize("danger", DOORS)
def test_a_danger_has_one_door(danger: str) -> None:
    users = set()
    for module, tree in modules().items():
        for node in ast.walk(tree):
            called = isinstance(node, ast.Attribute) and node.attr == danger and danger != "print"
            printed = isinstance(node, ast.Call) and getattr(node.func, "id", None) == danger
            if called or printed:
                users.add(module)
    assert users <= DOORS[danger]


WORDS = {"reproduced", "not reproduced", "not measured", "partly"}


def test_only_the_rule_set_writes_a_verdict() -> None:
    """Types of records apart: a word in a subscript, such as ``Literal["partly"]``, is no verdict."""
    writers = {
        f"{module}, line {node.lineno}"
        for module, tree in modules().items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and node.value in WORDS and module != "verdicts"
    }
    assert not writers, "take the word from undertone.verdicts"


def is_stage(function: ast.FunctionDef) -> bool:
    names = [getattr(one.func, "id", "") for one in function.decorator_list if isinstance(one, ast.Call)]
    return "stage" in names


def test_stages_are_functions_at_the_top_of_their_modules_that_take_their_inputs_by_name() -> None:
    found, hidden, by_place = 0, [], []
    for module, tree in modules().items():
        top = {id(node) for node in tree.body}
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef) and is_stage(node):
                found += 1
                hidden += [] if id(node) in top else [f"{module}.{node.name}"]
                by_place += (
                    [f"{module}.{node.name}"] if [one.arg for one in node.args.args] != ["folder", "device"] else []
                )
    assert found >= 7, "the stages of the transfer experiment at least"
    assert not hidden
    assert not by_place, "everything after folder and device stands behind the *"


def test_stages_are_had_from_the_executor_and_from_nowhere_else() -> None:
    """A run finds and computes stages under identities that ``StageFunction`` computes; nobody else makes one up."""
    users = {
        module
        for module, tree in modules().items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)
        and getattr(node.func.value, "id", getattr(node.func.value, "attr", "")) == "run"
        and node.func.attr in ("stage", "find", "compute")
    }  # fmt: skip
    assert users <= {"launch.executor"}


def heavy_after(code: str) -> str:
    """Runs code in a fresh interpreter; the heavy packages that it brought in."""
    show = f"import sys; sys.stderr.write('HEAVY:' + ' '.join(sorted({HEAVY!r} & set(sys.modules))))"
    done = subprocess.run(
        [sys.executable, "-c", f"try:\n    {code}\nexcept SystemExit:\n    pass\n{show}"],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert "HEAVY:" in done.stderr, done.stderr
    return done.stderr.rpartition("HEAVY:")[2]


def test_import_undertone_brings_no_torch() -> None:
    assert not heavy_after("import undertone")


@pytest.mark.parametrize("rest", [[], ["run"]], ids=["undertone", "undertone run"])
def test_help_brings_no_torch(rest: list[str]) -> None:
    if "__main__" not in modules():
        pytest.skip("there is no command line yet")
    argv = ["undertone", *rest, "--help"]
    assert not heavy_after(
        f"import runpy, sys; sys.argv = {argv!r}; runpy.run_module('undertone', run_name='__main__')"
    )


def test_the_light_rooms_bring_no_torch() -> None:
    light = [m for m in modules() if any(m == name or m.startswith(name + ".") for name in LIGHT)]
    assert not heavy_after("; ".join(f"import undertone.{module}" for module in light))


def test_no_file_is_a_catch_all() -> None:
    names = {part for module in modules() for part in module.split(".")}
    assert not names & CATCH_ALL


LONGEST_STUDY = 300


def test_a_study_is_a_short_file() -> None:
    lines = {
        path.name: len(path.read_text(encoding="utf-8").splitlines())
        for path in (SOURCE / "studies" / "builtin").glob("*.py")
    }
    assert {name: count for name, count in lines.items() if count > LONGEST_STUDY} == {}
    assert lines["in_context.py"] <= 140


def test_modules_and_functions_stay_small() -> None:
    long = []
    for module, tree in modules().items():
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                doc = node.body[0] if ast.get_docstring(node) else None
                told = 0 if doc is None else (doc.end_lineno or 0) - doc.lineno + 1
                lines = (node.end_lineno or 0) - node.lineno + 1 - told
                if lines > LONGEST_FUNCTION:
                    long.append(f"{module}.{node.name}: {lines} lines")
        lines = max((getattr(node, "end_lineno", 0) for node in tree.body), default=0)
        if lines > LONGER_MODULES.get(module, LONGEST_MODULE):
            long.append(f"{module}: {lines} lines")
    assert not long


def test_the_readmes_map_names_every_room() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    if "src/undertone/" not in readme:
        pytest.skip("the README has no map yet")
    rooms = {room(module) for module in modules()} - {"__init__", "__main__"}
    assert not {name for name in rooms if not re.search(rf"\b{name}(\.py|/)", readme)}


def tracked() -> list[Path]:
    done = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:  # a source archive: no history
        return [path for room in ("src", "tests", "docs") for path in (ROOT / room).rglob("*.*")]
    return [ROOT / name for name in done.stdout.split("\0") if name]


def test_no_file_names_a_machine_or_a_registry_host() -> None:
    private = re.compile(
        r"(?<![\w.])/(?:work|root|opt|Users|home)/\w|/tmp/\w|--(?:extra-)?index-url|pythonhosted\.org|\bfile:///\w"
    )
    found = []
    for path in tracked():
        if path.is_file() and path != Path(__file__):
            for number, line in enumerate(path.read_text("utf-8", "replace").splitlines(), start=1):
                if match := private.search(line):
                    found.append(f"{path.relative_to(ROOT)}, line {number}: {match[0]}")
    assert not found


def test_no_package_archive_or_weights_stand_in_the_repository() -> None:
    """What a download leaves in the working folder is in a commit before anybody looks."""
    foreign = (".whl", ".gz", ".zip", ".tar", ".safetensors", ".gguf", ".bin", ".pt", ".pth", ".parquet")
    assert [path.name for path in tracked() if path.name.endswith(foreign)] == []


def test_no_text_names_a_confidence_that_the_config_may_change() -> None:
    # `undertone vector` has no config: its intervals are of the default confidence.
    literal = re.compile(r"\b9[059]\s?%")
    found = []
    for module, tree in modules().items():
        if module == "cli.vector":
            continue
        documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
        docs = {id(node.body[0].value) for node in ast.walk(tree)
                if isinstance(node, documented) and node.body and isinstance(node.body[0], ast.Expr)}  # fmt: skip
        found += [
            f"{module}, line {node.lineno}: {node.value!r}"
            for node in ast.walk(tree)
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docs
            if literal.search(node.value)
        ]
    assert not found


def imported(tree: ast.Module) -> dict[str, object]:
    """Every name that a file imports, in functions too -> what it stands for."""
    names: dict[str, object] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.asname or "." not in alias.name:
                    names[alias.asname or alias.name] = importlib.import_module(alias.name)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            for alias in node.names:
                try:
                    found = importlib.import_module(f"{node.module}.{alias.name}")
                except ModuleNotFoundError:
                    found = getattr(importlib.import_module(node.module), alias.name)
                names[alias.asname or alias.name] = found
    return names


def replaced(tree: ast.Module) -> Iterator[tuple[str, str, int]]:
    """(object, attribute, line) of every ``setattr(object, "attribute", …)``, those of a loop over objects too."""
    loops = {
        node.target.id: [item.id for item in node.iter.elts if isinstance(item, ast.Name)]
        for node in ast.walk(tree)
        if isinstance(node, ast.For) and isinstance(node.target, ast.Name) and isinstance(node.iter, ast.Tuple)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "setattr":
            match node.args:
                case [ast.Name(id=owner), ast.Constant(value=str(name)), *_]:
                    for one in loops.get(owner, [owner]):
                        yield one, name, node.lineno


def test_what_the_tests_replace_exists() -> None:
    # A slow test that replaces a name which has moved would fail only in the full tier.
    lost, seen = [], 0
    for path in sorted((ROOT / "tests").rglob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        owners = imported(tree) if "setattr" in path.read_text(encoding="utf-8") else {}
        for owner, name, line in replaced(tree):
            if owner in owners:
                seen += 1
                if not hasattr(owners[owner], name):
                    lost.append(f"{path.relative_to(ROOT)}, line {line}: {owner}.{name}")
    assert seen >= 40
    assert not lost

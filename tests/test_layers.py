"""The structure of the code: what may import what, how large folders and functions may be, where SQL is."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = {
    "model": set(),
    "indexer": {"model"},
    "training": {"indexer", "model"},
    "service": {"indexer", "model"},
    "xclip_search": {"service", "training", "indexer", "model"},
}
"""Which packages may import which."""

LAYERS = {
    "model": """
        architecture atomic_files errors preprocessing quantization quick_start score_names
        | aggregation features temporal tokenization | config | towers | kernels | runtimes | scoring
        | checkpoints | xclip
    """,
    "indexer": """
        errors | atomic_files | media | store | coarse features ingest | search | maintenance | index
    """,
    "service": """
        errors observability.logs ingest.web.policy | settings | auth schemas | admission loading | ingest
        | derived_media remote_media | state | index_switch observability | http | routes | app | server
    """,
    "training": """
        errors | config distributed | datasets | data scorers | evaluation | loop
        | demo_corpus publishing | demo_model | ablation
    """,
}
"""From the lowest to the highest: a part imports parts below its own, none of its own layer. The longest name
that fits a module counts."""

HEAVY = {"torch", "open_clip", "faiss", "decord", "av", "numpy", "fastapi", "uvicorn", "pydantic", "httpx"}
FORBIDDEN_NAMES = {"utils", "util", "common", "base", "core", "manager", "helpers", "misc"}
MAX_MODULES, MAX_FUNCTION_LINES, MAX_PARAMETERS, MIN_LINES = 15, 60, 6, 60
SQL = re.compile(r"\s*(SELECT|INSERT INTO|UPDATE \w+ SET|DELETE FROM|CREATE TABLE|PRAGMA|VACUUM|REINDEX)\b")
CONSTANT = re.compile(r"_?[A-Z][A-Z0-9_]+")


def sources(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def is_only_for_types(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"


def statements(node: ast.AST, *, with_types: bool) -> Iterator[ast.AST]:
    """All nodes below, those that only a type checker reads where asked for."""
    for child in ast.iter_child_nodes(node):
        if with_types or not is_only_for_types(child):
            yield child
            yield from statements(child, with_types=with_types)


@cache
def imported_modules(path: Path, with_types: bool = False) -> frozenset[str]:
    """Modules of ours that a file imports, inside functions too."""
    known = {module_name(p) for package in PACKAGES for p in sources(package)}
    found = set()
    for node in statements(tree_of(path), with_types=with_types):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            members = {f"{node.module}.{alias.name}" for alias in node.names}
            # `from package import module` reads the package too; its `__init__` names no further modules.
            found |= {name if name in known else node.module for name in members}
    return frozenset(found & known)


@pytest.mark.parametrize("package", PACKAGES)
def test_a_package_imports_only_the_packages_below_it(package):
    ours = {*PACKAGES, "tests", "benchmarks"}
    assert sources(package)
    for path in sources(package):
        roots = set()
        for node in ast.walk(tree_of(path)):
            if isinstance(node, ast.Import):
                roots |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                roots.add(node.module.split(".")[0])
        wrong = (roots & ours) - PACKAGES[package] - {package}
        assert not wrong, f"{path.relative_to(ROOT)} imports {sorted(wrong)}"


@pytest.mark.parametrize("package", LAYERS)
def test_inside_a_package_imports_point_downwards(package):
    layers = [layer.split() for layer in LAYERS[package].split("|")]
    level = {part: number for number, layer in enumerate(layers) for part in layer}

    def part_of(module: str) -> str:
        fitting = [part for part in level if f"{module}.".startswith(f"{package}.{part}.")]
        assert fitting, f"{module} is in none of the layers"
        return max(fitting, key=len)

    wrong = []
    for path in sources(package):
        if module_name(path) == package:  # What a package exports is imported when it is first used.
            continue
        part = part_of(module_name(path))
        for module in sorted(imported_modules(path)):
            if (
                module.startswith(f"{package}.")
                and part_of(module) != part
                and level[part_of(module)] >= level[part]
            ):
                wrong.append(f"{module_name(path)} imports {module}")
    assert not wrong, "\n".join(wrong)


def test_no_modules_import_each_other_in_a_circle():
    imports = {
        module_name(path): imported_modules(path)
        for package in PACKAGES
        for path in sources(package)
        if path.name != "__init__.py"  # What a package exports, it imports when the name is first used.
    }
    done: set[str] = set()

    def visit(module: str, way: tuple[str, ...]) -> None:
        if module in way:
            pytest.fail(" -> ".join((*way[way.index(module) :], module)))
        if module in done:
            return
        for other in sorted(imports.get(module, ())):
            visit(other, (*way, module))
        done.add(module)

    for module in sorted(imports):
        visit(module, ())


def folders() -> Iterator[Path]:
    for top in (*PACKAGES, "tests", "benchmarks"):
        yield from {path.parent for path in sources(top)}


def test_a_folder_holds_as_many_modules_as_one_can_survey():
    crowded = {}
    for folder in folders():
        modules = [
            path.name for path in folder.glob("*.py") if path.name not in ("__init__.py", "__main__.py")
        ]
        if len(modules) > MAX_MODULES:
            crowded[str(folder.relative_to(ROOT))] = len(modules)
    assert not crowded


@pytest.mark.parametrize("package", PACKAGES)
def test_a_package_is_typed_says_what_it_is_for_and_has_no_module_for_everything(package):
    assert (ROOT / package / "py.typed").exists()
    assert len((ast.get_docstring(tree_of(ROOT / package / "__init__.py")) or "").splitlines()) >= 3
    for path in sources(package):
        assert path.stem not in FORBIDDEN_NAMES, path
        assert ast.get_docstring(tree_of(path)), path


def test_a_small_module_is_one_that_several_packages_need():
    importers: dict[str, set[str]] = defaultdict(set)
    for package in PACKAGES:
        for path in sources(package):
            for module in imported_modules(path, with_types=True):
                importers[module].add(str(path.parent))
    small = {}
    for package in PACKAGES:
        for path in sources(package):
            num_lines = len(path.read_text(encoding="utf-8").splitlines())
            is_small = num_lines < MIN_LINES and path.name not in ("__init__.py", "__main__.py")
            if is_small and len(importers[module_name(path)]) < 2:
                small[module_name(path)] = num_lines
    assert not small


def is_command(function: ast.AST) -> bool:
    """Whether Typer reads the parameters of a function as options, or a decorator says that it does."""
    decorators = getattr(function, "decorator_list", ())
    return any(".command" in ast.unparse(node) or ".callback" in ast.unparse(node) for node in decorators)


def functions() -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef]]:
    for package in PACKAGES:
        for path in sources(package):
            for node in ast.walk(tree_of(path)):
                if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                    yield f"{module_name(path)}.{node.name}", node


def test_a_function_fits_on_a_screen():
    long = {}
    for name, node in functions():
        documented = ast.get_docstring(node) is not None
        docstring_lines = node.body[0].end_lineno - node.body[0].lineno + 1 if documented else 0
        num_lines = node.end_lineno - node.lineno + 1 - docstring_lines
        if num_lines > MAX_FUNCTION_LINES and not is_command(node):
            long[name] = num_lines
    assert not long


def test_a_function_takes_few_arguments():
    many = {}
    for name, node in functions():
        arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
        num_arguments = len([a for a in arguments if a.arg not in ("self", "cls")])
        if num_arguments > MAX_PARAMETERS and not is_command(node):
            many[name] = num_arguments
    assert not many


def test_sql_stands_below_the_store_alone():
    found = []
    for package in PACKAGES:
        for path in sources(package):
            if path.is_relative_to(ROOT / "indexer" / "store"):
                continue
            for node in ast.walk(tree_of(path)):
                if isinstance(node, ast.Constant) and isinstance(node.value, str) and SQL.match(node.value):
                    found.append(f"{path.relative_to(ROOT)}:{node.lineno}: {node.value[:60]}")
    assert not found, "\n".join(found)


DIFFERENT_FACTS = {
    "BLOCK_BYTES",
    "CLIP_SECONDS",
    "DIRECTIONS",
    "FORMAT",
    "POLL_SECONDS",
    "MAX_TRIES",
    "TRIES",
}
"""Names that say another thing in each module, with the same value by chance."""


def test_a_constant_is_defined_once():
    """The same name with the same literal value in two modules of the source is one fact written twice."""
    places: dict[tuple[str, str], list[str]] = defaultdict(list)
    for package in PACKAGES:
        for path in sources(package):
            for node in tree_of(path).body:
                target = (
                    node.target if isinstance(node, ast.AnnAssign) else getattr(node, "targets", [None])[0]
                )
                value = getattr(node, "value", None)
                if isinstance(target, ast.Name) and CONSTANT.fullmatch(target.id) and value is not None:
                    is_fact = any(isinstance(part, ast.Constant) for part in ast.walk(value))
                    if is_fact and not isinstance(value, ast.Call):
                        places[target.id.lstrip("_"), ast.unparse(value)].append(module_name(path))
    twice = {
        name: where for (name, _), where in places.items() if len(where) > 1 and name not in DIFFERENT_FACTS
    }
    assert not twice


@pytest.mark.parametrize("module", ["indexer", "training", "service", "xclip_search"])
def test_importing_a_package_loads_nothing_heavy(module):
    code = f"import sys, {module}; print(*(name for name in {HEAVY!r} if name in sys.modules))"
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert result.stdout.split() == []


@pytest.mark.parametrize("package", ["model", "indexer", "training"])
def test_only_the_service_reads_the_environment(package):
    for path in sources(package):
        text = path.read_text(encoding="utf-8")
        assert "os.environ" not in text and "getenv" not in text, path


def test_nothing_unpickles_and_torch_load_reads_weights_only():
    for package in PACKAGES:
        for path in sources(package):
            for node in ast.walk(tree_of(path)):
                if isinstance(node, ast.Call):
                    name = ast.unparse(node.func)
                    assert name not in {"pickle.load", "pickle.loads", "eval", "exec"}, path
                    keywords = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
                    if name == "torch.load":
                        assert keywords.get("weights_only") == "True", path
                    if name in {"np.load", "numpy.load"}:
                        assert keywords.get("allow_pickle", "False") == "False", path


@pytest.mark.slow
def test_a_search_and_an_uploaded_video_can_be_followed_through_few_files():
    command = [sys.executable, "-m", "benchmarks.facts.files_entered"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr

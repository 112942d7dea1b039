"""The directions of docs/design.md, read from the sources: who may know whom, and what is used nowhere.

A new module of the package finds its place in `LAYERS`, or among the parts if its name starts with an underscore.
"""

import ast
import re
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "python" / "tidegate"
CORE = ROOT / "rust" / "tidegate-core" / "src"
NEWLINE = "\n"  # f-strings take no backslash before Python 3.12

# Top to bottom. A module may import from layers below its own, and from its own as long as no cycle comes of it. "*" is a
# prefix; "_*" takes every module with an underscore that no other line names. `__init__` is the package itself.
LAYERS = (
    ("programs", ("__main__", "_cli*", "_demo*")),
    ("what is imported by its own name, on others of these", ("dropin", "dropin.*", "integrations", "integrations.*")),
    ("what is imported by its own name", ("backends", "backends.*", "clients", "clients.*", "sinks", "testing", "testing.*")),
    ("the public names", ("__init__",)),
    ("synchronous front", ("_run",)),
    ("on the shell", ("_collector",)),
    ("the shell", ("_scheduler",)),
    ("its parts", ("_*",)),
    ("errors", ("_errors",)),
    ("the compiled module", ("_core",)),
)

# The only modules beside those above it that are allowed to know the shell.
KNOW_THE_SHELL = (
    *("__init__", "_collector", "_run", "testing", "testing.*", "backends", "backends.*", "clients", "clients.*"),
    *("dropin", "dropin.*", "integrations", "integrations.*"),
    *("__main__", "_cli*", "_demo*"),
)

# Private imports by tests, benches and documentation, with the reason.
MAY_IMPORT_PRIVATE = {
    "tests/test_internal.py": {"tidegate._core"},  # breaks the engine on purpose: no public call can
    "tests/test_exports.py": {"tidegate._core"},  # compares the stub with the compiled module
    "tests/test_guides.py": {"tidegate._cli.cli", "tidegate._cli.config"},  # the same, and the keys that there are
    "tests/test_configuration.py": {"tidegate._cli.cli", "tidegate._cli.lines.lines_of"},  # a process for each would take minutes
    # What a ready-made backend is made with: through one, most of it would need a server.
    "tests/test_items.py": {f"tidegate.backends._items.{name}" for name in ("ItemBackend", "items_of", "target_of")},
    "bench/measure.py": {"tidegate._core"},  # refuses a debug build
    "bench/memory.py": {"tidegate._core"},  # the engine's own bytes a request
}

# Modules of the core that know nothing of each other; `engine` composes them.
POLICIES = frozenset({"ledger", "limit", "queue", "retry", "route", "wheel"})
COMPOSERS = frozenset({"engine", "lib", "sim"})
MAY_BE_UNSAFE = ("rust/tidegate-core/src/queue/", "rust/tidegate-core/src/ring/", "rust/tidegate-py/src/")

BANNED = {
    "asyncio.wait_for": "makes a task and a timer for each request",
    "pickle": "runs code when read",
    "time.time": "steps when the clock is set",
}


class Import(NamedTuple):
    """One imported name: `module` is dotted and absolute, `name` what is taken from it, if anything."""

    module: str
    name: str | None
    line: int


# ---- Python


def imports(source: str, package: str = "") -> Iterator[Import]:
    """Every import of a source text, wherever it stands; what only a type checker sees is left out."""
    pending: list[ast.AST] = [ast.parse(source)]
    while pending:
        node = pending.pop()
        if isinstance(node, ast.Import):
            yield from (Import(alias.name, None, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            yield from (Import(module, alias.name, node.lineno) for alias in node.names)
        if isinstance(node, ast.If) and ast.unparse(node.test).removeprefix("typing.") == "TYPE_CHECKING":
            pending.extend(node.orelse)
        else:
            pending.extend(ast.iter_child_nodes(node))


def module_name(path: Path) -> str:
    """`python/tidegate/backends/http.py` -> `backends.http`; the package itself is `__init__`."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts) or "__init__"


def package_sources() -> dict[str, Path]:
    """Every module of the package, by its name inside it."""
    return {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def import_graph() -> dict[str, set[str]]:
    """Which modules of the package each one imports, at the top or inside a function."""
    sources = package_sources()
    known = {*sources, "_core"}

    def inside(module: str, name: str | None) -> str | None:
        """The module of ours that an import means, if any."""
        if module.partition(".")[0] != "tidegate":
            return None
        dotted = module.removeprefix("tidegate").lstrip(".")
        for candidate in filter(None, (f"{dotted}.{name}".lstrip(".") if name else dotted, dotted)):
            if candidate in known:
                return candidate
        return "__init__"

    graph: dict[str, set[str]] = {}
    for module, path in sources.items():
        own = "tidegate" if module == "__init__" else f"tidegate.{module}"
        package = own if path.name == "__init__.py" else own.rpartition(".")[0]
        found = {inside(i.module, i.name) for i in imports(path.read_text(), package)}
        graph[module] = {target for target in found if target is not None and target != module}
    return graph


def matches(module: str, patterns: tuple[str, ...]) -> bool:
    """Whether a module is named by one of the patterns of `LAYERS`."""
    return any(module.startswith(p[:-1]) if p.endswith("*") else module == p for p in patterns)


def layer(module: str) -> int | None:
    """A module's place in `LAYERS`; the line that names it wins over the one that takes all the rest."""
    places = [place for place, (_, patterns) in enumerate(LAYERS) if matches(module, patterns)]
    named = [place for place in places if LAYERS[place][1] != ("_*",)]
    return next(iter(named or places), None)


def find_cycle(graph: Mapping[str, set[str]]) -> list[str]:
    """One cycle, its first module repeated at the end, or nothing."""
    finished: set[str] = set()

    def walk(module: str, path: list[str]) -> list[str]:
        if module in path:
            return [*path[path.index(module) :], module]
        if module not in finished:
            for target in sorted(graph.get(module, ())):
                if cycle := walk(target, [*path, module]):
                    return cycle
            finished.add(module)
        return []

    return next(filter(None, (walk(module, []) for module in sorted(graph))), [])


def test_every_module_has_a_layer():
    homeless = [module for module in import_graph() if layer(module) is None]
    assert not homeless, f"give them a line in LAYERS: {homeless}"


def test_imports_point_down():
    upward = [
        f"{module} imports {target}"
        for module, targets in import_graph().items()
        for target in sorted(targets)
        if (layer(module) or 0) > (layer(target) or 0)
    ]
    assert not upward


def test_errors_are_a_leaf():
    assert import_graph()["_errors"] == set()


def test_few_know_the_shell():
    knowing = {module for module, targets in import_graph().items() if "_scheduler" in targets}
    assert not {module for module in knowing if not matches(module, KNOW_THE_SHELL)}


def test_compiled_module_is_imported_by_underscore_modules_and_testing():
    importing = {module for module, targets in import_graph().items() if "_core" in targets}
    assert not {module for module in importing if not module.startswith("_") and not matches(module, ("testing", "testing.*"))}


def test_no_import_cycle():
    assert find_cycle(import_graph()) == []


def users() -> Iterator[tuple[str, int, str]]:
    """Every piece of Python that must live on the public API: its file, its first line there, and its text."""
    for folder in ("tests", "bench", "conformance", "docs", "examples"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            yield path.relative_to(ROOT).as_posix(), 0, path.read_text()
    for path in sorted([ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]):
        text = path.read_text()
        for block in re.finditer(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE):
            yield path.relative_to(ROOT).as_posix(), text[: block.start(1)].count(NEWLINE), block[1]


def test_tests_benches_and_documentation_use_the_public_api():
    private = []
    for file, offset, source in users():
        for found in imports(source):
            dotted = f"{found.module}.{found.name}" if found.name else found.module
            parts = dotted.split(".")
            hidden = any(part.startswith("_") and part != "__version__" for part in parts[1:])
            if parts[0] == "tidegate" and hidden and dotted not in MAY_IMPORT_PRIVATE.get(file, ()):
                private.append(f"{file}:{offset + found.line} imports {dotted}")
    assert not private


def dotted_names(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """Every name with its module that a source uses, by attribute or by import, and its line."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            yield ast.unparse(node), node.lineno
        elif isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from ((f"{node.module}.{alias.name}", node.lineno) for alias in node.names)


@pytest.mark.parametrize("banned", BANNED)
def test_package_does_without(banned):
    found = [
        f"{path.relative_to(ROOT)}:{line}"
        for path in package_sources().values()
        for name, line in dotted_names(ast.parse(path.read_text()))
        if name == banned or name.startswith(f"{banned}.")
    ]
    assert not found, f"{banned} {BANNED[banned]}"


# ---- Rust


def rust_code(text: str) -> str:
    """The text without comments, strings and its inline test module, which comes last; lines keep their numbers."""

    def blank(match: re.Match[str]) -> str:
        return "\n" * match[0].count("\n")

    tokens = r'//[^\n]*|/\*.*?\*/|b?r(#*)".*?"\1|b?"(?:\\.|[^"\\])*"|b?\'(?:\\.[^\']*|[^\\\'])\''
    code = re.sub(tokens, blank, text, flags=re.DOTALL)
    return re.split(r"#\[cfg\(test\)\]\s*mod\s+\w+\s*\{", code, maxsplit=1)[0]


def first_segments(tree: str) -> Iterator[str]:
    """`{limit::{Limit, Quota}, time}` -> limit, time: the names at the first level of the braces, or the one name."""
    if not tree.startswith("{"):
        yield from re.findall(r"^\w+", tree)
        return
    depth = 0
    for token in re.finditer(r"[{}]|(?<![\w:])\w+", tree):
        if token[0] == "{":
            depth += 1
        elif token[0] == "}":
            depth -= 1
            if depth == 0:
                return
        elif depth == 1:
            yield token[0]


def core_sources() -> dict[Path, str]:
    """Every source file of the core, with its top-level module."""
    files = {path: path.relative_to(CORE).with_suffix("").parts[0] for path in sorted(CORE.rglob("*.rs"))}
    assert files
    return files


def modules_used(path: Path) -> set[str]:
    """The top-level modules of the core that a file names, by `crate::` or by enough `super::`."""
    code = rust_code(path.read_text())
    depth = len(path.relative_to(CORE).parts) - (path.stem in {"mod", "lib"})
    to_the_root = r"\bcrate::" + (rf"|(?<![\w:])(?:super::){{{depth}}}" if depth else "")
    return {name for match in re.finditer(to_the_root, code) for name in first_segments(code[match.end() :])}


def test_only_the_engine_knows_more_than_one_policy():
    known: dict[str, set[str]] = {}
    for path, module in core_sources().items():
        if module not in COMPOSERS:
            known.setdefault(module, {module} & POLICIES).update(modules_used(path) & POLICIES)
    assert {module: policies for module, policies in known.items() if len(policies) > 1} == {}


def test_atomics_and_locks_come_from_one_module():
    """What threads change can be modelled with loom: it is never the standard library's own."""
    shared = re.compile(r"\bstd::(sync(?!::Arc;)|thread)\b")
    naming = {module for path, module in core_sources().items() if shared.search(rust_code(path.read_text()))}
    assert naming == {"sync"}


def test_unsafe_stays_in_its_folders():
    outside = [
        f"{file}:{code[: match.start()].count(NEWLINE) + 1}"
        for path in sorted((ROOT / "rust").rglob("*.rs"))
        if not (file := path.relative_to(ROOT).as_posix()).startswith(MAY_BE_UNSAFE)
        for code in [rust_code(path.read_text())]
        for match in re.finditer(r"\bunsafe\b", code)
    ]
    assert not outside


def cargo_tree(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Ask cargo about the core's dependencies."""
    command = ["cargo", "tree", "--locked", "--package", "tidegate-core", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def test_core_does_not_know_python():
    """The core builds and tests without an interpreter: cargo finds no path from it to PyO3."""
    found = cargo_tree("--invert", "pyo3")
    assert found.returncode != 0, found.stdout
    assert "did not match any packages" in found.stderr


def test_core_depends_on_little_beside_std():
    tree = cargo_tree("--depth", "1", "--edges", "normal,build", "--prefix", "none", "--format", "{p}")
    assert tree.returncode == 0, tree.stderr
    assert [line.split()[0] for line in tree.stdout.splitlines()] == ["tidegate-core", "hdrhistogram"]

"""The public names agree everywhere they are written: `__all__`, `dir()`, the stub, the compiled module, docs/reference.md."""

import ast
import enum
import inspect
import re
import subprocess
import sys
from pathlib import Path
from types import FunctionType, ModuleType

import pytest

import tidegate
from tidegate import _core

ROOT = Path(__file__).parents[1]
REFERENCE = ROOT / "docs" / "reference.md"
STUB = ROOT / "python" / "tidegate" / "_core.pyi"

NAMES = tuple(tidegate.__all__)
DEFINED = tuple(name for name in NAMES if isinstance(getattr(tidegate, name), type | FunctionType))
# Every client that there is something for, and what only a part of the package needs.
NOT_NEEDED = {
    "aiohttp",
    "click",
    "curl_cffi",
    "httpx",
    "httpx2",
    "lxml",
    "msgspec",
    "niquests",
    "requests",
    "snscrape",
    "urllib3",
    "uvloop",
}
CLASSES = tuple(name for name in DEFINED if isinstance(getattr(tidegate, name), type))


def documented_names() -> list[str]:
    """What the reference's tables list: the identifier that opens the first cell of a row."""
    return re.findall(r"^\| `(\w+)", REFERENCE.read_text(), re.MULTILINE)


def own_docstring(thing: type | FunctionType) -> str:
    """A docstring that someone wrote for it: not inherited, not made up by `dataclass`."""
    text = (vars(thing).get("__doc__") if isinstance(thing, type) else thing.__doc__) or ""
    return "" if text.startswith(f"{thing.__name__}(") else text.strip()


def test_all_is_sorted():
    """Constants, classes, functions, each by name, as ruff's RUF022 writes it; no name twice."""

    def kind(name: str) -> int:
        return 0 if name.isupper() and len(name) > 1 else 1 if name[0].isupper() else 2

    assert list(NAMES) == sorted(set(NAMES), key=lambda name: (kind(name), name))


def test_all_is_what_dir_shows():
    shown = {name for name in dir(tidegate) if not name.startswith("_")}
    modules = {name for name in shown if isinstance(getattr(tidegate, name), ModuleType)}
    assert {name for name in NAMES if not name.startswith("_")} == shown - modules
    assert {getattr(tidegate, name).__name__ for name in modules} <= {f"tidegate.{name}" for name in modules}


@pytest.mark.parametrize("name", DEFINED)
def test_public_name_is_documented_and_says_where_it_lives(name):
    thing = getattr(tidegate, name)
    assert own_docstring(thing)
    assert thing.__module__ == "tidegate"
    assert thing.__qualname__ == name


@pytest.mark.parametrize("name", CLASSES)
def test_public_methods_are_documented(name):
    cls = getattr(tidegate, name)
    bare = [
        member
        for member, value in vars(cls).items()
        if not member.startswith("_")
        and not (issubclass(cls, enum.Enum) and member in cls.__members__)
        and (inspect.isroutine(value) or isinstance(value, property | classmethod | staticmethod))
        and not inspect.getdoc(getattr(cls, member))
    ]
    assert not bare


@pytest.mark.parametrize("name", [name for name in CLASSES if issubclass(getattr(tidegate, name), BaseException)])
def test_errors_share_one_base(name):
    assert name.endswith("Error")
    assert issubclass(getattr(tidegate, name), tidegate.TidegateError)


def test_stub_names_every_compiled_class():
    stub = {node.name for node in ast.parse(STUB.read_text()).body if isinstance(node, ast.ClassDef)}
    compiled = {name for name, value in vars(_core).items() if isinstance(value, type)}
    assert {name for name in stub if not name.startswith("_")} == {name for name in compiled if not name.startswith("_")}


def test_reference_lists_every_public_name_once_and_no_other():
    documented = documented_names()
    assert sorted(documented) == sorted(set(documented))
    assert set(documented) == {name for name in NAMES if not name.startswith("__")}


def test_import_brings_in_no_library():
    """Not even the dependencies: each is imported by what needs it."""
    program = "import sys, tidegate, tidegate.testing; print(*{name.partition('.')[0] for name in sys.modules})"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    imported = set(done.stdout.split())
    assert "tidegate" in imported
    assert not imported & NOT_NEEDED

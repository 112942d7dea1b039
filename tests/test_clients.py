"""What is imported for whom: no client for who does not use it, and one that is missing says how to get it."""

import subprocess
import sys

import pytest

CLIENTS = ("aiohttp", "curl_cffi", "httpx", "httpx2", "niquests", "requests", "urllib3", "urllib3_future")


def run(program):
    process = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    return process.stdout + process.stderr


def test_no_client_is_imported_with_the_package():
    assert run(f"import sys, tidegate; print([name for name in {CLIENTS} if name in sys.modules])") == "[]\n"


@pytest.mark.parametrize("module", ["aiohttp", "httpx"])
def test_no_client_is_imported_before_it_is_used(module):
    program = f"import sys, tidegate.clients.{module}; print([name for name in {CLIENTS} if name in sys.modules])"
    assert run(program) == "[]\n"


@pytest.mark.parametrize(
    "module, made, expected",
    [
        ("aiohttp", "aiohttp.Middleware('1/s')", "needs aiohttp>=3.12: pip install 'aiohttp>=3.12'"),
        ("httpx", "httpx.Transport('1/s')", "needs httpx or httpx2: pip install 'httpx2'"),
        ("requests", "", "needs requests>=2.32: pip install 'requests>=2.32'"),
        ("niquests", "", "needs niquests>=3.18: pip install 'niquests>=3.18'"),
        ("curl_cffi", "", "needs curl_cffi>=0.15: pip install 'curl_cffi>=0.15'"),
    ],
)
def test_client_that_is_missing(module, made, expected):
    """Found nowhere, as with nothing installed."""
    program = f"""
import sys
from importlib.abc import MetaPathFinder

class Nowhere(MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name in {CLIENTS}:
            raise ModuleNotFoundError(name)

import importlib.util
found = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if name in {CLIENTS} else found(name, *rest)
sys.meta_path.insert(0, Nowhere())
from tidegate.clients import {module}
{made}
"""
    assert f"ModuleNotFoundError: tidegate.clients.{module} {expected}" in run(program)

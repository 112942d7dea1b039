"""Runs the Python blocks of README.md, docs/*.md and docs/guides/*.md as tests: what the documentation shows is what works.

Blocks of one page share a namespace, in order. `<!-- skip: next -->` before a block leaves it out; it says so with `if`.
"""

from sybil import Sybil
from sybil.parsers.markdown import PythonCodeBlockParser, SkipParser

pytest_collect_file = Sybil(
    parsers=[PythonCodeBlockParser(), SkipParser()],
    patterns=["README.md", "docs/*.md", "docs/guides/*.md"],
).pytest()

"""What the guide to the command line shows is what the commands do."""

import json
import re
from pathlib import Path

import pytest
from click.testing import CliRunner

from tidegate._cli import cli

GUIDE = (Path(__file__).parents[1] / "docs" / "guides" / "command-line.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", GUIDE, re.DOTALL | re.MULTILINE)


def check(text: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[int, str]:
    monkeypatch.chdir(folder)
    (folder / "tidegate.toml").write_text(text)
    result = CliRunner().invoke(cli, ["check"])
    return result.exit_code, result.output


@pytest.mark.parametrize("text", blocks("toml"))
def test_configurations_pass(text, tmp_path, monkeypatch):
    code, output = check(text, tmp_path, monkeypatch)
    assert code == 0, output


def test_first_one_comes_to_what_is_shown(tmp_path, monkeypatch):
    assert check(blocks("toml")[0], tmp_path, monkeypatch) == (0, blocks("text")[0])


def test_interval_that_cannot_be_kept_is_told_as_shown(tmp_path, monkeypatch):
    text = """\
[[backend]]
name = "api"
url = "https://api.example/{target}"
quota = "100/min"
[run]
interval = "10s"
"""
    code, output = check(f"{text}[targets]\nlist = {list(range(50))}\n", tmp_path, monkeypatch)
    assert code == 0
    assert blocks("text")[1] in output


def test_errors_are_told_as_shown(tmp_path, monkeypatch):
    text = """\


[[backend]]
name = "github"
url = "https://api.github.com/users/{target}"

quota = "60/huor"
concurency = 3




[targets]
list = []
"""
    assert check(text, tmp_path, monkeypatch) == (2, blocks("text")[2])


def test_lines_are_as_shown():
    good, bad = (json.loads(line) for line in blocks("json")[0].splitlines())
    assert list(good) == ["target", "ok", "status", "value", "backend", "attempts", "at", "scheduled_for"]
    assert list(bad) == ["target", "ok", "status", "error", "backend", "attempts", "at", "scheduled_for"]


def test_tables_have_every_key():
    from tidegate._cli import config

    for kind in (config.TargetsTable, config.RunTable, config.OutputTable):
        for field in kind.__struct_encode_fields__:
            if field not in {"step", "weights"}:
                assert re.search(rf"^\| .*`{field}`.* \|", GUIDE, re.MULTILINE), field
    for field in config.BackendTable.__struct_encode_fields__:
        assert any(re.search(rf"^{field} = ", block, re.MULTILINE) for block in blocks("toml")), field

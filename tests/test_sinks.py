"""Files of JSON lines: what a line holds, whole lines whatever happens, rotation."""

import asyncio
import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from multidict import CIMultiDict

from tidegate import Backend, ConfigError, RateLimitScheduler, Reply
from tidegate.backends.http import HttpReply, HttpStatusError
from tidegate.sinks import JsonLines, SinkError


async def replies_of(*values: object) -> list[Reply]:
    """Replies with these values, or failed for these exceptions; their targets are their places."""

    async def handler(request):
        value = values[request.target]
        if isinstance(value, Exception):
            raise value
        return value

    async with RateLimitScheduler([Backend("api", handler)]) as scheduler:
        return [reply async for reply in scheduler.map(range(len(values)), ordered=True)]


def page(body: bytes, kind: str | None = None, charset: str = "utf-8") -> HttpReply:
    headers = CIMultiDict({} if kind is None else {"content-type": kind})
    return HttpReply(200, headers, body, "https://example.org/", charset)


def lines(file: Path) -> list[dict[str, Any]]:
    """The lines of a file, each of which is whole."""
    data = file.read_bytes()
    assert data == b"" or data.endswith(b"\n"), data[-100:]
    return [json.loads(line) for line in data.splitlines()]


async def written(tmp_path: Path, *values: object, **options: Any) -> list[dict[str, Any]]:
    async with JsonLines(tmp_path / "out.jsonl", **options) as sink:
        await sink.write(await replies_of(*values))
    return lines(tmp_path / "out.jsonl")


async def test_line_says_how_a_request_ended(tmp_path):
    missing = HttpStatusError("GET", "https://example.org/7", 404, {}, b"")
    good, bad = await written(tmp_path, {"n": 1}, missing)
    at = good.pop("at")
    assert good == {"target": 0, "ok": True, "value": {"n": 1}, "backend": "api", "attempts": 1, "scheduled_for": None}
    assert len(at) == len("2026-01-01T00:00:00.000000Z")
    assert at.endswith("Z")
    assert bad["error"]["type"] == "RequestFailedError"
    assert "status 404" in bad["error"]["message"]
    assert bad["status"] == 404
    assert "value" not in bad


@pytest.mark.parametrize(
    "reply, save, value",
    [
        (page(b'{"a":\n  [1, 2]}\n', "application/json; charset=utf-8"), "body", {"a": [1, 2]}),
        (page(b'{"a": 1}', "application/problem+json"), "body", {"a": 1}),
        (page(b'{"a": 1', "application/json"), "body", '{"a": 1'),
        (page(b'{"a": NaN}', "application/json"), "body", '{"a": NaN}'),
        (page(b'{"a": 1}', "text/plain"), "body", '{"a": 1}'),
        (page(b'{"a": 1}', "text/plain"), "json", {"a": 1}),
        (page(b"no json", "text/plain"), "json", "no json"),
        (page(b'{"a": 1}', "application/json"), "text", '{"a": 1}'),
        (page("<p>Grüße".encode("latin-1"), "text/html", "latin-1"), "body", "<p>Grüße"),
        (page(b"\x89PNG\xff", "image/png"), "body", {"base64": "iVBOR/8="}),
        (page(b"\xff", None), "body", {"base64": "/w=="}),
        (page(b"plain", None), "body", "plain"),
        (page(b"", "application/json"), "body", ""),
        (b"bytes", "body", "bytes"),
        (b"\xff", "body", {"base64": "/w=="}),
        ("\ud800", "body", r"'\ud800'"),
        ({(1, 2): 3}, "body", {"(1, 2)": 3}),
        (complex(1, 2), "body", "(1+2j)"),
    ],
)
async def test_values_as_they_are_saved(tmp_path, reply, save, value):
    (line,) = await written(tmp_path, reply, save=save)
    assert line["value"] == value


async def test_status_alone_is_saved_where_that_is_all_that_is_wanted(tmp_path):
    (line,) = await written(tmp_path, page(b"x" * 1000, "text/plain"), save="status")
    assert line["status"] == 200
    assert "value" not in line


async def test_big_numbers_and_unicode_survive(tmp_path):
    body = '{"n": 123456789012345678901234567890, "s": "\u2028é"}'.encode()
    (line,) = await written(tmp_path, page(body, "application/json"))
    assert line["value"] == {"n": 123456789012345678901234567890, "s": "\u2028é"}


async def test_file_is_appended_to(tmp_path):
    for _ in range(3):
        await written(tmp_path, 1, 2)
    assert len(lines(tmp_path / "out.jsonl")) == 6


@pytest.mark.parametrize(
    "before, after",
    [
        (b"", b""),
        (b'{"target":1}\n', b'{"target":1}\n'),
        (b'{"target":1}\n{"target":2}', b'{"target":1}\n{"target":2}\n'),  # whole, but for its end
        (b'{"target":1}\n{"target":2,"va', b'{"target":1}\n'),
        (b'{"target":2,"va', b""),
        (b"{", b""),
        (b'{"target":1}\n{"target":"' + b"x" * 200_000, b'{"target":1}\n'),
    ],
    ids=["empty", "whole", "end of line missing", "torn", "only a torn one", "a single byte", "long"],
)
async def test_unfinished_last_line_is_mended(tmp_path, before, after):
    file = tmp_path / "out.jsonl"
    file.write_bytes(before)
    with_sink = JsonLines(file)
    with_sink.open()
    with_sink.close()
    assert file.read_bytes() == after


async def test_what_is_no_file_of_ours_is_left_alone(tmp_path):
    file = tmp_path / "letter.txt"
    file.write_bytes(b"Dear reader,\nno end of line")
    with pytest.raises(SinkError, match=r"letter\.txt: its last line is neither whole nor one of ours"):
        JsonLines(file).open()
    assert file.read_bytes() == b"Dear reader,\nno end of line"


async def test_second_process_is_refused(tmp_path):
    file = tmp_path / "out.jsonl"
    async with JsonLines(file):
        with pytest.raises(SinkError, match="another process writes to this file"):
            JsonLines(file).open()
    async with JsonLines(file):
        pass


async def test_file_that_cannot_be_opened_is_said(tmp_path):
    with pytest.raises(SinkError, match="No such file or directory") as caught:
        JsonLines(tmp_path / "nowhere" / "out.jsonl").open()
    assert isinstance(caught.value, OSError)
    assert caught.value.path == str(tmp_path / "nowhere" / "out.jsonl")


@pytest.mark.parametrize(
    "options, option",
    [({"save": "html"}, "save"), ({"rotate": 0}, "rotate"), ({"rotate": True}, "rotate"), ({"rotate": "1MB"}, "rotate")],
)
def test_options_are_checked(options, option):
    with pytest.raises(ConfigError) as caught:
        JsonLines("out.jsonl", **options)
    assert caught.value.option == option
    with pytest.raises(ConfigError, match="give a path"):
        JsonLines(1, rotate=100)


async def test_full_files_are_put_aside_by_number(tmp_path):
    (tmp_path / "out.jsonl.7").write_text("theirs\n")
    (tmp_path / "out.jsonl.backup").write_text("theirs too\n")
    await written(tmp_path, *["x" * 100] * 10, rotate=500)
    names = {file.name for file in tmp_path.iterdir()}
    assert names == {"out.jsonl", *(f"out.jsonl.{number}" for number in range(7, 12)), "out.jsonl.backup"}
    assert (tmp_path / "out.jsonl.7").read_text() == "theirs\n"
    assert [row["target"] for number in range(8, 12) for row in lines(tmp_path / f"out.jsonl.{number}")] == list(range(8))
    assert [row["target"] for row in lines(tmp_path / "out.jsonl")] == [8, 9]


@given(
    sizes=st.lists(st.integers(0, 300), min_size=1, max_size=30),
    rotate=st.none() | st.integers(1, 1000),
    batches=st.integers(1, 4),
)
def test_every_reply_is_one_line_in_order_and_no_file_is_too_large(tmp_path_factory, sizes, rotate, batches):
    folder = tmp_path_factory.mktemp("sink")

    async def write() -> None:
        replies = await replies_of(*["x" * size for size in sizes])
        async with JsonLines(folder / "out.jsonl", rotate=rotate) as sink:
            for start in range(batches):
                await sink.write(replies[start::batches])

    asyncio.run(write())
    files = sorted(folder.iterdir(), key=lambda file: int(file.suffix[1:]) if file.suffix[1:].isdigit() else 10**9)
    found = [(row["target"], len(row["value"])) for file in files for row in lines(file)]
    targets = [target for start in range(batches) for target in range(len(sizes))[start::batches]]
    assert found == [(target, sizes[target]) for target in targets]
    if rotate is not None:
        assert all(file.stat().st_size <= rotate or len(lines(file)) == 1 for file in files)


async def test_what_fits_on_a_full_disk_is_kept_and_counted(tmp_path):
    replies = await replies_of(*["x" * 100] * 100)
    sink = JsonLines(tmp_path / "out.jsonl")
    await sink.write(replies[:1])
    size = (tmp_path / "out.jsonl").stat().st_size
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10 * size + size // 2, before[1]))
    try:
        with pytest.raises(SinkError, match="9 of 99 replies were written; the file ends with a whole line") as caught:
            await sink.write(replies[1:])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert caught.value.written == 9
    assert [row["target"] for row in lines(tmp_path / "out.jsonl")] == list(range(10))
    await sink.write(replies[10:])  # there is room again
    sink.close()
    assert [row["target"] for row in lines(tmp_path / "out.jsonl")] == list(range(100))


async def test_disk_without_room_is_said():
    sink = JsonLines("/dev/full")
    with pytest.raises(SinkError, match="/dev/full: No space left on device: 0 of 2 replies were written"):
        await sink.write(await replies_of(1, 2))
    sink.close()


async def test_open_file_is_written_to_and_left_open():
    reading, writing = os.pipe()
    sink = JsonLines(writing)
    await sink.write(await replies_of("x"))
    sink.close()
    assert json.loads(os.read(reading, 1000))["value"] == "x"
    os.close(writing)
    os.close(reading)


async def test_reader_of_a_pipe_that_leaves_is_an_error(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    reading = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    sink = JsonLines(tmp_path / "pipe")
    await sink.write(await replies_of("x"))
    assert json.loads(os.read(reading, 1000))["value"] == "x"
    os.close(reading)
    with pytest.raises(SinkError, match="Broken pipe: 0 of 1 replies were written"):
        await sink.write(await replies_of("y"))
    sink.close()


async def test_cancelled_write_is_finished(tmp_path):
    replies = await replies_of(*["x" * 1000] * 2000)
    sink = JsonLines(tmp_path / "out.jsonl")
    writing = asyncio.get_running_loop().create_task(sink.write(replies))
    await asyncio.sleep(0)
    writing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await writing
    assert len(lines(tmp_path / "out.jsonl")) == 2000
    sink.close()


WRITES_FOR_EVER = """
import asyncio, sys
from tidegate import Backend, RateLimitScheduler
from tidegate.sinks import JsonLines

async def handler(request):
    return "x" * (request.target * 7919 % 50_000)

async def main():
    async with RateLimitScheduler([Backend("api", handler)]) as scheduler:
        replies = [reply async for reply in scheduler.map(range(200))]
    sink = JsonLines(sys.argv[1], rotate=20_000_000)
    while True:
        await sink.write(replies)

asyncio.run(main())
"""


def test_killed_process_leaves_nothing_that_the_next_one_does_not_mend(tmp_path):
    file = tmp_path / "out.jsonl"
    for attempt in range(4):
        process = subprocess.Popen([sys.executable, "-c", WRITES_FOR_EVER, file])
        until = time.monotonic() + 20
        while not file.exists() or file.stat().st_size < 100_000:
            assert time.monotonic() < until
            time.sleep(0.01)
        time.sleep(0.01 * attempt)
        process.kill()
        process.wait()
        before = file.read_bytes()
        sink = JsonLines(file)
        sink.open()
        sink.close()
        whole = before[: before.rfind(b"\n") + 1]
        assert file.read_bytes().startswith(whole)
        for full in tmp_path.iterdir():
            lines(full)
        for full in tmp_path.iterdir():
            full.unlink()

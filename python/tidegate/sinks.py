"""Where replies go: anything with `async def write(replies)`; here files of JSON lines."""

from __future__ import annotations

import asyncio
import base64
import os
import stat
import threading
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from os import PathLike
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, NamedTuple, Self, get_args

import msgspec

from tidegate import ConfigError, Reply, TidegateError
from tidegate.backends.http import HttpReply, HttpStatusError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

__all__ = ["JsonLines", "SinkError"]

Save = Literal["body", "json", "text", "status"]

MOST_AT_ONCE = 256 * 1024
"""Bytes of one call to the system, unless a line is longer."""
BINARY: int = getattr(os, "O_BINARY", 0)
"""On Windows: line ends are left as they are."""
BLOCK = 64 * 1024
"""Bytes that are read at once in search of the beginning of the last line."""


class SinkError(TidegateError, OSError):
    """What was to be written could not be, or not all of it. The file ends with a whole line.

    Attributes:
        path: Of the file.
        written: Of the replies that `write` was given, how many were written, from the first.
    """

    def __init__(self, message: str, *, path: str = "", written: int = 0, errno: int | None = None) -> None:
        super().__init__(errno, message)
        self.path = path
        self.written = written

    def __str__(self) -> str:
        return str(self.args[1])


class Now(NamedTuple):
    """An instant, on the clock on the wall and on that of the loop."""

    wall: datetime
    loop: float


class JsonLines:
    """A file to which each reply is appended as one line of JSON.

    A line has `"target"`, `"ok"`, `"status"` (of HTTP), `"value"`, `"backend"`, `"attempts"`, `"at"` and `"scheduled_for"`; of a
    failed reply `"error": {"type": ..., "message": ...}` takes the place of `"value"`. `at` is when it was written and
    `scheduled_for` for when a collector had planned it, as RFC 3339 in UTC. Of an `HttpReply` the value is its body: a JSON
    document as that document, text as text, anything else as `{"base64": ...}`; other values are encoded as `msgspec.json` does,
    and what it cannot encode as the text of its `repr`.

    Only whole lines are written, in one call to the system for up to 256 KiB of them, so whoever follows the file sees whole
    lines. When the disk is full, what was written of a line is taken back. A line that a killed process left unfinished is cut
    off when the file is opened again. One process writes to a file at a time; a second one is refused.

    Args:
        path: Of the file, which is made when it does not exist (for the user alone to write, 0o644); or the number of an open
            file, such as 1 for standard output, which stays open.
        save: What is saved of an `HttpReply`: `"body"`, as above, by its content type; `"json"`, the same by trying;
            `"text"`, as text; `"status"`, its status alone.
        rotate: Bytes that a file may have. Before it would have more it becomes `path.1`, the next one `path.2` and so on, and a
            new one is begun. Nothing is ever deleted. None: one file.
        sync: Have the disk confirm each batch (fsync). False: the operating system has what was written, which survives the end
            of the process, not a power cut.

    Raises:
        ConfigError: An option is out of range.

    Thread safety: any thread or loop.

    Example:
        >>> import tempfile
        >>> sink = JsonLines(tempfile.mkdtemp() + "/replies.jsonl", rotate=100_000_000)
        >>> sink.open()
        >>> sink.close()
    """

    def __init__(
        self, path: str | PathLike[str] | int, *, save: Save = "body", rotate: int | None = None, sync: bool = False
    ) -> None:
        if save not in get_args(Save):
            raise ConfigError(f"save={save!r}: give 'body', 'json', 'text' or 'status'", option="save", value=save)
        if rotate is not None and (isinstance(rotate, bool) or not isinstance(rotate, int) or rotate < 1):
            raise ConfigError(f"rotate={rotate!r}: give bytes, at least 1, or None", option="rotate", value=rotate)
        if isinstance(path, int) and rotate is not None:
            raise ConfigError(
                f"rotate={rotate!r}: an open file has no name to rotate; give a path", option="rotate", value=rotate
            )
        self.path = path if isinstance(path, int) else os.fspath(path)
        self._save = save
        self._rotate = rotate
        self._sync = sync
        self._file: int | None = None
        self._size: int | None = None  # of a file that can be cut; None for a pipe or a terminal
        self._lock = threading.Lock()

    def open(self) -> None:
        """Open the file, and repair its end. `write` does it when it was not done.

        Raises:
            SinkError: It cannot be opened, another process writes to it, or it is no file of JSON lines.
        """
        with self._lock:
            self._ensure_open()

    def close(self) -> None:
        """Close the file, once what is being written is. Idempotent."""
        with self._lock:
            file, self._file = self._file, None
            if file is not None and file != self.path:
                os.close(file)

    async def write(self, replies: Sequence[Reply]) -> None:
        """Append replies, in order. They are delivered when this returns.

        Raises:
            SinkError: Not all were written; `written` says how many.

        Cancellation: they are written all the same, and waited for.
        """
        loop = asyncio.get_running_loop()
        at = Now(datetime.now(UTC), loop.time())
        writing = loop.run_in_executor(None, self._append, replies, at)
        try:
            await asyncio.shield(writing)
        except asyncio.CancelledError:
            await asyncio.wait([writing])
            raise

    async def __aenter__(self) -> Self:
        """Open."""
        self.open()
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Close."""
        self.close()

    def __repr__(self) -> str:
        return f"<JsonLines {self.path!r}>"

    def _append(self, replies: Sequence[Reply], at: Now) -> None:
        lines = [self._line(reply, at) for reply in replies]
        written = 0
        with self._lock:
            try:
                file = self._ensure_open()
                while written < len(lines):
                    if self._is_full(len(lines[written])):
                        file = self._turn()
                    written += self._put(file, self._fitting(lines, written))
                if self._sync and self._size is not None:
                    os.fsync(file)
            except OSError as error:
                raise self._failed(error, written, len(lines)) from error

    def _fitting(self, lines: Sequence[bytes], start: int) -> Sequence[bytes]:
        """As many lines as go at once, and into one file; at least one."""
        room = MOST_AT_ONCE
        if self._rotate is not None and self._size is not None:
            room = min(room, self._rotate - self._size)
        end, size = start, 0
        while end < len(lines) and (end == start or size + len(lines[end]) <= room):
            size += len(lines[end])
            end += 1
        return lines[start:end]

    def _is_full(self, more: int) -> bool:
        """Whether a line of so many bytes belongs into the next file."""
        return self._rotate is not None and self._size is not None and self._size > 0 and self._size + more > self._rotate

    def _put(self, file: int, lines: Sequence[bytes]) -> int:
        """Write lines: all, or those that fit, and then raise.

        Returns:
            How many there are.
        """
        left = memoryview(b"".join(lines))
        try:
            while left:
                left = left[os.write(file, left) :]
        except OSError as error:
            done = sum(map(len, lines)) - len(left)
            whole = count = 0
            for line in lines:
                if whole + len(line) > done:
                    break
                whole += len(line)
                count += 1
            if self._size is not None:
                os.ftruncate(file, self._size + whole)
                self._size += whole
            raise _PartlyError(error, count) from error
        if self._size is not None:
            self._size += sum(map(len, lines))
        return len(lines)

    def _failed(self, error: OSError, written: int, count: int) -> SinkError:
        if isinstance(error, SinkError):
            return error
        if isinstance(error, _PartlyError):
            written, error = written + error.count, error.error
        whole = "" if self._size is None else "; the file ends with a whole line"
        message = f"{self._name}: {error.strerror}: {written} of {count} replies were written{whole}"
        return SinkError(message, path=self._name, written=written, errno=error.errno)

    @property
    def _name(self) -> str:
        return "standard output" if self.path == 1 else str(self.path)

    def _ensure_open(self) -> int:
        if self._file is None:
            self._file = self._begin()
        return self._file

    def _begin(self) -> int:
        """Open the file and see where its last whole line ends."""
        if isinstance(self.path, int):
            self._size = None
            return self.path
        try:
            # Of a pipe only the writing end: whoever holds both never hears that its reader has left.
            access = os.O_WRONLY if _is_device(self.path) else os.O_RDWR
            file = os.open(self.path, access | os.O_APPEND | os.O_CREAT | BINARY, 0o644)
        except OSError as error:
            raise SinkError(f"{self.path}: {error.strerror}", path=self.path, errno=error.errno) from None
        try:
            if not stat.S_ISREG(os.fstat(file).st_mode):
                self._size = None
                return file
            self._claim(file)
            self._size = self._repair(file)
        except BaseException:
            os.close(file)
            raise
        return file

    def _claim(self, file: int) -> None:
        if fcntl is None:
            return
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            message = f"{self.path}: another process writes to this file; give each its own"
            raise SinkError(message, path=str(self.path), errno=error.errno) from None
        except OSError:  # a file system without locks
            return

    def _repair(self, file: int) -> int:
        """Have the file end with a whole line; its size then."""
        size = os.fstat(file).st_size
        tail = b""
        begin = size
        while begin > 0 and b"\n" not in tail:
            start = max(0, begin - BLOCK)
            os.lseek(file, start, os.SEEK_SET)  # what is written is appended all the same
            tail = os.read(file, begin - start) + tail
            begin = start
        tail = tail[tail.rfind(b"\n") + 1 :]
        if not tail:
            return size
        try:
            msgspec.json.decode(tail)
        except (msgspec.DecodeError, UnicodeDecodeError):
            if not tail.startswith(b'{"target":'[: len(tail)]):
                message = f"{self.path}: its last line is neither whole nor one of ours; give a file of JSON lines, or a new name"
                raise SinkError(message, path=str(self.path)) from None
            os.ftruncate(file, size - len(tail))
            return size - len(tail)
        os.write(file, b"\n")  # whole, but for its end
        return size + 1

    def _turn(self) -> int:
        """Put the full file aside, and begin a new one."""
        assert isinstance(self.path, str)
        assert self._file is not None
        path = Path(self.path)
        numbers = [_number(other.name, path.name) for other in path.parent.iterdir()]
        path.rename(f"{path}.{max(numbers) + 1}")
        full, self._file = self._file, None
        os.close(full)
        return self._ensure_open()

    def _line(self, reply: Reply, at: Now) -> bytes:
        """A reply as JSON, with its end of line."""
        line: dict[str, Any] = {"target": reply.target, "ok": reply.ok}
        if reply.ok:
            value = reply.value
            if isinstance(value, HttpReply):
                line["status"] = value.status
                if self._save != "status":
                    line["value"] = _body(value, self._save)
            else:
                line["value"] = _bytes(value) if isinstance(value, bytes | bytearray) else value
        else:
            cause = reply.error.__cause__ if reply.error is not None else None
            if isinstance(cause, HttpStatusError):
                line["status"] = cause.status
            line["error"] = {"type": type(reply.error).__name__, "message": str(reply.error)}
        line["backend"] = reply.backend
        line["attempts"] = reply.attempts
        line["at"] = at.wall
        planned = reply.scheduled_for
        line["scheduled_for"] = None if planned is None else at.wall - timedelta(seconds=at.loop - planned)
        try:
            return msgspec.json.encode(line, enc_hook=_represented) + b"\n"
        except (TypeError, ValueError, RecursionError):  # a half of a surrogate pair, a key that is none, itself inside
            line = {key: value if key not in {"target", "value"} else _plain(value) for key, value in line.items()}
            return msgspec.json.encode(line, enc_hook=_represented) + b"\n"


class _PartlyError(OSError):
    """The system took the first `count` lines."""

    def __init__(self, error: OSError, count: int) -> None:
        super().__init__(error.errno, error.strerror)
        self.error = error
        self.count = count


def _is_device(path: str) -> bool:
    """Whether it is there and no regular file: a pipe, a terminal."""
    return Path(path).exists() and not Path(path).is_file()


def _number(name: str, of: str) -> int:
    """Which of the full files of this name it is; 0 for any other file."""
    number = name.removeprefix(f"{of}.")
    return int(number) if number != name and number.isascii() and number.isdigit() else 0


def _body(reply: HttpReply, save: Save) -> object:
    """A body as JSON can hold it."""
    kind = reply.headers.get("Content-Type", "").partition(";")[0].strip().lower()
    is_json = kind.endswith(("/json", "+json"))
    if (save == "json" or (save == "body" and is_json)) and (document := _document(reply.body)) is not None:
        return document
    if save == "text" or is_json or kind.startswith("text/") or kind.endswith(("xml", "javascript")):
        return reply.text
    return _bytes(reply.body)


def _document(body: bytes) -> msgspec.Raw | None:
    """A JSON document as it is, in one line; nothing if it is none."""
    try:
        body.decode()
        return msgspec.Raw(msgspec.json.format(body, indent=-1))
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None


def _bytes(data: bytes | bytearray) -> object:
    """Bytes as text if they are, else in base64."""
    try:
        return data.decode()
    except UnicodeDecodeError:
        return {"base64": base64.b64encode(data).decode()}


def _plain(value: object) -> object:
    """A value that can be encoded, or its representation."""
    try:
        msgspec.json.encode(value, enc_hook=_represented)
    except (TypeError, ValueError, RecursionError):
        return _represented(value)
    return value


def _represented(value: object) -> str:
    try:
        return ascii(value)
    except Exception as error:  # noqa: BLE001 - it belongs to the user
        return f"<{type(value).__name__}, which cannot be shown: {type(error).__name__}>"

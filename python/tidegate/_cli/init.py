"""`tidegate init`: a configuration to begin with."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

from tidegate._cli.problems import BadFileError


def write(file: Path) -> None:
    """Write a commented configuration.

    Raises:
        BadFileError: The file exists, or cannot be written.
    """
    text = files(__package__).joinpath("tidegate.toml").read_bytes()
    try:
        with file.open("xb") as new:
            new.write(text)
    except FileExistsError:
        raise BadFileError(f"{file}: exists, and is left as it is; give another name: tidegate init NAME.toml") from None
    except OSError as error:
        raise BadFileError(f"{file}: cannot be written: {error.strerror}") from None

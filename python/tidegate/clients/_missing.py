"""A client that is not installed."""


def missing(module: str, *packages: str) -> ModuleNotFoundError:
    """The error of a module here whose client is not there; `packages` as pip takes them, any of which will do."""
    names = " or ".join(packages)
    return ModuleNotFoundError(f"tidegate.clients.{module} needs {names}: pip install '{packages[-1]}'", name=module)

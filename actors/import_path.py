"""Our packages have names that a user's own files may have, too: `actors.py`, `learner.py`, `deploy.py`. In our processes ours win.

Only the order of directories changes: those of the user come behind, so that modules of his own are still found there.
A Ray worker gets these functions by value, because by name it could not find them yet.
"""

import os
import sys
from collections.abc import Sequence
from importlib.machinery import PathFinder
from pathlib import Path

PACKAGES = ("moments_service", "actors", "learner", "deploy")


def own_packages_first(path: Sequence[str]) -> list[str]:
    """The directories of `path`, those last that hold something else under one of our names. Before them comes our own."""
    own = _own_directory(path)
    if own is None:
        return list(path)
    others = [each for each in path if Path(each).resolve() != own and any(_holds(each, name) for name in PACKAGES)]
    if not others:
        return list(path)
    kept = [each for each in path if each not in others]
    if all(Path(each).resolve() != own for each in kept):
        kept.append(str(own))
    return kept + others


def put_own_packages_first() -> None:
    """The same for the imports of this process and of those that it starts."""
    sys.path[:] = own_packages_first(sys.path)


def module_command(module: str, *arguments: str) -> list[str]:
    """The command that runs a module of ours in a process of its own, with `module_environment`."""
    return [sys.executable, "-P", "-m", module, *arguments]


def module_environment() -> dict[str, str]:
    """This process's environment with its import path, in which our own packages are first."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in own_packages_first(sys.path) if path)}


def load_own_packages() -> None:
    """In a Ray worker before anything else: Ray adds the directories of the driver later, and in front."""
    put_own_packages_first()
    for name in PACKAGES:
        __import__(name)


def _own_directory(path: Sequence[str]) -> Path | None:
    """Where all of our packages are: on the path, or where an editable installation says."""
    for each in path:
        if all((Path(each) / name / "__init__.py").is_file() for name in PACKAGES):
            return Path(each).resolve()
    for finder in sys.meta_path:
        if finder is not PathFinder and (spec := finder.find_spec(PACKAGES[0], None)) is not None and spec.origin:
            return Path(spec.origin).resolve().parents[1]
    return None


def _holds(directory: str, name: str) -> bool:
    # A directory without __init__.py is a namespace, which loses against any package.
    spec = PathFinder.find_spec(name, [directory])
    return spec is not None and spec.loader is not None

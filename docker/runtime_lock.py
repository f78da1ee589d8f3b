"""Print the part of a lock file that some extras of the project need, hashes included.

    python runtime_lock.py pyproject.toml requirements.lock cpu parquet > runtime.lock

The locks hold everything, tools for development too. `uv pip compile` notes below each package which ones
require it ("# via"); what a set of extras needs is found by following these notes. Nothing is resolved again.
Standard library alone: it runs where nothing is installed yet.
"""

from __future__ import annotations

import re
import sys
import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


def select(lock: str, project: str, pyproject: str, extras: Sequence[str]) -> str:
    """The blocks of `lock` that the project's own dependencies and those of `extras` need.

    lock, pyproject: the texts of the two files. project: name of the project, as the notes of the lock have
    it. Raises KeyError for an extra that there is not, ValueError where a dependency is not in the lock.
    """
    described = tomllib.loads(pyproject)["project"]
    wanted = list(described["dependencies"])
    for extra in extras:
        wanted += described["optional-dependencies"][extra]
    blocks = [(_normalized(block), _asked_for_by(block), block) for block in _blocks(lock)]
    needed = {_normalized(requirement) for requirement in wanted}
    missing = needed - {name for name, _, _ in blocks}
    if missing:
        raise ValueError(f"not in the lock: {', '.join(sorted(missing))}")
    own = _normalized(project)
    grows = True
    while grows:
        found = {name for name, askers, _ in blocks if askers - {own} & needed}
        grows = not found <= needed
        needed |= found
    return "".join(block for name, _, block in blocks if name in needed)


def _blocks(lock: str) -> Iterator[str]:
    """Each `name==version` line with its hashes and notes."""
    for block in re.split(r"^(?=[A-Za-z0-9])", lock, flags=re.MULTILINE):
        if _NAME.match(block):
            yield block


def _asked_for_by(block: str) -> set[str]:
    notes = re.findall(r"^ +# +(?:via\b *)?(.*)$", block, flags=re.MULTILINE)
    return {_normalized(note) for note in notes if _NAME.match(note)}


def _normalized(requirement: str) -> str:
    """The name that a requirement, or a note of the lock, begins with, as PEP 503 compares names."""
    name = _NAME.match(requirement)
    if name is None:
        raise ValueError(f"no requirement: {requirement!r}")
    return re.sub(r"[-_.]+", "-", name[0]).lower()


def main() -> None:
    """Read the files that the command line names; print the selection."""
    pyproject = Path(sys.argv[1]).read_text(encoding="utf-8")
    lock = Path(sys.argv[2]).read_text(encoding="utf-8")
    sys.stdout.write(select(lock, tomllib.loads(pyproject)["project"]["name"], pyproject, sys.argv[3:]))


if __name__ == "__main__":
    main()

"""The saved snapshot of the coarse index: a FAISS file, and a manifest that says what it is.

    coarse.json             {"format", "sequence", "token", "fingerprint", "embedding_dim", "num_segments",
                             "kind", "file", "size_bytes", "sha256"}
    coarse-<16 hex>.faiss   a FAISS index of that kind; its ids are segment ids

The manifest names the file and is replaced last, so the pair is always whole. Everything here is derived:
what is missing or damaged is made from the store again.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

from indexer.atomic_files import DERIVED_FILE_MODE, sha256_of_file
from indexer.coarse.approximate import ids_of
from indexer.coarse.exact import CoarseKind, GpuCopy, is_exact_index
from model.atomic_files import replace_file

if sys.platform != "win32":
    import fcntl

_faiss: Any = faiss  # Its stubs do not know all of it.

MANIFEST_FILE = "coarse.json"
FORMAT = 2
UNFINISHED_KEPT_SECONDS = 3600
"""An unfinished file older than this is what a killed process left."""

_FILE_NAME = re.compile(r"coarse-[0-9a-f]{16}\.faiss")


@dataclass(frozen=True, eq=False)
class Snapshot:
    """A filled FAISS index of all segments after the change `sequence` (with that `token`). Never changed.

    ids: int64 [N], of all its rows, ascending. gpu: its copy on a GPU.
    """

    kind: CoarseKind
    index: Any
    ids: NDArray[np.int64]
    sequence: int
    token: str
    gpu: GpuCopy | None = None


class SnapshotUnusableError(Exception):
    """Why a saved snapshot cannot be used; never leaves the coarse index, which is then made from the
    store."""


def save_snapshot(snapshot: Snapshot, directory: Path, fingerprint: str) -> None:
    """Write a snapshot and then the manifest into `directory`; remove older snapshots. Raises OSError."""
    name = f"coarse-{secrets.token_hex(8)}.faiss"
    unfinished = directory / f"{name}.new"
    unfinished_manifest = directory / f"{MANIFEST_FILE}.{secrets.token_hex(8)}.new"
    try:
        with unfinished.open("wb") as file:
            # FAISS's own writer does not report a disk that is full when the end of a file is written.
            faiss.write_index(snapshot.index, _faiss.PyCallbackIOWriter(file.write))
        manifest = {
            "format": FORMAT,
            "sequence": snapshot.sequence,
            "token": snapshot.token,
            "fingerprint": fingerprint,
            "embedding_dim": snapshot.index.d,
            "num_segments": snapshot.index.ntotal,
            "kind": snapshot.kind,
            "file": name,
            "size_bytes": unfinished.stat().st_size,
            "sha256": sha256_of_file(unfinished),
        }
        unfinished_manifest.write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
        for path in (unfinished, unfinished_manifest):
            path.chmod(DERIVED_FILE_MODE)
        with _locked(directory):
            replace_file(unfinished, directory / name)
            replace_file(unfinished_manifest, directory / MANIFEST_FILE)
            _remove_others(directory, name)
    except RuntimeError as error:  # How FAISS says that it cannot write.
        raise OSError(f"the snapshot cannot be written: {error}") from error
    finally:
        unfinished.unlink(missing_ok=True)
        unfinished_manifest.unlink(missing_ok=True)


@contextlib.contextmanager
def _locked(directory: Path) -> Iterator[None]:
    """One process at a time: one that removed files between the two renames of another would leave a manifest
    without its file. Released when the process dies."""
    if sys.platform == "win32":
        yield
        return
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # A file system without locks.
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _remove_others(directory: Path, name: str) -> None:
    """Remove older snapshots, and what processes that were killed left unfinished."""
    for path in directory.glob("coarse-*.faiss"):
        if path.name != name and _FILE_NAME.fullmatch(path.name):
            path.unlink(missing_ok=True)
    for path in directory.glob("coarse*.new"):
        # Another process may be writing a younger one.
        with contextlib.suppress(FileNotFoundError):
            if time.time() - path.stat().st_mtime > UNFINISHED_KEPT_SECONDS:
                path.unlink()


def load_snapshot(directory: Path, fingerprint: str, embedding_dim: int) -> Snapshot:
    """The snapshot that the manifest in `directory` names, checked. Raises SnapshotUnusableError."""
    manifest = _read_manifest(directory)
    for name, expected in (
        ("format", FORMAT),
        ("fingerprint", fingerprint),
        ("embedding_dim", embedding_dim),
    ):
        if manifest.get(name) != expected:
            raise SnapshotUnusableError(
                f"the saved snapshot has {name} {manifest.get(name)!r}, not {expected!r}"
            )
    file_name, sequence, token = manifest.get("file"), manifest.get("sequence"), manifest.get("token")
    if not (isinstance(file_name, str) and _FILE_NAME.fullmatch(file_name)):
        raise SnapshotUnusableError("the saved snapshot's manifest names no snapshot")
    if not (isinstance(sequence, int) and 0 <= sequence < 2**63 and isinstance(token, str)):
        raise SnapshotUnusableError("the saved snapshot's manifest lacks its sequence or token")
    path = directory / file_name
    try:
        if path.stat().st_size != manifest.get("size_bytes") or sha256_of_file(path) != manifest.get(
            "sha256"
        ):
            raise SnapshotUnusableError(
                "the saved snapshot is damaged: its bytes do not match their checksum"
            )
        # Only after the check: FAISS trusts the numbers in a file.
        index: Any = faiss.read_index(str(path))
    except (OSError, RuntimeError) as error:
        raise SnapshotUnusableError(f"the saved snapshot cannot be read: {error}") from error
    if index.d != embedding_dim or index.ntotal != manifest.get("num_segments"):
        raise SnapshotUnusableError("the saved snapshot's vectors are not those that its manifest describes")
    kind: Any = manifest.get("kind")
    try:
        return Snapshot(kind, index, _ids(kind, index), sequence, token)
    except ValueError as error:
        raise SnapshotUnusableError(f"the saved snapshot is unusable: {error}") from None


def _ids(kind: Any, index: Any) -> NDArray[np.int64]:
    """Ids of an index that was read, ascending. Raises ValueError where it is not what `kind` says."""
    if kind in ("ivf-sq", "ivf-pq", "hnsw"):
        return ids_of(kind, index)
    if kind != "exact" or not is_exact_index(index):
        raise ValueError("it is another kind of FAISS index")
    ids: NDArray[np.int64] = faiss.vector_to_array(index.id_map)
    if len(ids) != index.ntotal or np.any(np.diff(ids) <= 0):
        raise ValueError("its ids do not fit its vectors")
    return ids


def _read_manifest(directory: Path) -> dict[str, Any]:
    try:
        manifest = json.loads((directory / MANIFEST_FILE).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise SnapshotUnusableError("there is no saved snapshot") from None
    except (OSError, ValueError) as error:
        raise SnapshotUnusableError(f"the saved snapshot's manifest cannot be read: {error}") from error
    if not isinstance(manifest, dict):
        raise SnapshotUnusableError("the saved snapshot's manifest is not a JSON object")
    return manifest

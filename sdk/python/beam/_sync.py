"""Send the user's code to the node: one archive of the working directory.

The archive is a stored zip with sorted names and fixed times, so equal trees
give equal bytes on every machine; its SHA-256 is the name that the node may
already know. ``.beamignore`` (gitignore rules; written with sane contents when
missing) says what stays here. Links are followed; what cannot be read is an error.
"""

from __future__ import annotations

import hashlib
import os
import stat
import tempfile
import threading
from typing import IO, Any, Dict, Iterator, List, Optional, Tuple

from beam import _client, _console
from beam._errors import InvalidError, TooLargeError

DEFAULT_LIMIT_MIB = 512
MAX_FILES = 100_000

IGNORE_FILE = ".beamignore"
IGNORE_TEXT = """\
# What beam does not send along with your code; the rules are those of .gitignore.
.beamignore
.git/
.venv/
venv/
__pycache__/
*.pyc
.mypy_cache/
.pytest_cache/
.ruff_cache/
.ipynb_checkpoints/
.idea/
.vscode/
.DS_Store
node_modules/
.env
"""

_mu = threading.Lock()
_synced: Dict[Tuple[Any, str, Tuple[Tuple[str, bytes], ...]], str] = {}


def sync(client: _client.Client, root: str, extra: Optional[Dict[str, bytes]] = None) -> str:
    """Give the object id of root's files; sends them at most once per process.

    extra are files that go along without lying in root.
    """
    key = (client.config, root, tuple(sorted((extra or {}).items())))
    with _mu:
        if key in _synced:
            return _synced[key]
        _console.step("Syncing files")
        object_id = _upload(client, root, extra or {})
        _console.step("Files synced")
        _synced[key] = object_id
        return object_id


def _upload(client: _client.Client, root: str, extra: Dict[str, bytes]) -> str:
    ignore(root)
    with tempfile.SpooledTemporaryFile(max_size=32 << 20) as file:
        digest, size = archive(root, file, extra)
        head = _client.check(
            client.unary("gateway.GatewayService/HeadObject", {"hash": digest, "supportsPutHeaders": True}), "sync files"
        )
        if head.get("exists") and head.get("objectId"):
            return str(head["objectId"])
        made = _client.check(
            client.unary(
                "gateway.GatewayService/CreateObject",
                {
                    "objectMetadata": {"name": digest, "size": size},
                    "hash": digest,
                    "size": size,
                    "supportsPutHeaders": True,
                },
            ),
            "sync files",
        )
        file.seek(0)
        client.put(str(made.get("presignedUrl", "")), made.get("putHeaders") or {}, file, size)
        return str(made.get("objectId", ""))


def ignore(root: str) -> None:
    """Write the ignore file unless there is one; a read-only folder does without."""
    path = os.path.join(root, IGNORE_FILE)
    try:
        with open(path, "x", encoding="utf-8") as f:
            f.write(IGNORE_TEXT)
    except FileExistsError:
        pass
    except OSError:
        pass


def _spec(root: str) -> Any:
    import pathspec

    try:
        with open(os.path.join(root, IGNORE_FILE), encoding="utf-8") as f:
            lines = f.read().splitlines()
    except FileNotFoundError:
        lines = IGNORE_TEXT.splitlines()
    try:
        return pathspec.GitIgnoreSpec.from_lines(lines)
    except ValueError as exc:
        raise InvalidError("%s: %s" % (os.path.join(root, IGNORE_FILE), exc), "mend the line") from exc


def files(root: str) -> Iterator[Tuple[str, str, os.stat_result]]:
    """(name in the archive, path, stat) of every file to send, in no order."""
    spec = _spec(root)
    stack: List[Tuple[str, str, Tuple[Tuple[int, int], ...]]] = [(root, "", ())]
    while stack:
        folder, prefix, above = stack.pop()
        try:
            entries = list(os.scandir(folder))
            here = os.stat(folder)
        except FileNotFoundError:
            continue
        except OSError as exc:
            raise _unreadable(folder, exc) from exc
        identity = (here.st_dev, here.st_ino)
        if identity in above:
            continue  # a link back up
        for entry in entries:
            name = prefix + entry.name
            try:
                info = entry.stat()
            except OSError:
                continue  # vanished, or a link to nowhere
            if stat.S_ISDIR(info.st_mode):
                # Like git: a folder that is ignored is not looked into.
                if not spec.match_file(name + "/"):
                    stack.append((entry.path, name + "/", above + (identity,)))
            elif stat.S_ISREG(info.st_mode) and not spec.match_file(name):
                yield name, entry.path, info


def archive(root: str, out: IO[bytes], extra: Optional[Dict[str, bytes]] = None) -> Tuple[str, int]:
    """Write the archive to out; gives its hex SHA-256 and size."""
    import zipfile

    limit = _limit()
    found = sorted(files(root))
    total = sum(info.st_size for _, _, info in found)
    if total > limit or len(found) > MAX_FILES:
        raise _too_large(root, found, total, limit)
    also = dict(extra or {})
    entries = [(name, path, 0o755 if info.st_mode & 0o111 else 0o644) for name, path, info in found if name not in also]
    with zipfile.ZipFile(out, "w", zipfile.ZIP_STORED, allowZip64=True) as z:
        for name, path, mode in sorted(entries + [(name, "", 0o644) for name in also]):
            if name in also:
                _add(z, name, also[name], mode)
                continue
            try:
                with open(path, "rb") as f:
                    data = f.read()
            except FileNotFoundError:
                continue
            except OSError as exc:
                raise _unreadable(path, exc) from exc
            _add(z, name, data, mode)
    out.seek(0)
    digest = hashlib.sha256()
    size = 0
    while True:
        part = out.read(1 << 20)
        if not part:
            return digest.hexdigest(), size
        digest.update(part)
        size += len(part)


def _add(z: Any, name: str, data: bytes, mode: int) -> None:
    import zipfile

    entry = zipfile.ZipInfo(name)  # its time is 1980-01-01
    entry.create_system = 3  # Unix, on every platform
    entry.external_attr = (stat.S_IFREG | mode) << 16
    z.writestr(entry, data)


def _limit() -> int:
    text = os.environ.get("BEAM_SYNC_LIMIT_MIB", "")
    return (int(text) if text.isdigit() else DEFAULT_LIMIT_MIB) << 20


def _too_large(root: str, found: List[Tuple[str, str, os.stat_result]], total: int, limit: int) -> TooLargeError:
    tops: Dict[str, int] = {}
    for name, _, info in found:
        top = name.split("/")[0] + ("/" if "/" in name else "")
        tops[top] = tops.get(top, 0) + info.st_size
    biggest = sorted(tops.items(), key=lambda item: (-item[1], item[0]))[:5]
    listed = ", ".join("%s %.1f MiB" % (name, size / 1048576) for name, size in biggest)
    message = "%s has %d files with %.1f MiB to send; the limit is %d MiB and %d files (biggest: %s)" % (
        root,
        len(found),
        total / 1048576,
        limit >> 20,
        MAX_FILES,
        listed,
    )
    return TooLargeError(
        message, "name what is not needed in %s, or set BEAM_SYNC_LIMIT_MIB" % os.path.join(root, IGNORE_FILE)
    )


def _unreadable(path: str, exc: OSError) -> InvalidError:
    return InvalidError("cannot read %s: %s" % (path, exc.strerror), "name it in %s if it is not needed" % IGNORE_FILE)

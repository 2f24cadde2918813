"""Verdicts kept by digest: an item that a judge has judged is not judged again."""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from undertone.errors import RunError
from undertone.judges.judge import Judge, Judged, Verdict
from undertone.provenance.cache import cache_folder
from undertone.provenance.plain_data import canonical_json

_ROWS = 500  # of one query
_KEPT = 256  # judged between two writes


@dataclass(frozen=True)
class Cached:
    """A judge that remembers. The key is the digest of the judge's identity and the item; failures are not kept.

    Several processes may share the file (SQLite).
    """

    inner: Judge
    file: Path

    @property
    def identity(self) -> dict[str, Any]:
        """That of the judge behind it."""
        return self.inner.identity

    def judge(self, items: Sequence[Judged]) -> list[Verdict]:
        """As the judge behind it, which is asked once for each new item."""
        keys = [self._key(item) for item in items]
        with self._open() as store:
            known = _found(store, list(dict.fromkeys(keys)))
        new = list({key: item for key, item in zip(keys, items, strict=True) if key not in known}.items())
        for at in range(0, len(new), _KEPT):  # what was paid for is kept, whatever stops the rest
            part = new[at : at + _KEPT]
            verdicts = dict(zip([key for key, _ in part], self.inner.judge([item for _, item in part]), strict=True))
            lasting = [(key, json.dumps(asdict(v))) for key, v in verdicts.items() if not v.failed]
            with self._open() as store:
                store.executemany("INSERT OR REPLACE INTO verdicts VALUES (?, ?)", lasting)
                store.commit()
            known |= verdicts
        return [known[key] for key in keys]

    def _key(self, item: Judged) -> str:
        text = canonical_json([self.identity, _plain(item.prompt), _plain(item.answer)])
        return hashlib.sha256(text.encode("utf-8")).hexdigest()

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        try:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            with closing(sqlite3.connect(self.file, timeout=60)) as store:
                store.execute("CREATE TABLE IF NOT EXISTS verdicts (key TEXT PRIMARY KEY, verdict TEXT NOT NULL)")
                yield store
        except (sqlite3.Error, OSError) as error:
            raise RunError(
                f"the cache of verdicts {self.file} cannot be used",
                got=str(error),
                fix="delete the file, or set UNDERTONE_CACHE to a folder that you may write",
            ) from error


def cached(judge: Judge, folder: Path | None = None) -> Cached:
    """The judge with a memory, in ``folder`` or else in the user's cache folder."""
    return Cached(judge, (folder or cache_folder() / "judges") / "verdicts.sqlite")


def _found(store: sqlite3.Connection, keys: list[str]) -> dict[str, Verdict]:
    found = {}
    for at in range(0, len(keys), _ROWS):
        part = keys[at : at + _ROWS]
        query = f"SELECT key, verdict FROM verdicts WHERE key IN ({','.join('?' * len(part))})"
        for key, verdict in store.execute(query, part):
            found[key] = Verdict(**json.loads(verdict))
    return found


def _plain(text: str) -> str:
    """Lone surrogates, which a model's bytes can decode to, made into text that has a digest."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")

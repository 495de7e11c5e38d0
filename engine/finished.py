"""What a run has finished before: each part lies in a folder of its own, until all of them stand in one."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.logs import recorded
from engine.record import read_json

OWN_RECORD = "record.json"  # of a part, in its own folder


@dataclass(frozen=True)
class Parts:
    """How a run keeps its parts: <name>.json and <name>.parquet, with a record."""

    whole: str  # the file of the record of the whole run
    field: str  # of that record: the parts' records by name

    def finished(self, name: str, key: str, kept: Path, folder: Path) -> Path | None:
        """The folder that holds a part under this key: of an interrupted run, or of the one being overwritten."""
        return next((place for place in (kept / name, folder) if self.record(name, place).get("key") == key), None)

    def record(self, name: str, place: Path) -> dict[str, Any]:
        """What a folder says of a part in it: its own folder, or that of a whole run; empty where it holds none."""
        own, whole = place / OWN_RECORD, place / self.whole
        found = read_json(own) if own.is_file() else None
        if found is None and whole.is_file():
            found = recorded(read_json(whole), self.field, name)
        there = all((place / f"{name}.{ending}").is_file() for ending in ("json", "parquet"))
        return found if isinstance(found, dict) and there else {}

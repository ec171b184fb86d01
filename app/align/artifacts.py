"""What a long run has finished: each product is a file or folder that appears only when it is whole.

A stage whose product is there is read back, never computed again; so a killed run goes on at its last stage.
"""

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from app.errors import DataError
from app.train.feature_cache import write_atomically

JsonRow = dict[str, Any]


class RunArtifacts:
    """The products of one run, in one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def record_config(self, facts: JsonRow) -> None:
        """Say what this run is about; refused where the folder holds a run about something else."""
        self.folder.mkdir(parents=True, exist_ok=True)
        before = self.load_or_create_json("run", lambda: facts)
        now = json.loads(json.dumps(facts))
        for name in sorted({*before, *now}):
            if before.get(name) != now.get(name):
                raise DataError(
                    f"{self.folder} was begun with another {name} ({before.get(name)}; now {now.get(name)}); "
                    "go on with that one, or choose another folder"
                )

    def subfolder(self, name: str) -> "RunArtifacts":
        """A part of the run, with products of its own."""
        (self.folder / name).mkdir(parents=True, exist_ok=True)
        return RunArtifacts(self.folder / name)

    def load_or_create_json(self, name: str, make: Callable[[], Any]) -> Any:
        """A product that JSON can say."""
        file = self.folder / f"{name}.json"
        if not file.exists():
            write_atomically(file, json.dumps(make(), indent=1) + "\n")
        return json.loads(file.read_text())

    def load_or_create_rows(self, name: str, make: Callable[[], Sequence[JsonRow]]) -> list[JsonRow]:
        """A product of many rows, one a line."""
        file = self.folder / f"{name}.jsonl"
        if not file.exists():
            write_atomically(file, "".join(json.dumps(row) + "\n" for row in make()))
        return [json.loads(line) for line in file.read_text().splitlines()]

    def load_or_create_folder(self, name: str, make: Callable[[Path], None]) -> Path:
        """A product that is a folder; what a killed attempt left in its workplace is there for the next."""
        final, work = self.folder / name, self.folder / f"{name}.part"
        if not final.exists():
            work.mkdir(exist_ok=True)
            made = work / "made"
            shutil.rmtree(made, ignore_errors=True)
            make(made)
            made.replace(final)
        shutil.rmtree(work, ignore_errors=True)
        return final

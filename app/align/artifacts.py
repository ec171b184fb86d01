"""Artifacts of a long run. Each is a file or folder that appears only when it is complete.

A stage whose artifact exists is loaded instead of computed again, so an interrupted run resumes at the stage
in which it stopped.
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
    """The artifacts of one run, in one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def record_config(self, config: JsonRow) -> None:
        """Record the configuration of the run; raise DataError if the folder holds a run with another one."""
        self.folder.mkdir(parents=True, exist_ok=True)
        recorded = self.load_or_create_json("run", lambda: config)
        current = json.loads(json.dumps(config))
        for name in sorted({*recorded, *current}):
            if recorded.get(name) != current.get(name):
                raise DataError(
                    f"{self.folder} was started with another {name} ({recorded.get(name)}; now "
                    f"{current.get(name)}); use the earlier value or choose another folder"
                )

    def subfolder(self, name: str) -> "RunArtifacts":
        """Return the artifacts of a part of the run, which has a folder of its own."""
        (self.folder / name).mkdir(parents=True, exist_ok=True)
        return RunArtifacts(self.folder / name)

    def load_or_create_json(self, name: str, create: Callable[[], Any]) -> Any:
        """Return the content of NAME.json, after creating it if it is missing."""
        file = self.folder / f"{name}.json"
        if not file.exists():
            write_atomically(file, json.dumps(create(), indent=1) + "\n")
        return json.loads(file.read_text())

    def load_or_create_rows(self, name: str, create: Callable[[], Sequence[JsonRow]]) -> list[JsonRow]:
        """Return the rows of NAME.jsonl, after creating it if it is missing."""
        file = self.folder / f"{name}.jsonl"
        if not file.exists():
            write_atomically(file, "".join(json.dumps(row) + "\n" for row in create()))
        return [json.loads(line) for line in file.read_text().splitlines()]

    def load_or_create_folder(self, name: str, create: Callable[[Path], None]) -> Path:
        """Return the folder NAME, after creating it if it is missing.

        `create` gets a path inside the working folder NAME.part. What else it writes into that working
        folder, such as checkpoints, survives an interruption and is there for the next attempt.
        """
        final, work = self.folder / name, self.folder / f"{name}.part"
        if not final.exists():
            work.mkdir(exist_ok=True)
            new = work / "new"
            shutil.rmtree(new, ignore_errors=True)
            create(new)
            new.replace(final)
        shutil.rmtree(work, ignore_errors=True)
        return final

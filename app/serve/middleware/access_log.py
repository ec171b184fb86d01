"""What the server says of itself: one JSON object a line, and never a word of what was sent to it."""

import json
import logging
from datetime import UTC, datetime


class Lines(logging.Formatter):
    """Records as JSON; the facts of a request stand beside the time and the level."""

    def format(self, record: logging.LogRecord) -> str:
        """One line."""
        told = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **record.__dict__.get("facts", {}),
        }
        if record.exc_info and record.exc_info[0]:
            told["error"] = record.exc_info[0].__name__
        return json.dumps(told, ensure_ascii=True)


def begin(level: str) -> None:
    """Say everything on stderr, from this level on."""
    voice = logging.StreamHandler()
    voice.setFormatter(Lines())
    logging.basicConfig(level=level.upper(), handlers=[voice], force=True)
    logging.getLogger("httpx").setLevel(logging.WARNING)

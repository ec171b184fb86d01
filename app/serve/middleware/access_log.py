"""Logging as one JSON object per line, without any text of a request."""

import json
import logging
from datetime import UTC, datetime

# The attribute of a log record that holds its additional fields.
LOG_RECORD_FIELDS = "fields"


class JsonFormatter(logging.Formatter):
    """Formats log records as JSON; the fields of a request are added to time, level, logger and message."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the record as one line."""
        fields = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **record.__dict__.get(LOG_RECORD_FIELDS, {}),
        }
        if record.exc_info and record.exc_info[0]:
            fields["error"] = record.exc_info[0].__name__
        return json.dumps(fields, ensure_ascii=True)


def configure_logging(level: str) -> None:
    """Log to stderr from this level on; httpx only warnings."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonFormatter())
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    logging.getLogger("httpx").setLevel(logging.WARNING)

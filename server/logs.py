"""The log, as text or JSON, one line for each event: requests with their status and duration, errors.

Never audio, transcripts, prompts or keys.
"""

import json
import logging
import sys
import threading
import time
from contextvars import ContextVar
from types import TracebackType

log = logging.getLogger(__name__)

# ID of the current request; "" outside of requests.
request_id: ContextVar[str] = ContextVar("request_id", default="")


class TextFormatter(logging.Formatter):
    """One line per message, whatever it contains; a traceback follows on lines of its own."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        return " ".join(super().formatMessage(record).split("\n"))


class JsonFormatter(logging.Formatter):
    """One object per line. The items of a record's `extra={"fields": {…}}` become keys."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, object] = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{record.msecs:03.0f}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if current := request_id.get():
            line["request_id"] = current
        line |= getattr(record, "fields", {})
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        if record.stack_info:
            line["stack"] = record.stack_info
        return json.dumps(line, ensure_ascii=False, default=str)


def configure_logging(level: str, format: str) -> None:
    """Log to standard error, from `level` up, as text or json."""
    handler = logging.StreamHandler(sys.stderr)
    text = TextFormatter("%(asctime)s %(levelname)-7s %(message)s")
    handler.setFormatter(JsonFormatter() if format == "json" else text)
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    # Our own lines on starting, stopping and downloading say more.
    for name in ("uvicorn.error", "httpx", "httpx2"):
        logging.getLogger(name).setLevel(max(logging.WARNING, logging.getLevelName(level.upper())))
    # A refused websocket is not an error.
    logging.getLogger("uvicorn.error").addFilter(
        lambda record: "without completing handshake" not in record.getMessage()
    )
    logging.getLogger("websockets").setLevel(logging.WARNING)
    logging.captureWarnings(True)
    _log_uncaught_errors()


def _log_uncaught_errors() -> None:
    """Log what nobody catches. By default Python writes it to stderr, between the lines of the log."""

    def in_main_thread(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        if issubclass(kind, KeyboardInterrupt):
            sys.__excepthook__(kind, error, trace)
        else:
            log.critical("unexpected error", exc_info=(kind, error, trace))

    def in_thread(caught: threading.ExceptHookArgs) -> None:
        if caught.exc_value is not None and not isinstance(caught.exc_value, SystemExit):
            name = caught.thread.name if caught.thread else "unknown"
            log.critical("unexpected error in thread %s", name, exc_info=caught.exc_value)

    def where_it_cannot_be_raised(caught: "sys.UnraisableHookArgs") -> None:
        log.error("%s %r", caught.err_msg or "Exception ignored in", caught.object, exc_info=caught.exc_value)

    sys.excepthook = in_main_thread
    threading.excepthook = in_thread
    sys.unraisablehook = where_it_cannot_be_raised

"""`canary`, with each record written at once, and with recordings named deadly*, which end their workers."""

import os
from pathlib import Path
from typing import Any

from server.__main__ import main
from server.cli.cluster import pool, results
from server.cli.cluster.listing import Recording
from server.cli.cluster.transcriber import Transcriber


class Mortal(Transcriber):
    def record(self, recording: Recording) -> dict[str, Any]:
        if Path(recording.path).name.startswith("deadly"):
            os._exit(1)
        return super().record(recording)


if __name__ == "__main__":
    from tests.process.cluster.canary import Mortal

    results.PART_S = 0.0
    pool.Transcriber = Mortal
    main()

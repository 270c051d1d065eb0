"""Recordings through Ray Data: a pool of actors, and a record for each recording whatever becomes of them.

Ray starts an actor that has ended again, where there is room, and repeats what it was doing.
"""

import json
import logging
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

import ray.data  # pyright: ignore[reportMissingImports]
from ray.exceptions import RayError  # pyright: ignore[reportMissingImports]
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy  # pyright: ignore[reportMissingImports]

from server.cli.cluster.attempts import Attempts
from server.cli.cluster.listing import Recording
from server.cli.cluster.shares import Machine, Share
from server.cli.cluster.transcriber import RECORD, REFUSAL, Request, Transcriber
from server.errors import RequestError, ServiceError

# A block of Ray Data, which is one call of an actor, has one recording; in a very large archive more, since the driver
# keeps an entry for each block.
MOST_BLOCKS = 20_000


class WorkerFailed(ServiceError):
    """The model cannot be loaded, or cannot do what is asked."""


def living_machines() -> list[Machine]:
    resources = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return [Machine(int(each.get("CPU", 0)), int(each.get("GPU", 0))) for each in resources]


@contextmanager
def connected(address: str | None) -> Iterator[None]:
    """A connection to a cluster, by default to one on this machine that ends with it.

    address: as `ray.init` takes it; otherwise RAY_ADDRESS. Raises RequestError if no cluster can be reached there.
    """
    address = address or os.environ.get("RAY_ADDRESS") or "local"
    # Ray's own reports to its makers are on by default.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    only_here = {"include_dashboard": False} if address == "local" else {}
    try:
        ray.init(address, log_to_driver=False, logging_level="ERROR", **only_here)
    # No cluster, or one of another version of Ray or Python. One that does not start in time is a bare Exception.
    except Exception as error:
        raise RequestError(f"cannot connect to a Ray cluster at {address!r}: {error}", "address") from None
    try:
        yield
    finally:
        ray.shutdown()


def transcribed(
    recordings: list[Recording], request: Request, share: Share, workers: int, at_once: int
) -> Iterator[dict[str, Any]]:
    """A record for each recording, as they are ready.

    share: what each worker gets of its machine; at_once: recordings that each has at a time. Raises WorkerFailed.
    """
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    block_size = math.ceil(len(recordings) / MOST_BLOCKS)
    calls_at_once = math.ceil(at_once / block_size)
    rows = ray.data.from_items(
        [asdict(recording) for recording in recordings], override_num_blocks=math.ceil(len(recordings) / block_size)
    )
    # On the driver's machine, which is not lost before the run is.
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    attempts = ray.remote(Attempts).options(num_cpus=0, scheduling_strategy=here).remote()
    answers = rows.map_batches(
        Transcriber,
        fn_constructor_args=(request, attempts),
        batch_size=block_size,
        num_cpus=share.cpus,
        num_gpus=share.gpus,
        compute=ray.data.ActorPoolStrategy(
            size=workers,
            max_tasks_in_flight_per_actor=calls_at_once,
            max_concurrent_calls_per_actor=calls_at_once,
            enable_true_multi_threading=True,
        ),
    )
    left = {recording.path for recording in recordings}
    try:
        for batch in answers.iter_batches(batch_size=None, prefetch_batches=0):
            for answer in map(json.loads, batch[RECORD]):
                if REFUSAL in answer:
                    raise WorkerFailed(answer[REFUSAL])
                # Once, even if Ray should repeat a call whose answer had arrived.
                if answer["file"] in left:
                    left.remove(answer["file"])
                    yield answer
    except RayError as error:
        # The last line of the worker's traceback.
        raise WorkerFailed(f"the workers cannot work: {str(error).strip().splitlines()[-1]}") from None
    if left:
        raise WorkerFailed(f"{len(left)} recordings were lost; add --resume to transcribe them")

"""What protects the server, and the test that fails without it. `mutations.py` takes each of these out and looks."""

from tests.fault.defences.archives import ARCHIVES
from tests.fault.defences.audio import DECODING
from tests.fault.defences.defence import Defence
from tests.fault.defences.engine import FAILURES
from tests.fault.defences.load import LOAD
from tests.fault.defences.requests import REQUESTS
from tests.fault.defences.texts import TEXTS

# By the fault or attack that it is for.
DEFENCES: dict[str, tuple[Defence, ...]] = DECODING | REQUESTS | LOAD | FAILURES | ARCHIVES | TEXTS

__all__ = ["DEFENCES", "Defence"]

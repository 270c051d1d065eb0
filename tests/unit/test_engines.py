"""When models are loaded, by a clock of its own."""

from types import SimpleNamespace

import pytest

from server.engine.registry import Engines
from server.errors import ModelFailed
from server.settings import Settings


async def test_a_model_that_could_not_be_loaded_is_tried_again_a_while_after_it_failed_however_long_that_took(
    monkeypatch,
):
    now, loads = 1000.0, 0

    def resolve(source, progress):
        nonlocal now, loads
        loads, now = loads + 1, now + 60
        raise ValueError("the download broke off")

    served = Engines(Settings(_env_file=None, model=("mock",)), resolve)
    for module in ("server.engine.thread", "server.engine.registry"):
        monkeypatch.setattr(f"{module}.time", SimpleNamespace(monotonic=lambda: now))
    for later_s, loaded in ((0.0, 1), (29.0, 1), (2.0, 2), (29.0, 2)):
        now += later_s
        with pytest.raises(ModelFailed):
            async with served.use():
                pass
        assert loads == loaded

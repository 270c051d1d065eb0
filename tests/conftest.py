"""Counts the tests that run a model, by the arrays it computes with, and selects them.

CANARY_ARRAYS=mlx pytest tests/api tests/live --with-models     # again, as a GPU computes
"""

from collections import Counter, defaultdict

import pytest

from tests.libraries import LIBRARIES

# What gives a test a converted model, a server with one, or commands that may use one.
MODELS = {"cache", "canary", "case", "environment", "toy", "samples", "toy_folder", "v1", "unseen"}

_RAN = pytest.StashKey[defaultdict[str, set[str]]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    chosen = "run only the tests that use a model's weights, without those that run with each array library anyway"
    parser.addoption("--with-models", action="store_true", help=chosen)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--with-models"):
        others = [item for item in items if _uses_no_model(item) or _runs_with_each_library(item)]
        config.hook.pytest_deselected(items=others)
        items[:] = [item for item in items if item not in others]


def _uses_no_model(item: pytest.Item) -> bool:
    return MODELS.isdisjoint(getattr(item, "fixturenames", ()))


def _runs_with_each_library(item: pytest.Item) -> bool:
    """Whether it is parametrized with `tests.libraries`."""
    callspec = getattr(item, "callspec", None)
    given = callspec.params.values() if callspec else ()
    return any(isinstance(value, str) and value in LIBRARIES for value in given)


def pytest_configure(config: pytest.Config) -> None:
    config.stash[_RAN] = defaultdict(set)


@pytest.fixture(scope="session", autouse=True)
def _watched_models(request: pytest.FixtureRequest):
    """Note for each test what the encoders and decoders that run in this process meanwhile compute with."""
    from model.canary.decoder import Decoder
    from model.encoder import FastConformer

    ran = request.config.stash[_RAN]

    def watch(patch: pytest.MonkeyPatch, kind: type, method: str) -> None:
        original = getattr(kind, method)

        def watched(self, *arguments, **named):
            result = original(self, *arguments, **named)
            first = result[0] if isinstance(result, tuple) else result
            library = "MLX" if self.xp.CONCURRENT else "numpy"
            ran[request.config.stash[_CURRENT]].add(f"{library} {str(first.dtype).removeprefix('mlx.core.')}")
            return result

        patch.setattr(kind, method, watched)

    with pytest.MonkeyPatch.context() as patch:
        watch(patch, FastConformer, "__call__")
        watch(patch, Decoder, "prefill")
        watch(patch, Decoder, "step")
        yield


_CURRENT = pytest.StashKey[str]()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    item.config.stash[_CURRENT] = item.nodeid


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    counts = Counter(arrays for each in config.stash[_RAN].values() for arrays in each)
    if counts:
        figures = ", ".join(f"{count} on {arrays}" for arrays, count in sorted(counts.items()))
        terminalreporter.write_line(f"tests that ran a model in this process: {figures}")

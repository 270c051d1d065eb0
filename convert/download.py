"""A model's name → its `.nemo` file on this machine, downloaded from the Hugging Face Hub if needed."""

import logging
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from convert.errors import HubError

logger = logging.getLogger(__name__)

TOYS = Path(__file__).parent / "toy"
CC_BY = "CC-BY-4.0"
CC_BY_NC = "CC-BY-NC-4.0 (non-commercial use only)"
# The first word is the tag that the Hub knows.
OTHER = "other (see its model card)"
# The languages that canary-1b-v2 and parakeet-tdt-0.6b-v3 were trained on.
# fmt: off
EUROPEAN = (
    "bg", "hr", "cs", "da", "nl", "en", "et", "fi", "fr", "de", "el", "hu", "it",
    "lv", "lt", "mt", "pl", "pt", "ro", "sk", "sl", "es", "sv", "ru", "uk",
)
# fmt: on


@dataclass(frozen=True)
class KnownModel:
    """A model known by name: hosted on the Hub as `repo`, or shipped with this project at `path`.

    languages: ISO 639-1, of a Parakeet, whose archive may not say them; family: as in `config.json`.
    """

    file: str
    licence: str
    repo: str = ""
    path: Path | None = None
    languages: tuple[str, ...] = ()
    family: str = "canary"


def _parakeet(name: str, languages: tuple[str, ...] = ("en",), licence: str = CC_BY) -> dict[str, KnownModel]:
    return {name: KnownModel(f"{name}.nemo", licence, f"nvidia/{name}", languages=languages, family="parakeet")}


MODELS = {
    "canary-180m-flash": KnownModel("canary-180m-flash.nemo", CC_BY, "nvidia/canary-180m-flash"),
    "canary-1b-flash": KnownModel("canary-1b-flash.nemo", CC_BY, "nvidia/canary-1b-flash"),
    "canary-1b": KnownModel("canary-1b.nemo", CC_BY_NC, "nvidia/canary-1b"),
    "canary-1b-v2": KnownModel("canary-1b-v2.nemo", CC_BY, "nvidia/canary-1b-v2"),
    **_parakeet("parakeet-tdt-0.6b-v3", EUROPEAN),
    **_parakeet("parakeet-tdt-0.6b-v2"),
    **_parakeet("parakeet-tdt_ctc-110m"),
    **_parakeet("parakeet-tdt_ctc-1.1b"),
    **_parakeet("parakeet-tdt-1.1b"),
    **_parakeet("parakeet-rnnt-0.6b"),
    **_parakeet("parakeet-rnnt-1.1b"),
    **_parakeet("parakeet-ctc-0.6b"),
    **_parakeet("parakeet-ctc-1.1b"),
    **_parakeet("parakeet-unified-en-0.6b", licence=OTHER),
    "toy": KnownModel("toy.nemo", "Apache-2.0", path=TOYS / "toy.nemo"),
    "toy-parakeet": KnownModel(
        "toy-parakeet.nemo",
        "Apache-2.0",
        path=TOYS / "toy-parakeet.nemo",
        languages=("en", "de", "es", "fr"),
        family="parakeet",
    ),
}

_HUB_NAME = re.compile(r"(?P<repo>[\w.-]+/[\w.-]+)(@(?P<revision>[\w./-]+))?")


def known_model(source: str) -> KnownModel | None:
    """The known model that a source names, by its short name or its Hub repository."""
    named = hub_name(source)
    return _model_in(named[0]) if named else MODELS.get(source)


def _model_in(repo: str) -> KnownModel | None:
    return next((model for model in MODELS.values() if model.repo == repo), None)


def hub_name(source: str) -> tuple[str, str] | None:
    """(repository, revision) of a known model on the Hub or of `org/name`, with an optional `@revision`; else None."""
    name, _, revision = source.partition("@")
    if name in MODELS and MODELS[name].repo:
        return MODELS[name].repo, revision or "main"
    match = _HUB_NAME.fullmatch(source)
    if match and not source.endswith(".nemo") and not Path(source).exists():
        return match["repo"], match["revision"] or "main"
    return None


def nemo_file(source: str, progress: Callable[[str, int, int], None] | None = None) -> Path:
    """The archive that a name, a Hub repository or a path refers to. Downloads it if needed, resuming broken downloads.

    progress: called with "downloading", the bytes done and the total. Raises HubError, which says what to do.
    """
    if named := hub_name(source):
        return _download(*named, progress)
    path = Path(MODELS[source].path or "") if source in MODELS else Path(source).expanduser()
    if path.is_file():
        return path
    if source and path.is_dir():
        raise HubError(f"{source} is not a converted model: it must contain config.json and model.safetensors")
    if path.suffix == ".nemo":
        raise HubError(f"{source}: no such file")
    raise HubError(
        f"unknown model {source!r}: must be one of {', '.join(MODELS)}, a Hub repository (org/name[@revision]), "
        "a .nemo file or a converted folder"
    )


def _download(repo: str, revision: str, progress: Callable[[str, int, int], None] | None) -> Path:
    from huggingface_hub import constants, errors, hf_hub_download

    model = _model_in(repo)
    _log_once()
    try:
        file = model.file if model else _only_archive(repo, revision)
        logger.info("downloading %s from %s, revision %s", file, repo, revision)
        return Path(hf_hub_download(repo, file, revision=revision, tqdm_class=_progress_bar(progress)))
    except HubError:
        raise
    except errors.GatedRepoError:
        terms = f"{constants.ENDPOINT}/{repo}"
        reason = f"is gated: accept its terms at {terms}, then log in with `hf auth login` or set HF_TOKEN"
    except errors.RepositoryNotFoundError:
        reason = "does not exist or is private: check the name, then log in with `hf auth login` or set HF_TOKEN"
    except errors.RevisionNotFoundError:
        reason = f"has no revision {revision!r}: leave out @{revision} or name an existing branch, tag or commit"
    except errors.RemoteEntryNotFoundError:
        reason = "does not contain the expected .nemo file: download one yourself and give its path"
    except Exception as error:  # the HTTP library behind the client raises its own errors
        reason = _failure_reason(error)
    raise HubError(f"Hub repository {repo} {reason}") from None


def _log_once() -> None:
    """If the application has its own log handlers, stop the Hub's client from also writing to stderr."""
    if logging.getLogger().handlers:
        logging.getLogger("huggingface_hub").handlers.clear()


def _failure_reason(error: Exception) -> str:
    """Why a download failed and what to do about it."""
    from huggingface_hub import constants, errors

    if constants.is_offline_mode():
        return "is not on this machine and HF_HUB_OFFLINE is set: unset it to download, or give a .nemo file"
    cause = error.__cause__ if isinstance(error, errors.LocalEntryNotFoundError) and error.__cause__ else error
    response = getattr(cause, "response", None)
    if response is not None and response.status_code in (401, 403):
        return f"refused access ({response.status_code}): log in with `hf auth login` or set HF_TOKEN"
    detail = f"{type(cause).__name__}: {' '.join(str(cause).split())[:160]}"
    return f"could not be downloaded ({detail}): check the connection to {constants.ENDPOINT} and start again"


def _only_archive(repo: str, revision: str) -> str:
    """The name of the only .nemo file in a repository. Raises HubError if there is none or more than one."""
    from huggingface_hub import HfApi

    archives = [name for name in HfApi().list_repo_files(repo, revision=revision) if name.endswith(".nemo")]
    if len(archives) != 1:
        found = f"several .nemo files ({', '.join(archives)})" if archives else "no .nemo file"
        raise HubError(f"Hub repository {repo} contains {found}: download one yourself and give its path")
    return archives[0]


def _progress_bar(progress: Callable[[str, int, int], None] | None) -> type | None:
    """A progress bar class for the Hub's client that also calls `progress`; None for the client's own."""
    from huggingface_hub.utils import tqdm

    if progress is None:
        return None
    report = progress

    class Bar(tqdm):
        def __init__(self, *args: object, **kwargs: object):
            self._done, self._total = int(kwargs.get("initial") or 0), int(kwargs.get("total") or 0)  # pyright: ignore
            super().__init__(*args, **kwargs)

        def update(self, n: float | None = 1) -> bool | None:
            self._done += int(n or 0)  # tqdm does not count while its bar is hidden
            report("downloading", self._done, self._total)
            return super().update(n)

    return Bar

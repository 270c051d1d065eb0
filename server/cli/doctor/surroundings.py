"""Checks of what the server meets outside itself: disk, network, the Hub, browsers."""

import http.client
import json
import os
import shutil
import socket
import tempfile
import time
from pathlib import Path

from convert.cache import default_cache_dir
from convert.download import MODELS, hub_name
from server.cli.doctor.machine import GB
from server.cli.doctor.report import Check, Finding, failed, ok, warning
from server.settings import Settings

# How long the Hub may take to answer, and whatever has the port.
HUB_TIMEOUT_S, PORT_TIMEOUT_S = 5.0, 1.0
# Below so much free space only small models can be converted.
LITTLE_SPACE = 5 * GB


def checks(settings: Settings, needs_download: bool) -> list[Check]:
    """In the order of the screen. needs_download: the model is not on this machine yet."""
    cache = cache_dir(settings)
    return [
        ("cache", lambda: cache_folder(cache)),
        ("disk", lambda: disk(cache)),
        ("port", lambda: port(settings.host, settings.port)),
        ("hub", lambda: hub(settings.model[0], needs_download)),
        ("hub token", hub_token),
        ("microphone", lambda: microphone(settings)),
    ]


def cache_dir(settings: Settings) -> Path:
    return settings.cache or default_cache_dir()


def cache_folder(folder: Path) -> Finding:
    """Whether converted models can be written there."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"canary")
    except OSError as error:
        return failed(f"{folder} is not writable: {error.strerror}", "choose another folder with --cache")
    return ok(f"{folder} is writable")


def disk(cache: Path) -> Finding:
    """Free space for converted models, and for downloads if they go to another disk."""
    from huggingface_hub import constants

    free = {}
    for folder in (cache, Path(constants.HF_HUB_CACHE)):
        while not folder.exists():
            folder = folder.parent
        free.setdefault(folder.stat().st_dev, shutil.disk_usage(folder).free)
    least = min(free.values())
    told = " and ".join(f"{size / GB:.1f} GB" for size in free.values()) + " free for models"
    if least < LITTLE_SPACE:
        advice = "a model of 1 billion parameters takes about 9 GB: its download, and its conversion"
        return warning(told, advice, free_bytes=least)
    return ok(told, free_bytes=least)


def port(host: str, number: int) -> Finding:
    """Whether the server could listen."""
    if number == 0:
        return ok("0: the system picks a free one")
    try:
        address = socket.getaddrinfo(host, number, type=socket.SOCK_STREAM)[0]
        with socket.socket(address[0], socket.SOCK_STREAM) as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address[4])
            listener.listen()
    except OSError as error:
        if running := _canary_at(host, number):
            return warning(f"{number} on {host}: {running} is running there", "stop it, or use another --port")
        reason = error.strerror or str(error)
        return failed(f"cannot listen on port {number} of {host}: {reason}", "choose another with --port or --host")
    return ok(f"{number} on {host} is free", number=number)


def _canary_at(host: str, number: int) -> str | None:
    """The canary-server at this address, if that is what is there."""
    connection = http.client.HTTPConnection(host, number, timeout=PORT_TIMEOUT_S)
    try:
        connection.request("GET", "/health", headers={"host": "localhost"})
        health = json.loads(connection.getresponse().read(10_000))
        return f"canary-server {health['version']} with {health['model']}"
    except (OSError, http.client.HTTPException, ValueError, KeyError, TypeError):
        return None
    finally:
        connection.close()


def hub(source: str, needs_download: bool) -> Finding:
    """Whether the model, or any known one, can be downloaded."""
    from huggingface_hub import HfApi, constants, errors, get_hf_file_metadata, hf_hub_url

    wanted = hub_name(source)
    repo, revision = wanted or (MODELS["canary-180m-flash"].repo, "main")
    endpoint = constants.ENDPOINT
    problem = failed if needs_download else warning
    why = f"{repo} is not on this machine" if needs_download else "only needed to download models"
    if constants.is_offline_mode():
        if needs_download:
            return failed(f"HF_HUB_OFFLINE is set, and {why}", "unset it to download the model")
        return ok("not used: HF_HUB_OFFLINE is set")
    archive = next((model.file for model in MODELS.values() if model.repo == repo), None)
    began = time.monotonic()
    try:
        if archive:
            url = hf_hub_url(repo, archive, revision=revision)
            size = get_hf_file_metadata(url, timeout=HUB_TIMEOUT_S).size
        else:
            size = None
            HfApi().model_info(repo, revision=revision, timeout=HUB_TIMEOUT_S)
    except errors.GatedRepoError:
        return problem(f"{repo} is gated", f"accept its terms at {endpoint}/{repo}, then log in with `hf auth login`")
    except errors.RepositoryNotFoundError:
        return problem(f"{repo} does not exist or is private", "check the name, or log in with `hf auth login`")
    except errors.HfHubHTTPError as error:
        status = error.response.status_code
        advice = "log in again with `hf auth login`, or set HF_TOKEN" if status in (401, 403) else "try again later"
        return problem(f"{endpoint} answered {status}; {why}", advice)
    except Exception as error:  # the HTTP library behind the client raises its own errors
        told = f"{endpoint} cannot be reached ({type(error).__name__}); {why}"
        advice = "check the network" + ("" if needs_download else ", or set HF_HUB_OFFLINE=1 to work without it")
        return problem(told, advice)
    answered_s = time.monotonic() - began
    what = f"{repo}, {size / GB:.1f} GB" if size else repo
    return ok(f"{endpoint} offers {what} (answered in {answered_s:.1f} s)", size_bytes=size)


def hub_token() -> Finding:
    """Whether there is one. It is neither shown nor sent."""
    from huggingface_hub import get_token

    if not get_token():
        return ok("none; only needed for gated or private models")
    variable = next((name for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN") if os.environ.get(name)), None)
    return ok(f"from {variable}" if variable else "saved by `hf auth login`")


def microphone(settings: Settings) -> Finding:
    """Browsers offer the microphone to pages on localhost or behind https only."""
    if not settings.is_public:
        return ok("browsers on this machine may use it")
    advice = "put a proxy with https before the server, or open the page on this machine as http://localhost"
    return warning(f"browsers elsewhere refuse it: http://{settings.host} is neither localhost nor https", advice)

"""Whether the service answers."""

import json
import urllib.error
import urllib.request

from server.settings import Settings

_WAIT_S = 3.0


def url_of(settings: Settings) -> str:
    """Where this machine reaches the service."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(settings.host, settings.host)
    return f"http://{f'[{host}]' if ':' in host else host}:{settings.port}"


def readiness(settings: Settings) -> str:
    """What `/ready` says, in words."""
    # No proxy: the service is on this machine.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(f"{url_of(settings)}/ready", timeout=_WAIT_S) as answer:
            models = json.load(answer)["models"]
    except urllib.error.HTTPError as error:
        with error:
            return f"not ready ({error.code}); see canary service logs"
    except (OSError, ValueError, KeyError):
        return "no answer yet; see canary service logs"
    return f"ready, with {', '.join(model['id'] for model in models)}"

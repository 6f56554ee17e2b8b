"""Is the Hugging Face hub reachable? Asked once, in seconds, before a library starts its minutes of
retries.
"""

import os
import urllib.error
import urllib.request

from inrun.data.errors import SourceUnreachable

TIMEOUT_S = 5


def require_hub(what: str, instead: str) -> None:
    """Raise SourceUnreachable at once where the hub cannot be reached: `what` was wanted, `instead`
    is the way offline.

    Respects HF_HUB_OFFLINE, HF_ENDPOINT (a mirror) and the proxy variables. Any HTTP answer counts
    as reachable.
    """
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        raise SourceUnreachable(
            f"{what}: the hub is switched off by HF_HUB_OFFLINE. Next: {instead}"
        )
    endpoint = os.environ.get("HF_ENDPOINT", constants.ENDPOINT)
    request = urllib.request.Request(endpoint, method="HEAD")
    try:
        urllib.request.urlopen(request, timeout=TIMEOUT_S).close()
    except urllib.error.HTTPError:
        return
    except OSError as error:
        raise SourceUnreachable(
            f"{what}: {endpoint} cannot be reached ({error}). Next: {instead}"
        ) from error

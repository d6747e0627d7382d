"""Whether weights of the hub can be had, before timm waits for them."""

import threading
import urllib.error
import urllib.request
from typing import Any

from timm.models import get_pretrained_cfg, parse_model_name

#: Seconds to wait for an answer of the weights hub. Its client would retry
#: for most of a minute.
_HUB_TIMEOUT = 5


def is_registered(name: str) -> bool:
    """Whether a name is one of timm's own, not a folder or repository."""
    return parse_model_name(name)[0] is None


def reachable_weights(name: str) -> dict[str, Any]:
    """Fail fast when timm's weights are neither cached nor to be had.

    Returns:
        Entries of timm's ``pretrained_cfg`` that make it read the cached file
        when the hub does not answer; empty when it does.
    """
    if not is_registered(name):
        source, repo = parse_model_name(name)
        filename = None
        if source == 'local-dir':
            return {}
    else:
        cfg = get_pretrained_cfg(name)
        if cfg is None:  # a former name, which timm resolves
            return {}
        if not cfg.has_weights:
            raise ValueError(
                f'pretrained=True: timm has no weights for {name!r}; use '
                'pretrained=False, or checkpoint_path with weights of your '
                'own.')
        repo, filename = cfg.hf_hub_id, cfg.hf_hub_filename
        if not repo:  # a plain address, which timm loads
            return {}
    from huggingface_hub import try_to_load_from_cache
    if hub_answers():
        return {}
    repo, _, revision = repo.partition('@')
    for file in ([filename] if filename else
                 ['model.safetensors', 'pytorch_model.bin']):
        cached = try_to_load_from_cache(
            repo, file, revision=revision or None)
        if isinstance(cached, str):
            return {} if filename else dict(
                file=cached, source='', custom_load=False)
    raise ConnectionError(
        f'pretrained=True: the weights of {name!r} are not in the local '
        'cache and the hub does not answer; fetch them once on a machine '
        'with a network and copy its Hugging Face cache (HF_HOME), or save '
        'them to a file and use checkpoint_path=FILE.')


def hub_answers() -> bool:
    """Whether the hub can be asked."""
    from huggingface_hub import constants
    return not constants.HF_HUB_OFFLINE and _answers(constants.ENDPOINT)


def _answers(endpoint: str) -> bool:
    """Whether a host answers at all, within seconds, proxies respected."""
    answers = []

    def ask() -> None:
        request = urllib.request.Request(endpoint, method='HEAD')
        try:
            urllib.request.urlopen(request, timeout=_HUB_TIMEOUT).close()
        except urllib.error.HTTPError:
            pass  # it answers, if not with a page
        except OSError:
            return
        answers.append(True)

    # a thread, for looking up a name knows no time limit of its own
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(_HUB_TIMEOUT)
    return bool(answers)

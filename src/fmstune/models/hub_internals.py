"""The private name of huggingface_hub that decides how often its client tries again."""

from fmstune.upstream import explain_missing_names

with explain_missing_names("huggingface_hub"):
    from huggingface_hub.utils._http import http_backoff


def fail_at_once_without_a_network() -> None:
    """Let the hub's client fail at once where it cannot connect; reads and answers that fail are tried again."""
    # else five times more, for 23 seconds a file (huggingface_hub 2.4, utils/_http.py, `http_backoff`)
    defaults = http_backoff.__kwdefaults__ or {}
    kinds: list[type[Exception]] = []
    for kind in defaults.get("retry_on_exceptions", ()):
        # ConnectError is a subclass of the network's error
        narrower = kind.__subclasses__()
        others = [one for one in narrower if one.__name__ != "ConnectError"]
        kinds += [kind] if len(others) == len(narrower) else others
    defaults["retry_on_exceptions"] = tuple(kinds)

"""Which of a function's paths are webhooks, however a request writes them."""

from __future__ import annotations

import functools
import posixpath
import re
from collections.abc import Mapping
from urllib.parse import unquote

from faas.manifest import Manifest, Webhook

_SLASHES = re.compile(r"/+")


def webhooks_of(manifest: Manifest) -> dict[str, Webhook]:
    """Return the webhooks of a version by their paths, as ``hook_at`` looks them up."""
    return {plain(hook.path): hook for hook in manifest.webhooks}


def hook_at(webhooks: Mapping[str, Webhook], raw_path: str) -> Webhook | None:
    """Return the webhook that a request's path means, however it is written: no spelling may get around the check."""
    return webhooks.get(plain(raw_path))


@functools.lru_cache(maxsize=1024)
def plain(path: str) -> str:
    """Return *path* as every spelling of it is: decoded, without empty and dotted segments."""
    return posixpath.normpath(_SLASHES.sub("/", unquote(path)))

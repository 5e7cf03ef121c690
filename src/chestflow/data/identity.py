"""Keyed hashes that stand for patients, studies and images: without the key they cannot be traced back by guessing."""

from __future__ import annotations

import hashlib
import hmac

from chestflow.errors import ConfigError

#: Hex digits kept: 48 bits, where a million names collide with a chance below 1 in 500.
DIGITS = 12


def keyed_id(namespace: str, what: str, name: str, key: str) -> str:
    """``<namespace>-<12 hex>`` by HMAC-SHA256, the same for the same name and key.

    Args:
        namespace: who gave the name: a set, or the collection that a set took its patients from.
        what: ``image``, ``patient``, ``study`` or ``series``; equal names of different things get different hashes.
        key: ``data.id_key`` of params.yaml.

    Raises:
        ConfigError: the key is empty.
    """
    if not key:
        raise ConfigError("data.id_key is empty: any word will do, a secret one for private data")
    message = "\0".join((namespace, what, name)).encode()
    return f"{namespace}-{hmac.new(key.encode(), message, hashlib.sha256).hexdigest()[:DIGITS]}"

"""Sessions of browsers: a cookie that says which key it stands for and until when, signed, stored nowhere.

The signature is an HMAC whose key is the stored hash of the API key. So a session ends with its key, no
further secret is to be kept, and servers that share a file of keys share sessions.
"""

from __future__ import annotations

import hashlib
import hmac
import time

from service.api_keys import ApiKey, KeyRing

COOKIE = "xclip_session"


def make_session(key: ApiKey, seconds: float) -> str:
    """The value of a cookie that stands for `key` for so many seconds."""
    expires_at = int(time.time() + seconds)
    return f"{key.name}:{expires_at}:{_sign(key, expires_at)}"


def find_session(value: str, ring: KeyRing) -> ApiKey | None:
    """The key that a cookie stands for; None where it is not ours, has expired, or its key is gone."""
    name, _, rest = value.partition(":")
    expires, _, signature = rest.partition(":")
    if not (expires.isascii() and expires.isdigit() and len(expires) <= 15 and signature.isascii()):
        return None
    key = ring.named(name)
    if key is None or not hmac.compare_digest(signature, _sign(key, int(expires))):
        return None
    return key if time.time() < int(expires) else None


def _sign(key: ApiKey, expires_at: int) -> str:
    message = f"xclip-search session\n{key.name}\n{expires_at}".encode()
    return hmac.new(bytes.fromhex(key.sha256), message, hashlib.sha256).hexdigest()

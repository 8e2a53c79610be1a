"""Tokens as an identity provider would issue them."""

import base64
import hashlib
import hmac
import json
import time


def _encode(data):
    return base64.urlsafe_b64encode(data).rstrip(b"=")


def mint(secret, sub, number=0, lifetime=3600):
    """An HS256 token for `sub`, valid for `lifetime` seconds; `number` makes tokens differ that were issued in the same second."""
    now = int(time.time())
    claims = {"sub": sub, "iat": now, "exp": now + lifetime, "jti": f"{number:08}"}
    parts = [_encode(json.dumps(part, separators=(",", ":")).encode()) for part in ({"alg": "HS256", "typ": "JWT"}, claims)]
    message = b".".join(parts)
    return (message + b"." + _encode(hmac.digest(secret.encode(), message, hashlib.sha256))).decode()

"""What of a host's settings lets in more people than was probably meant, or soon lets in nobody."""

from __future__ import annotations

import ipaddress
import os
import stat
import time
from collections.abc import Iterator
from pathlib import Path

from cryptography import x509

from faas.config import HostConfig

SOON_S = 7 * 86400
"""A certificate that ends within this time is worth a warning."""


def warnings(config: HostConfig, admin_address: str, now: float | None = None) -> Iterator[str]:
    """
    Yield one line for each thing that the operator should know when the host starts.

    Args: *admin_address* is the one that the admin API listens on; *now* is a Unix time, for tests.
    """
    if not config.admin_tls_cert and not is_loopback(admin_address):
        yield (
            f"the admin API answers on {admin_address} without TLS, so tokens can be read on their way; set "
            "--admin-tls-cert and --admin-tls-key, or leave --admin-host at 127.0.0.1"
        )
    for setting, cert, key in (
        ("tls_cert", config.tls_cert, config.tls_key),
        ("admin_tls_cert", config.admin_tls_cert, config.admin_tls_key),
    ):
        if not cert:
            continue
        if os.stat(key).st_mode & stat.S_IROTH:
            yield f"{setting.replace('cert', 'key')}: everybody on this machine may read {key}; 'chmod o-r' it"
        try:
            ends = x509.load_pem_x509_certificates(Path(cert).read_bytes())[0].not_valid_after_utc
        except ValueError:
            continue  # the TLS library took it, and that is what counts
        left_s = ends.timestamp() - (time.time() if now is None else now)
        if left_s < SOON_S:
            verb = "ended" if left_s < 0 else "ends"
            yield (
                f"{setting}: the certificate in {cert} {verb} on {ends:%Y-%m-%d}; put a new one there, it is taken "
                "without a restart"
            )


def is_loopback(address: str) -> bool:
    """Whether only this machine reaches *address*, a numeric one."""
    return ipaddress.ip_address(address.partition("%")[0]).is_loopback

"""
Addresses that no function may reach unless its manifest names them: everything that is not the public internet.

Source: the IANA special-purpose address registries for IPv4 and IPv6; metadata addresses of clouds.
"""

from __future__ import annotations

import ipaddress
from typing import NamedTuple

from faas.destinations import Address


class Prohibition(NamedTuple):
    """Why an address is not the public internet."""

    reason: str
    by_name: bool = False
    """An entry that names the host is enough to reach it; else the entry has to be the address itself."""


_METADATA = Prohibition("cloud metadata")
_ADDRESSES = {
    # Those outside of the link-local block.
    ipaddress.ip_address(address): _METADATA
    for address in ("168.63.129.16", "100.100.100.200", "192.0.0.192", "fd00:ec2::254", "fd20:ce::254")
}

_V4 = [
    (ipaddress.IPv4Network(network), prohibition)
    for network, prohibition in (
        ("127.0.0.0/8", Prohibition("loopback", by_name=True)),
        ("10.0.0.0/8", Prohibition("private", by_name=True)),
        ("172.16.0.0/12", Prohibition("private", by_name=True)),
        ("192.168.0.0/16", Prohibition("private", by_name=True)),
        ("100.64.0.0/10", Prohibition("shared (carrier-grade NAT)", by_name=True)),
        ("169.254.0.0/16", Prohibition("link-local, cloud metadata")),
        ("0.0.0.0/8", Prohibition("this host")),
        ("192.0.0.0/24", Prohibition("protocol assignments")),
        ("192.0.2.0/24", Prohibition("documentation")),
        ("192.88.99.0/24", Prohibition("6to4 relays")),
        ("198.18.0.0/15", Prohibition("benchmarking")),
        ("198.51.100.0/24", Prohibition("documentation")),
        ("203.0.113.0/24", Prohibition("documentation")),
        ("224.0.0.0/4", Prohibition("multicast")),
        ("240.0.0.0/4", Prohibition("reserved, broadcast")),
    )
]
_V6 = [
    (ipaddress.IPv6Network(network), prohibition)
    for network, prohibition in (
        ("::1/128", Prohibition("loopback", by_name=True)),
        ("fc00::/7", Prohibition("private (unique local)", by_name=True)),
        ("::/128", Prohibition("this host")),
        ("fe80::/10", Prohibition("link-local")),
        ("ff00::/8", Prohibition("multicast")),
        ("2001::/23", Prohibition("protocol assignments, Teredo")),
        ("2001:db8::/32", Prohibition("documentation")),
        ("3fff::/20", Prohibition("documentation")),
    )
]
_GLOBAL_UNICAST = ipaddress.IPv6Network("2000::/3")
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")


def prohibition(address: Address) -> Prohibition | None:
    """Return why *address* is not the public internet, None if it is; IPv4 inside of IPv6 counts as what it is."""
    special = _ADDRESSES.get(address)
    if special is not None:
        return special
    if isinstance(address, ipaddress.IPv4Address):
        return next((found for network, found in _V4 if address in network), None)
    mapped = address.ipv4_mapped
    if mapped is not None:
        return prohibition(mapped)
    embedded = address.sixtofour
    if embedded is None and address in _NAT64:
        embedded = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    if embedded is not None:
        inner = prohibition(embedded)
        return None if inner is None else Prohibition(f"IPv6 form of {embedded}: {inner.reason}")
    found = next((found for network, found in _V6 if address in network), None)
    if found is None and address not in _GLOBAL_UNICAST:
        return Prohibition("not global unicast")
    return found

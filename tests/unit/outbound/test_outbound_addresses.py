"""Which addresses are the public internet, and which forms of the others are seen through."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from faas.outbound.addresses import prohibition


@pytest.mark.parametrize(
    "address",
    [
        "8.8.8.8",
        "140.82.121.6",
        "100.63.255.255",
        "100.128.0.1",
        "172.15.255.255",
        "172.32.0.1",
        "223.255.255.254",
        "2606:4700::6810:84e5",
        "2a00:1450:4001:82b::200e",
        "::ffff:8.8.8.8",
        "2002:808:808::1",
        "64:ff9b::8.8.8.8",
    ],
)
def test_public_addresses_are_allowed(address: str) -> None:
    assert prohibition(ipaddress.ip_address(address)) is None


@pytest.mark.parametrize(
    ("address", "reason"),
    [
        ("127.0.0.1", "loopback"),
        ("127.255.255.254", "loopback"),
        ("::1", "loopback"),
        ("10.1.2.3", "private"),
        ("172.16.0.1", "private"),
        ("172.31.255.255", "private"),
        ("192.168.0.1", "private"),
        ("fd12::1", "private"),
        ("100.64.0.1", "shared"),
        ("100.127.255.255", "shared"),
        ("169.254.169.254", "metadata"),
        ("169.254.170.2", "link-local"),
        ("fe80::1", "link-local"),
        ("168.63.129.16", "metadata"),
        ("100.100.100.200", "metadata"),
        ("192.0.0.192", "metadata"),
        ("fd00:ec2::254", "metadata"),
        ("fd20:ce::254", "metadata"),
        ("0.0.0.0", "this host"),
        ("0.1.2.3", "this host"),
        ("::", "this host"),
        ("192.0.0.8", "protocol"),
        ("192.0.2.1", "documentation"),
        ("198.51.100.1", "documentation"),
        ("203.0.113.1", "documentation"),
        ("2001:db8::1", "documentation"),
        ("3fff::1", "documentation"),
        ("192.88.99.1", "6to4"),
        ("198.19.0.1", "benchmarking"),
        ("224.0.0.1", "multicast"),
        ("239.255.255.255", "multicast"),
        ("ff02::1", "multicast"),
        ("240.0.0.1", "reserved"),
        ("255.255.255.255", "broadcast"),
        ("::ffff:127.0.0.1", "loopback"),
        ("::ffff:169.254.169.254", "metadata"),
        ("2002:7f00:1::", "127.0.0.1: loopback"),
        ("2002:a9fe:a9fe::1", "169.254.169.254: link-local"),
        ("64:ff9b::10.0.0.1", "10.0.0.1: private"),
        ("64:ff9b::169.254.169.254", "metadata"),
        ("64:ff9b:1::1", "not global"),
        ("::127.0.0.1", "not global"),
        ("2001:0:1::1", "Teredo"),
        ("fec0::1", "not global"),
        ("100::1", "not global"),
        ("5f00::1", "not global"),
    ],
)
def test_all_others_are_prohibited_with_a_reason(address: str, reason: str) -> None:
    found = prohibition(ipaddress.ip_address(address))
    assert found is not None
    assert reason in found.reason


@pytest.mark.parametrize("address", ["127.0.0.1", "10.0.0.1", "192.168.1.1", "100.64.0.1", "fd00::1", "::1"])
def test_a_name_in_the_manifest_is_enough_for_private_addresses(address: str) -> None:
    found = prohibition(ipaddress.ip_address(address))
    assert found is not None
    assert found.by_name


@pytest.mark.parametrize(
    "address",
    ["169.254.169.254", "fe80::1", "0.0.0.0", "224.0.0.1", "fd00:ec2::254", "2002:7f00:1::", "64:ff9b::a00:1"],
)
def test_no_name_is_enough_for_metadata_and_what_only_attacks_use(address: str) -> None:
    found = prohibition(ipaddress.ip_address(address))
    assert found is not None
    assert not found.by_name


@given(st.ip_addresses())
def test_what_python_calls_not_global_is_never_taken_for_public(address: ipaddress.IPv4Address) -> None:
    if not address.is_global or address.is_multicast:
        mapped = getattr(address, "ipv4_mapped", None)
        embedded = (
            mapped is not None or address in ipaddress.ip_network("64:ff9b::/96") if address.version == 6 else False
        )
        assert embedded or prohibition(address) is not None


@given(st.ip_addresses(v=4))
def test_ipv4_inside_of_ipv6_is_judged_as_ipv4(address: ipaddress.IPv4Address) -> None:
    prohibited = prohibition(address) is not None
    number = int(address)
    for outer in (0xFFFF << 32 | number, 0x2002 << 112 | number << 80 | 1, 0x64FF9B << 96 | number):
        assert (prohibition(ipaddress.IPv6Address(outer)) is not None) is prohibited

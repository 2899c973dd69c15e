"""Addresses of servers: where requests of the service may not go, whoever names the place, and how one is told."""

import socket
from ipaddress import IPv4Address, IPv6Address, ip_address
from urllib.parse import urlsplit

METADATA = {"metadata", "metadata.google.internal", "metadata.goog", "fd00:ec2::254", "100.100.100.200"}
"""Of clouds, beside the link-local addresses: they give out credentials of the machine to whoever asks from it."""


def refuse_metadata(url: str) -> None:
    """Raises ValueError for the address of such a service, however its number is written."""
    host = (urlsplit(url).hostname or "").rstrip(".").lower()
    address = _address(host)
    if host in METADATA or str(address) in METADATA or (address is not None and address.is_link_local):
        raise ValueError(f"{host} is where clouds tell machines their secrets, and nobody to send anything to")


def shown(url: str) -> str:
    """Without the user and the password that may stand in it."""
    parts = urlsplit(url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()


def _address(host: str) -> IPv4Address | IPv6Address | None:
    try:
        address = ip_address(host)
    except ValueError:
        try:
            return IPv4Address(socket.inet_aton(host))  # 2852039166, 0xa9fea9fe, 169.254.43518
        except OSError:
            return None
    return (address.ipv4_mapped or address) if isinstance(address, IPv6Address) else address

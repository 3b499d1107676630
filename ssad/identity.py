# SPDX-License-Identifier: BSD-3-Clause
"""Whom a certificate is for, and whether that is whom the program wanted (RFC 9525).

Knows nothing of connections: it is given a certificate's names and the wanted one.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass

from cryptography import x509
from service_identity.exceptions import CertificateError
from service_identity.hazmat import DNS_ID, DNSPattern, IPAddress_ID, IPAddressPattern

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

# What cryptography raises for a certificate that it can't read, in whole or in part.
UNREADABLE = (
    ValueError,
    x509.InvalidVersion,
    x509.DuplicateExtension,
    x509.UnsupportedGeneralNameType,
)

# A sentence has to stay readable, and some certificates have a hundred names.
_SHOWN = 4


@dataclass(frozen=True, slots=True)
class Names:
    """The subject alternative names of a certificate that can name a server."""

    dns: tuple[str, ...] = ()
    addresses: tuple[Address, ...] = ()

    def __str__(self) -> str:
        names = [*self.dns, *map(str, self.addresses)]
        if not names:
            return "no host name or IP address"
        if len(names) > _SHOWN:
            return f"{', '.join(names[:_SHOWN])} and {len(names) - _SHOWN} more"
        return ", ".join(names)


def wanted(host_name: str | None, remote: Address) -> str | Address:
    """Return the name or address that the certificate has to carry.

    `host_name` as settings hold it; without one it is the address that the program connects to.
    """
    if host_name is None:
        # ::ffff:192.0.2.1 is IPv4 on an IPv6 socket, and certificates know it as IPv4. A zone is
        # this machine's affair.
        mapped = remote.ipv4_mapped if isinstance(remote, ipaddress.IPv6Address) else None
        return mapped or ipaddress.ip_address(remote.packed)
    try:
        return ipaddress.ip_address(host_name)
    except ValueError:
        return host_name


def names_of(certificate: x509.Certificate) -> Names:
    """Read a certificate's names. The common name is none of them (RFC 9525, 2).

    Raises one of UNREADABLE if the extension can't be read.
    """
    try:
        extension = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    except x509.ExtensionNotFound:
        return Names()
    addresses = extension.value.get_values_for_type(x509.IPAddress)
    return Names(
        tuple(extension.value.get_values_for_type(x509.DNSName)),
        tuple(a for a in addresses if isinstance(a, Address)),
    )


def mismatches(names: Names, name: str | Address) -> list[str]:
    """Compare a certificate's names with the wanted one.

    Returns the empty list if one of them matches, else those that did not, or that there is none.
    """
    if isinstance(name, str):
        matches = any(_dns_matches(pattern, name) for pattern in names.dns)
    else:
        wanted_id = IPAddress_ID(name)
        matches = any(wanted_id.verify(IPAddressPattern(a)) for a in names.addresses)
    if matches:
        return []
    return [*names.dns, *map(str, names.addresses)] or [str(names)]


def _dns_matches(pattern: str, name: str) -> bool:
    try:
        return DNS_ID(name).verify(DNSPattern.from_bytes(pattern.encode()))
    except (CertificateError, ValueError):
        # One odd name does not spoil the certificate's others.
        return False


def is_authority(certificate: x509.Certificate) -> bool:
    """Tell whether a certificate may issue others (RFC 5280, 4.2.1.9)."""
    try:
        basic = certificate.extensions.get_extension_for_class(x509.BasicConstraints)
    except (x509.ExtensionNotFound, *UNREADABLE):
        return False
    return basic.value.ca


def subject(certificate: x509.Certificate) -> str:
    """Name a certificate: its subject (RFC 4514), or the first alternative name if that is empty
    (RFC 5280, 4.1.2.6)."""
    try:
        name = certificate.subject.rfc4514_string()
        if name:
            return name
        names = names_of(certificate)
    except UNREADABLE:
        return f"serial number {certificate.serial_number:x}"
    if names.dns:
        return f"DNS:{names.dns[0]}"
    if names.addresses:
        return f"IP:{names.addresses[0]}"
    return f"serial number {certificate.serial_number:x}"

"""A certificate for the emulator, made when it starts and signed by itself."""

from __future__ import annotations

import datetime as dt
import ipaddress
import ssl
from pathlib import Path
from typing import Any, final

import attrs

__all__ = ["Certificate"]


@final
@attrs.frozen(kw_only=True)
class Certificate:
    """What a certificate says.

    Args:
        hosts: Names and addresses it is valid for.
        lifetime: Seconds from now until it expires; negative: it expired so long ago.
    """

    hosts: tuple[str, ...] = ("localhost", "127.0.0.1")
    lifetime: float = 86_400.0

    def make(self, folder: Path) -> tuple[ssl.SSLContext, Path]:
        """Write certificate and key into a folder.

        Needs the package ``cryptography``, which comes with azure-identity.

        Returns:
            A server's context, and the file that clients have to trust.
        """
        from cryptography import x509
        from cryptography.hazmat.primitives import hashes, serialization
        from cryptography.hazmat.primitives.asymmetric import ec

        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, self.hosts[0])])
        now = dt.datetime.now(dt.UTC)
        expires = now + dt.timedelta(seconds=self.lifetime)
        certificate = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(min(now, expires) - dt.timedelta(days=1))
            .not_valid_after(expires)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(
                x509.SubjectAlternativeName([_general_name(host) for host in self.hosts]),
                critical=False,
            )
            .sign(key, hashes.SHA256())
        )
        public, private = folder / "certificate.pem", folder / "key.pem"
        public.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        private.touch(mode=0o600)
        private.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            )
        )
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(public, private)
        return context, public


def _general_name(host: str) -> Any:
    from cryptography import x509

    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)

"""Listeners with TLS and SASL for a test cluster, and the properties of their clients.

An authority in a directory of the test makes the certificates.
"""

from __future__ import annotations

import base64
import datetime as dt
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import trustme
from cryptography.hazmat.primitives import serialization

from tests.support.kafka_nodes import Listener

__all__ = [
    "ACLS",
    "Authority",
    "Certificate",
    "jwt",
    "logging_in",
    "sasl_listener",
    "ssl_listener",
    "trusting",
    "unsecured_token",
]

#: Properties of a cluster that checks ACLs. Everyone may use a resource without an ACL. A client
#: without a login may use everything: the brokers and the harness do not log in.
ACLS: Mapping[str, object] = {
    "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
    "super.users": "User:ANONYMOUS",
    "allow.everyone.if.no.acl.found": True,
}

_LOGIN_MODULES = "org.apache.kafka.common.security"
_UNSECURED = f"{_LOGIN_MODULES}.oauthbearer.internals.unsecured.OAuthBearerUnsecured"


class Certificate(NamedTuple):
    """A certificate and its key, as files in PEM format."""

    chain: Path
    key: Path
    both: Path
    """The key in PKCS #8 and the chain, in Kafka's format."""
    authority: Path
    """The certificate of the authority that issued it."""

    def locked(self, password: str) -> Path:
        """Write the encrypted key and the chain to another file."""
        key = serialization.load_pem_private_key(self.key.read_bytes(), None)
        path = self.key.with_name("locked.pem")
        path.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.BestAvailableEncryption(password.encode()),
            )
            + self.chain.read_bytes()
        )
        return path


class Authority:
    """A certificate authority with its files in a directory."""

    def __init__(self, directory: Path) -> None:
        self._ca = trustme.CA()
        self._directory = directory
        self._issued = 0
        self.file = directory / "authority.pem"
        directory.mkdir(parents=True)
        self._ca.cert_pem.write_to_path(self.file)

    def issue(
        self,
        *hosts: str,
        common_name: str | None = None,
        not_after: dt.datetime | None = None,
    ) -> Certificate:
        """Make a certificate.

        Args:
            hosts: the names and addresses of the certificate; by default 127.0.0.1 and localhost.
            common_name: the name by which a broker identifies a client.
            not_after: the end of its validity; None for longer than the tests run.
        """
        hosts = hosts or ("127.0.0.1", "localhost")
        issued = self._ca.issue_cert(*hosts, common_name=common_name, not_after=not_after)
        self._issued += 1
        place = self._directory / f"certificate-{self._issued}"
        place.mkdir()
        made = Certificate(place / "chain.pem", place / "key.pem", place / "both.pem", self.file)
        chain = b"".join(blob.bytes() for blob in issued.cert_chain_pems)
        # Java reads keys in no other format.
        key = serialization.load_pem_private_key(
            issued.private_key_pem.bytes(), None
        ).private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        made.chain.write_bytes(chain)
        made.key.write_bytes(key)
        made.both.write_bytes(key + chain)
        return made


def ssl_listener(
    name: str, certificate: Certificate, *, clients: Authority | None = None
) -> Listener:
    """A listener with TLS.

    Args:
        name: its name.
        certificate: the certificate of the brokers.
        clients: the authority of the client certificates; None if clients need none. A client is
            the user ``User:<common name>``.
    """
    return Listener(name, "SSL", _tls(certificate, clients))


def sasl_listener(
    name: str,
    mechanisms: Sequence[str],
    *,
    users: Mapping[str, str] | None = None,
    certificate: Certificate | None = None,
) -> Listener:
    """A listener with a login.

    Args:
        name: its name.
        mechanisms: any of PLAIN, SCRAM-SHA-256, SCRAM-SHA-512 and OAUTHBEARER. The users of SCRAM
            are created with ``cluster.create_user()``, and every unsecured token is accepted.
        users: the users of PLAIN and their passwords.
        certificate: the certificate of the brokers; None for no TLS.
    """
    properties: dict[str, object] = {"sasl.enabled.mechanisms": ",".join(mechanisms)}
    for mechanism in mechanisms:
        settings = _mechanism(mechanism, users or {})
        properties |= {f"{mechanism.lower()}.{key}": value for key, value in settings.items()}
    if certificate is None:
        return Listener(name, "SASL_PLAINTEXT", properties)
    return Listener(name, "SASL_SSL", {**properties, **_tls(certificate, None)})


def trusting(authority: Authority, shown: Certificate | None = None) -> dict[str, Any]:
    """Properties of a client with TLS that trusts this authority, and may have a certificate."""
    properties = {"security.protocol": "SSL", "ssl_cafile": str(authority.file)}
    if shown is not None:
        properties |= {"ssl_certfile": str(shown.chain), "ssl_keyfile": str(shown.key)}
    return properties


def logging_in(mechanism: str, user: str, password: str) -> dict[str, Any]:
    """Properties of a client that logs in with a password."""
    return {
        "security.protocol": "SASL_PLAINTEXT",
        "sasl.mechanism": mechanism,
        "sasl_plain_username": user,
        "sasl_plain_password": password,
    }


def unsecured_token(user: str, *, valid_for: float = 3600.0) -> str:
    """Make an unsigned token for OAUTHBEARER, with the user's name and the time of its expiry."""
    now = time.time()
    # Issued some time ago, so that the token can already have expired.
    claims = {"sub": user, "iat": now - 7200.0, "exp": now + valid_for}
    return jwt(claims)


def jwt(claims: Mapping[str, object]) -> str:
    """Make an unsigned token with these claims (RFC 7519)."""
    return f"{_base64({'alg': 'none'})}.{_base64(dict(claims))}."


def _tls(certificate: Certificate, clients: Authority | None) -> dict[str, object]:
    properties: dict[str, object] = {
        "ssl.keystore.type": "PEM",
        "ssl.keystore.location": certificate.both,
    }
    if clients is not None:
        properties |= {
            "ssl.client.auth": "required",
            "ssl.truststore.type": "PEM",
            "ssl.truststore.location": clients.file,
            "ssl.principal.mapping.rules": "RULE:^.*CN=([^,]+).*$/$1/",
        }
    return properties


def _mechanism(mechanism: str, users: Mapping[str, str]) -> dict[str, object]:
    if mechanism == "PLAIN":
        known = " ".join(f'user_{user}="{password}"' for user, password in users.items())
        return {"sasl.jaas.config": f"{_LOGIN_MODULES}.plain.PlainLoginModule required {known};"}
    if mechanism.startswith("SCRAM-"):
        return {"sasl.jaas.config": f"{_LOGIN_MODULES}.scram.ScramLoginModule required;"}
    return {
        "sasl.jaas.config": f"{_LOGIN_MODULES}.oauthbearer.OAuthBearerLoginModule required "
        'unsecuredLoginStringClaim_sub="broker";',
        "sasl.login.callback.handler.class": f"{_UNSECURED}LoginCallbackHandler",
        "sasl.server.callback.handler.class": f"{_UNSECURED}ValidatorCallbackHandler",
    }


def _base64(content: Mapping[str, Any]) -> str:
    return base64.urlsafe_b64encode(json.dumps(content).encode()).decode().rstrip("=")

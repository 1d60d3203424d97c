"""Listeners with TLS and SASL for a cluster of the tests', and what clients need for them.

Certificates are made on the fly, by an authority that lives in a directory of the test's own.
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

#: Properties of a cluster that heeds ACLs. What has none is for everyone, and so is everything for
#: who does not log in, as the brokers and the harness itself don't.
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
    """As Kafka has it: the key, in PKCS #8, and the chain."""
    authority: Path
    """Whom to trust so that it is trusted."""

    def locked(self, password: str) -> Path:
        """The key and the chain in another file, in which the key is encrypted."""
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
    """One who makes certificates, in a directory."""

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
            hosts: the names and addresses that it is for; none for 127.0.0.1 and localhost.
            common_name: by which a broker knows a client.
            not_after: until when it is good; None for longer than the tests run.
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
        certificate: what the brokers show.
        clients: who makes the certificates that clients have to show; None if they need none. A
            client is the user ``User:<common name>``.
    """
    return Listener(name, "SSL", _tls(certificate, clients))


def sasl_listener(
    name: str,
    mechanisms: Sequence[str],
    *,
    users: Mapping[str, str] | None = None,
    certificate: Certificate | None = None,
) -> Listener:
    """A listener where clients log in.

    Args:
        name: its name.
        mechanisms: any of PLAIN, SCRAM-SHA-256, SCRAM-SHA-512 and OAUTHBEARER. The users of SCRAM
            are made with ``cluster.create_user()``, and whoever makes an unsecured token is
            let in with it.
        users: the users of PLAIN and their passwords.
        certificate: what the brokers show; None for no TLS.
    """
    properties: dict[str, object] = {"sasl.enabled.mechanisms": ",".join(mechanisms)}
    for mechanism in mechanisms:
        settings = _mechanism(mechanism, users or {})
        properties |= {f"{mechanism.lower()}.{key}": value for key, value in settings.items()}
    if certificate is None:
        return Listener(name, "SASL_PLAINTEXT", properties)
    return Listener(name, "SASL_SSL", {**properties, **_tls(certificate, None)})


def trusting(authority: Authority, shown: Certificate | None = None) -> dict[str, Any]:
    """Properties of a client with TLS that trusts this authority, and shows a certificate."""
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
    """A token for OAUTHBEARER that nobody signed: it says who one is, and until when."""
    now = time.time()
    # Issued a while ago, so that one can have run out already.
    claims = {"sub": user, "iat": now - 7200.0, "exp": now + valid_for}
    return jwt(claims)


def jwt(claims: Mapping[str, object]) -> str:
    """A token with these claims, which nobody signed (RFC 7519)."""
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

"""TLS and SASL settings under the names of Kafka, librdkafka or kafka-python, and their checks.

This module makes the checks that are the same for each client library. ``Abilities`` describes what
a library supports. The package of each driver then makes the library's configuration.

No message contains a value that may be secret.
"""

from __future__ import annotations

import base64
import contextvars
import dataclasses
import importlib.util
import json
import math
import os
import re
import ssl
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, Final, cast
from urllib.parse import urlsplit

from ..._exceptions import SettingsError
from ..._kafka_names import canonical_name
from ..._shown import raised_text, shown
from ._jaas import credentials
from ._tls import CONVERT, FILES, Given, truth

__all__ = [
    "KAFKA_PYTHON",
    "MEANINGS",
    "NAMES",
    "NO_TOKENS",
    "REFUSED",
    "SCRAM",
    "Abilities",
    "NoToken",
    "Security",
    "TokenSource",
    "encodes",
    "parse_security",
]

#: The meaning of each name. Dots and underscores are equivalent.
MEANINGS: Final = {
    "security_protocol": "protocol",
    # Kafka's ssl.*, then librdkafka's, then kafka-python's.
    "ssl_truststore_location": "ca",
    "ssl_ca_location": "ca",
    "ssl_cafile": "ca",
    "ssl_truststore_certificates": "ca_pem",
    "ssl_ca_pem": "ca_pem",
    "ssl_truststore_type": "ca_type",
    "ssl_keystore_location": "chain",
    "ssl_certificate_location": "chain",
    "ssl_certfile": "chain",
    "ssl_key_location": "key",
    "ssl_keyfile": "key",
    "ssl_keystore_certificate_chain": "chain_pem",
    "ssl_certificate_pem": "chain_pem",
    "ssl_keystore_key": "key_pem",
    "ssl_key_pem": "key_pem",
    "ssl_keystore_type": "chain_type",
    "ssl_key_password": "password",
    "ssl_password": "password",
    "ssl_crl_location": "crl",
    "ssl_crlfile": "crl",
    "ssl_endpoint_identification_algorithm": "host_names",
    "ssl_check_hostname": "host_names",
    "enable_ssl_certificate_verification": "verify",
    "ssl_enabled_protocols": "versions",
    "ssl_protocol": "version",
    "ssl_cipher_suites": "ciphers",
    "ssl_ciphers": "ciphers",
    "ssl_context": "context",
    "sasl_mechanism": "mechanism",
    "sasl_mechanisms": "mechanism",
    "sasl_jaas_config": "jaas",
    "sasl_username": "user",
    "sasl_plain_username": "user",
    "sasl_password": "user_password",
    "sasl_plain_password": "user_password",
    "sasl_oauth_token_provider": "tokens",
    "sasl_kerberos_name": "kerberos_name",
    "sasl_kerberos_service_name": "kerberos_service_name",
    "sasl_kerberos_domain_name": "kerberos_domain_name",
    "proxy_url": "proxy",
    "socks5_proxy": "proxy",
}

#: All known names, in canonical spelling.
NAMES: Final = frozenset(MEANINGS)

_PEM_ONLY: Final = f"only stores in PEM format are supported, without a password; {CONVERT}"
NO_TOKENS: Final = "set 'sasl_oauth_token_provider' to an object whose token() returns a token"
_JAVA_CLASS: Final = "it names a class of Java"

#: Names that are not supported, and what to do instead.
REFUSED: Final = {
    "ssl_truststore_password": _PEM_ONLY,
    "ssl_keystore_password": f"{_PEM_ONLY}. The password of a key is 'ssl.key.password'",
    "ssl_engine_factory_class": f"{_JAVA_CLASS}; make an ssl.SSLContext and set 'ssl_context'",
    "ssl_provider": _JAVA_CLASS,
    "sasl_client_callback_handler_class": _JAVA_CLASS,
    "sasl_login_callback_handler_class": f"{_JAVA_CLASS}; for OAUTHBEARER, {NO_TOKENS}",
    "sasl_login_class": _JAVA_CLASS,
    "sasl_oauthbearer_token_endpoint_url": f"no token is fetched here; {NO_TOKENS}",
    "sasl_oauthbearer_config": NO_TOKENS,
    "sasl_oauthbearer_method": NO_TOKENS,
}

_PROTOCOLS: Final = ("PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL")
SCRAM: Final = ("SCRAM-SHA-256", "SCRAM-SHA-512")
#: The settings of each mechanism, and whether they are required.
_MECHANISMS: Final[dict[str, dict[str, bool]]] = {
    "PLAIN": {"user": True, "user_password": True},
    "SCRAM-SHA-256": {"user": True, "user_password": True},
    "SCRAM-SHA-512": {"user": True, "user_password": True},
    "OAUTHBEARER": {"tokens": True},
    "GSSAPI": {
        "kerberos_name": False,
        "kerberos_service_name": False,
        "kerberos_domain_name": False,
    },
    "AWS_MSK_IAM": {},
}
#: The package that kafka-python imports for a mechanism when it connects.
_NEEDED: Final = {"GSSAPI": "sspi" if os.name == "nt" else "gssapi", "AWS_MSK_IAM": "botocore"}
_HOW_TO_SET: Final = {
    "user": "'sasl.username', or 'sasl.jaas.config'",
    "user_password": "'sasl.password', or 'sasl.jaas.config'",
    "tokens": "'sasl_oauth_token_provider'",
}
_TEXTS: Final = ("ca_pem", "chain_pem", "key_pem", "ciphers", "user", "user_password")
_PROXIES: Final = ("http", "socks5", "socks5h")


@dataclasses.dataclass(frozen=True, slots=True)
class Abilities:
    """The security settings that a client library supports."""

    #: The meaning of each name that it knows, in canonical spelling.
    meanings: Mapping[str, str]
    #: Names that it does not support, and what to do instead.
    refused: Mapping[str, str]
    #: The settings of each mechanism, and whether they are required.
    mechanisms: Mapping[str, Mapping[str, bool]]
    #: Mechanisms that it does not support, and what to do instead.
    lacking: Mapping[str, str]
    #: The package that it needs for a mechanism.
    packages: Mapping[str, str]

    @property
    def sasl(self) -> frozenset[str]:
        """The meanings of settings for a login."""
        return frozenset({"mechanism", "jaas"}.union(*self.mechanisms.values()))


KAFKA_PYTHON: Final = Abilities(MEANINGS, REFUSED, _MECHANISMS, {}, _NEEDED)


@dataclasses.dataclass(frozen=True, slots=True)
class Security:
    """The user's security settings, which do not contradict each other."""

    given: Given
    protocol: str
    #: Empty if there is no login.
    mechanism: str

    @property
    def encrypts(self) -> bool:
        """Whether connections are encrypted."""
        return self.protocol.endswith("SSL")

    def tokens(self, seconds: float) -> TokenSource | None:
        """Return the source of the tokens, if the login needs them.

        Args:
            seconds: how long the provider may take for a token.
        """
        return TokenSource(self.given.get("tokens"), seconds) if "tokens" in self.given else None


def parse_security(
    properties: Mapping[str, Any], abilities: Abilities
) -> tuple[Security, dict[str, Any]]:
    """Split properties into security settings, which are checked, and others. Reads no file.

    Args:
        properties: all properties of the user.
        abilities: what the client library supports.

    Raises:
        SettingsError: a setting is wrong, missing or without effect, contradicts another, or is not
            supported by this library.
    """
    given, others = _sorted(properties, abilities)
    _check_types(given)
    protocol = "PLAINTEXT"
    if "protocol" in given:
        value = given.get("protocol")
        protocol = value.upper() if isinstance(value, str) else ""
        if protocol not in _PROTOCOLS:
            # kafka-python treats an unknown value as PLAINTEXT.
            raise given.wrong(
                "protocol", f"must be one of {', '.join(_PROTOCOLS)}, not {shown(value)}"
            )
    encrypts, logs_in = protocol.endswith("SSL"), protocol.startswith("SASL")
    said = protocol if "protocol" in given else f"{protocol}, which is the default"
    for meaning in given.values:
        if meaning in {"protocol", "proxy"}:
            continue
        if meaning in abilities.sasl and not logs_in:
            raise given.wrong(
                meaning,
                f"has no effect, because 'security.protocol' is {said}: set it to SASL_SSL, "
                "or leave this out",
            )
        if meaning not in abilities.sasl and not encrypts:
            raise given.wrong(
                meaning,
                f"has no effect, because 'security.protocol' is {said}, and nothing is encrypted: "
                f"set it to {'SASL_SSL' if logs_in else 'SSL'}, or leave this out",
            )
    if "proxy" in given:
        _check_proxy(given)
    mechanism = _mechanism(given, protocol, abilities) if logs_in else ""
    if encrypts:
        _check_tls(given, abilities)
    return Security(given, protocol, mechanism), others


def _sorted(properties: Mapping[str, Any], abilities: Abilities) -> tuple[Given, dict[str, Any]]:
    given = Given({}, {})
    others: dict[str, Any] = {}
    for name, value in properties.items():
        canonical = canonical_name(name)
        if canonical in abilities.refused:
            raise SettingsError(
                f"properties: {name!r} can't be set: {abilities.refused[canonical]}"
            )
        meaning = abilities.meanings.get(canonical)
        if meaning is None:
            others[name] = value
        elif value is not None:  # to kafka-python, None is the default
            if meaning in given:
                twin = given.names[meaning]
                raise SettingsError(f"properties: {twin!r} and {name!r} are one setting; give one")
            given.values[meaning] = value
            given.names[meaning] = name
    return given, others


def _check_types(given: Given) -> None:
    for meaning in FILES:
        if meaning in given:
            value: object = given.get(meaning)
            path = cast(
                "object", os.fspath(given.get(meaning)) if hasattr(value, "__fspath__") else value
            )
            if not isinstance(path, str) or not path:
                raise given.wrong(meaning, "must be the path of a file")
            if "-----BEGIN" in path:
                raise given.wrong(meaning, "must be the path of a file, not its content")
            if "\0" in path:
                raise given.wrong(meaning, "must be the path of a file, without NUL characters")
            if not encodes(path, os.fsencode):
                raise given.wrong(meaning, "contains characters that no path can have")
            given.values[meaning] = path
    for meaning in (*_TEXTS, "jaas"):
        if meaning in given:
            text = given.get(meaning)
            if not isinstance(text, str):
                raise given.wrong(meaning, f"must be a str, not {type(text).__name__}")
            if not text:
                raise given.wrong(meaning, "is empty")
    if "password" in given and not isinstance(given.get("password"), (str, bytes)):
        raise given.wrong("password", "must be a str")


def _check_proxy(given: Given) -> None:
    # If kafka-python cannot parse it, its error contains the URL with the password.
    problem = ""
    value = given.get("proxy")
    try:
        parts = urlsplit(value if isinstance(value, str) else "")
        if parts.scheme not in _PROXIES or not parts.hostname or not parts.port:
            problem = f"must be SCHEME://host:port, with a scheme of {', '.join(_PROXIES)}"
    except ValueError:
        problem = "must be SCHEME://host:port"
    if problem:
        raise given.wrong("proxy", problem)


# --- SASL ----------------------------------------------------------------------------------------


class NoToken(Exception):
    """The user's token provider returned no valid token. The cause is its exception, if any."""


class TokenSource:
    """Gets tokens for OAUTHBEARER from the user's object, and checks them.

    kafka-python would send ``Bearer None``, and would not refuse a token that contains a line end.
    An error that is not an ``Exception`` would end its thread, and a call that hangs would stop the
    client. So a separate thread calls the object, in the context in which the driver was made.

    Args:
        provider: the user's object.
        seconds: how long a call may take.
    """

    def __init__(self, provider: Any, seconds: float) -> None:
        self._provider = provider
        self._seconds = seconds
        self._context = contextvars.copy_context()
        #: The thread of the last call. The next call starts after it has ended.
        self._thread: threading.Thread | None = None
        #: When a call must end, even if it may take longer; in seconds of :func:`time.monotonic`.
        self.until = math.inf

    def token(self) -> str:
        """Return a token.

        Raises:
            NoToken: the provider failed, or returned something else.
        """
        token = self._ask("token", self._provider.token)
        if not isinstance(token, str) or not re.fullmatch(r"[\x21-\x7e]+", token):
            raise NoToken(
                "token() of sasl_oauth_token_provider must return a str of printable ASCII "
                "characters without spaces"
            )
        return token

    def extensions(self) -> dict[str, str]:
        """Return the SASL extensions of the token (RFC 7628).

        Raises:
            NoToken: the provider failed, or returned something else.
        """
        given = self._ask("extensions", getattr(self._provider, "extensions", dict[str, str]))
        if not isinstance(given, Mapping) or not all(
            map(_is_extension, cast("Mapping[object, object]", given).items())
        ):
            raise NoToken(
                "extensions() of sasl_oauth_token_provider must return a dict: names of letters, "
                "except 'auth', with values of printable ASCII characters"
            )
        return dict(cast("Mapping[str, str]", given))

    def _ask(self, name: str, function: Callable[[], object]) -> object:
        answers: list[object] = []
        errors: list[BaseException] = []

        def ask() -> None:
            try:
                answers.append(self._context.copy().run(function))
            except BaseException as error:  # noqa: BLE001  # raised again below
                errors.append(error)

        what = f"{name}() of sasl_oauth_token_provider"
        if not self._has_returned():
            raise NoToken(f"an earlier {what} has not returned")
        thread = threading.Thread(target=ask, name="anyio-sendproducer-token", daemon=True)
        try:
            thread.start()
        except RuntimeError as error:
            raise NoToken(f"no thread could be started for {what}: {error}") from error
        self._thread = thread
        if not self._has_returned():
            is_cut = self.until < math.inf
            limit = "in time" if is_cut else f"within {self._seconds:g} s (start_timeout)"
            raise NoToken(f"{what} has not returned {limit}")
        if errors:
            raise NoToken(f"{what} {raised_text(errors[0])}") from errors[0]
        return answers[0]

    def _has_returned(self) -> bool:
        thread = self._thread
        if thread is None:
            return True
        thread.join(max(0.001, min(self._seconds, self.until - time.monotonic())))
        return not thread.is_alive()


def _is_extension(item: tuple[object, object]) -> bool:
    name, value = item
    return (
        isinstance(name, str)
        and isinstance(value, str)
        and name != "auth"
        and re.fullmatch(r"[A-Za-z]+", name) is not None
        and re.fullmatch(r"[\x20-\x7e\t\r\n]*", value) is not None
    )


def expires_at(token: str) -> float | None:
    """Return when a JWT expires (RFC 7519, ``exp``), in seconds since 1970.

    Returns None for any other token.
    """
    try:
        payload = token.split(".")[1]
        claims = json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
        seconds = float(claims["exp"])
    except (ArithmeticError, LookupError, RecursionError, TypeError, ValueError):
        return None
    return seconds if math.isfinite(seconds) else None


def _mechanism(given: Given, protocol: str, abilities: Abilities) -> str:
    mechanism = given.get("mechanism")
    known = abilities.mechanisms
    if mechanism is None:
        raise SettingsError(
            f"properties: 'sasl.mechanism' is missing, which 'security.protocol' {protocol} "
            f"needs: one of {', '.join(known)}"
        )
    if isinstance(mechanism, str) and mechanism in abilities.lacking:
        raise given.wrong("mechanism", f"can't be {mechanism}: {abilities.lacking[mechanism]}")
    if not isinstance(mechanism, str) or mechanism not in known:
        raise given.wrong("mechanism", f"must be one of {', '.join(known)}, not {shown(mechanism)}")
    package = abilities.packages.get(mechanism)
    if package is not None and importlib.util.find_spec(package) is None:
        raise given.wrong("mechanism", f"{mechanism} needs the package {package}, which is missing")
    if mechanism == "AWS_MSK_IAM" and protocol != "SASL_SSL":
        raise given.wrong("mechanism", f"{mechanism} needs 'security.protocol' SASL_SSL")
    wanted = known[mechanism]
    _unfold_jaas(given, mechanism)
    for meaning in given.values:
        if meaning in abilities.sasl - {"mechanism"} and meaning not in wanted:
            raise given.wrong(meaning, f"has no effect with 'sasl.mechanism' {mechanism}")
    for meaning, needed in wanted.items():
        if needed and meaning not in given:
            raise SettingsError(
                f"properties: 'sasl.mechanism' {mechanism} needs {_HOW_TO_SET[meaning]}"
            )
    if "user" in wanted:
        for meaning in ("user", "user_password"):
            text = str(given.get(meaning))
            if "\0" in text:
                raise given.wrong(meaning, "contains a NUL character, which SASL does not allow")
            if not encodes(text):
                raise given.wrong(meaning, "contains characters that cannot be encoded as UTF-8")
    if "tokens" in wanted and not callable(getattr(given.get("tokens"), "token", None)):
        raise given.wrong("tokens", "must be an object with a method token() that returns a str")
    return mechanism


def encodes(text: str, encode: Callable[[str], bytes] = str.encode) -> bool:
    """Return whether a text can be encoded, by default as UTF-8: it has no lone surrogates."""
    try:
        encode(text)
    except UnicodeEncodeError:
        return False
    return True


def _unfold_jaas(given: Given, mechanism: str) -> None:
    if "jaas" not in given:
        return
    for meaning in ("user", "user_password"):
        if meaning in given:
            raise SettingsError(
                f"properties: {given.names['jaas']!r} and {given.names[meaning]!r} are one "
                "setting; give one"
            )
    name = given.names.pop("jaas")
    mechanisms, user, password = credentials(name, given.values.pop("jaas"))
    if mechanism not in mechanisms:
        raise SettingsError(
            f"properties: the login module of {name!r} is for {' or '.join(mechanisms)}, but "
            f"'sasl.mechanism' is {mechanism}"
        )
    given.values.update(user=user, user_password=password)
    given.names.update(user=name, user_password=name)


# --- TLS -----------------------------------------------------------------------------------------


def _check_tls(given: Given, abilities: Abilities) -> None:
    if "context" in given:
        for meaning in given.values:
            if meaning not in abilities.sasl | {"context", "protocol", "proxy"}:
                raise given.wrong(
                    meaning,
                    f"has no effect beside {given.names['context']!r}: set it up in the context",
                )
        context = given.get("context")
        if not isinstance(context, ssl.SSLContext):
            raise given.wrong("context", f"must be an ssl.SSLContext, not {type(context).__name__}")
        if context.protocol == ssl.PROTOCOL_TLS_SERVER:
            raise given.wrong("context", "is for servers: make it with PROTOCOL_TLS_CLIENT")
        return
    for store, pem in (("ca", "ca_pem"), ("chain", "chain_pem"), ("key", "key_pem")):
        if store in given and pem in given:
            raise SettingsError(
                f"properties: {given.names[store]!r} and {given.names[pem]!r} contradict each "
                "other; give one"
            )
    for kind in ("ca_type", "chain_type"):
        if kind in given and str(given.get(kind)).upper() != "PEM":
            raise given.wrong(kind, f"must be PEM. If the store has another format, {CONVERT}")
    for key, chains in (("key", ("chain",)), ("key_pem", ("chain_pem",))):
        if key in given and not any(chain in given for chain in chains):
            raise given.wrong(key, "is a key without its certificate")
    if "chain_pem" in given and "key_pem" not in given:
        raise given.wrong("chain_pem", "is a certificate without its key")
    if "password" in given and not {"chain", "chain_pem"} & given.values.keys():
        raise given.wrong("password", "is the password of a key, but no key is set")
    if given.get("verify") is not None and not truth(given, "verify"):
        for meaning in ("ca", "ca_pem", "crl"):
            if meaning in given:
                raise given.wrong(
                    meaning,
                    f"has no effect, because {given.names['verify']!r} turns all checking of "
                    "certificates off",
                )

"""TLS: checks settings and files, makes the context of all connections, and explains failures.

An error that would make each connection fail, for example a wrong password of a key, is raised here
once, before the first connection.
"""

from __future__ import annotations

import codecs
import contextlib
import dataclasses
import logging
import os
import re
import ssl
import stat
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from ..._exceptions import SettingsError
from ..._kafka_names import canonical_name
from ..._settings_sources import truth_of
from ..._shown import one_line

__all__ = [
    "CONVERT",
    "FILES",
    "Given",
    "ReloadingSSLContext",
    "checks_host_names",
    "cipher_names",
    "pem_text",
    "tls_refusal",
    "tls_versions",
    "truth",
    "verifies",
]

#: How to convert a store that is not in PEM format.
CONVERT: Final = (
    "convert it to PEM: keytool -importkeystore -srckeystore STORE -destkeystore store.p12 "
    "-deststoretype PKCS12, then openssl pkcs12 -in store.p12 -out store.pem"
)
#: The meanings of settings that are paths of files.
FILES: Final = ("ca", "chain", "key", "crl")
#: The largest size of a file, in bytes. The certificates of all public authorities take a fifth.
_LARGEST: Final = 1024 * 1024
_VERSIONS: Final = {"TLSv1.2": ssl.TLSVersion.TLSv1_2, "TLSv1.3": ssl.TLSVersion.TLSv1_3}

_log = logging.getLogger("anyio_sendproducer.security")


@dataclasses.dataclass(frozen=True, slots=True)
class Given:
    """The security settings by their meanings, and the names that the user gave them."""

    values: dict[str, Any]
    names: dict[str, str]

    def __contains__(self, meaning: str) -> bool:
        return meaning in self.values

    def get(self, meaning: str) -> Any:
        """Return the value, or None."""
        return self.values.get(meaning)

    def wrong(self, meaning: str, what: str) -> SettingsError:
        """Make the error of a setting."""
        return SettingsError(f"properties: {self.names[meaning]!r} {what}")


def truth(given: Given, meaning: str) -> bool:
    """Return the boolean value of a setting.

    Raises:
        SettingsError: it is not a boolean.
    """
    value = given.get(meaning)
    if isinstance(value, str):
        value = truth_of(value)
    if not isinstance(value, bool):
        raise given.wrong(meaning, "must be true or false")
    return value


class ReloadingSSLContext:
    """Stands in for an ``ssl.SSLContext`` of kafka-python, and reloads its files.

    If a file has changed, as the files of short-lived certificates do, the next connection uses a
    new context. If the new files cannot be used, the old context stays.

    Raises:
        SettingsError: a setting is wrong, or a file cannot be used.
    """

    def __init__(self, given: Given) -> None:
        self._given = given
        self._minimum, self._maximum = tls_versions(given)
        self._verify = verifies(given)
        self._check_host_names = checks_host_names(given)
        self._stamps = self._look()
        self._context = self._build()

    def wrap_socket(self, sock: Any, **options: Any) -> ssl.SSLSocket:
        """Wrap a socket; kafka-python calls this for each connection."""
        return self.context().wrap_socket(sock, **options)

    def context(self) -> ssl.SSLContext:
        """Return the current context, after making a new one if a file has changed."""
        stamps = self._look()
        if stamps != self._stamps:
            try:
                self._context = self._build()
                self._stamps = stamps
            except SettingsError as error:
                _log.warning("the files that were read before stay in use: %s", error)
        return self._context

    def _look(self) -> list[object]:
        stamps: list[object] = []
        for meaning in FILES:
            if meaning in self._given:
                with contextlib.suppress(OSError, ValueError):
                    found = Path(self._given.get(meaning)).stat()
                    stamps.append((meaning, found.st_mtime_ns, found.st_size, found.st_ino))
        return stamps

    def _build(self) -> ssl.SSLContext:
        given = self._given
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.minimum_version = self._minimum
        context.maximum_version = self._maximum
        context.check_hostname = self._check_host_names
        if not self._verify:
            context.verify_mode = ssl.CERT_NONE
        if "ciphers" in given:
            self._set_ciphers(context)
        if "ca" in given:
            path = given.get("ca")
            # Unlike Path.is_dir(), this is False for a text that cannot be a path.
            if os.path.isdir(path):  # noqa: PTH112
                _check_directory(given, path)
                context.load_verify_locations(capath=path)
            else:
                self._trust(context, "ca", "CERTIFICATE", _pem_file(given, "ca"))
        elif "ca_pem" in given:
            self._trust(context, "ca_pem", "CERTIFICATE", pem_text(given, "ca_pem"))
        else:
            context.load_default_certs()
        if "crl" in given:
            # If kafka-python 3.0.12 itself gets this setting, each connection fails.
            self._trust(context, "crl", "X509 CRL", _pem_file(given, "crl"))
            context.verify_flags |= ssl.VERIFY_CRL_CHECK_LEAF
        if "chain" in given:
            self._show(context)
        elif "chain_pem" in given:
            text = pem_text(given, "key_pem") + pem_text(given, "chain_pem")
            # Python's ssl reads keys only from files. Only this user can read a file of mkstemp().
            with tempfile.TemporaryDirectory(prefix="anyio-sendproducer-") as directory:
                handle, path = tempfile.mkstemp(dir=directory)
                with os.fdopen(handle, "wb") as file:
                    file.write(text.encode("ascii", "replace"))
                self._load_chain(context, "key_pem", path, None)
        return context

    def _trust(self, context: ssl.SSLContext, meaning: str, label: str, text: str) -> None:
        if f"-----BEGIN {label}-----" not in text.replace("TRUSTED ", ""):
            raise self._given.wrong(meaning, f"contains no {label}")
        problem = ""
        # Python accepts only ASCII here. The comments of a file may have other characters.
        text = text.encode("ascii", "replace").decode()
        try:
            context.load_verify_locations(cadata=text) if meaning != "crl" else (
                context.load_verify_locations(self._given.get("crl"))
            )
        except (ssl.SSLError, ValueError) as error:
            problem = _reason(error)
        if problem:
            raise self._given.wrong(meaning, f"can't be read: {problem}")

    def _show(self, context: ssl.SSLContext) -> None:
        given = self._given
        chain = _pem_file(given, "chain")
        if "-----BEGIN CERTIFICATE-----" not in chain:
            raise given.wrong("chain", "contains no CERTIFICATE")
        if "key" in given:
            if "PRIVATE KEY-----" not in _pem_file(given, "key"):
                raise given.wrong("key", "contains no PRIVATE KEY")
        elif "PRIVATE KEY-----" not in chain:
            raise given.wrong(
                "chain",
                "contains no PRIVATE KEY: put the key there too, or name its file in "
                "'ssl.key.location'",
            )
        self._load_chain(context, "key" if "key" in given else "chain", given.get("chain"), "key")

    def _load_chain(
        self, context: ssl.SSLContext, meaning: str, chain: str, key: str | None
    ) -> None:
        given = self._given
        asked: list[bool] = []

        def password() -> str | bytes:
            # Without this function OpenSSL would prompt at the terminal, and wait.
            asked.append(True)
            known: str | bytes = given.get("password") or ""
            return known

        problem = ""
        try:
            context.load_cert_chain(chain, given.get(key) if key else None, password)
        except (ssl.SSLError, ValueError, OSError) as error:
            problem = _reason(error)
        if not problem:
            return
        if asked:
            if "password" in given:
                raise given.wrong("password", "is not the password of the key")
            raise given.wrong(meaning, "has a key that is encrypted: set 'ssl.key.password'")
        if "VALUES_MISMATCH" in problem:
            raise given.wrong(meaning, "has a key that does not belong to the certificate")
        raise given.wrong(meaning, f"can't be read: {problem}")

    def _set_ciphers(self, context: ssl.SSLContext) -> None:
        names, newer = cipher_names(self._given)
        if newer:
            raise self._given.wrong(
                "ciphers",
                "names a suite of TLS 1.3, which Python cannot choose: name only suites of TLS "
                "1.2. To use no others, set 'ssl.enabled.protocols' to TLSv1.2",
            )
        problem = ""
        try:
            context.set_ciphers(":".join(names))
        except (ssl.SSLError, ValueError) as error:
            problem = _reason(error)
        if problem:
            raise self._given.wrong("ciphers", "names no cipher suite that this OpenSSL has")


def _reason(error: Exception) -> str:
    """Return the message of OpenSSL or the system, without a file's name or content."""
    if isinstance(error, ssl.SSLError):
        return _openssl_reason(error) or "OpenSSL cannot parse it"
    if isinstance(error, OSError):
        return os.strerror(error.errno) if error.errno else type(error).__name__
    return "OpenSSL cannot parse it"


def _openssl_reason(error: ssl.SSLError) -> str:
    # Errors that Python itself raises have no such attribute.
    return getattr(error, "reason", None) or ""


def cipher_names(given: Given) -> tuple[list[str], bool]:
    """Return the cipher suites by OpenSSL's names, and whether one of them is for TLS 1.3."""
    names = [name for name in re.split(r"[,:\s]+", given.get("ciphers")) if name]
    newer = any(name.startswith("TLS_") and "_WITH_" not in name for name in names)
    return list(map(_openssl_name, names)), newer


def _openssl_name(name: str) -> str:
    """Return OpenSSL's name for a Java name such as ``TLS_ECDHE_RSA_WITH_AES_128_...``."""
    found = re.fullmatch(r"TLS_(.+)_WITH_(.+)", name)
    if found is None:
        return name
    exchange, cipher = found.groups()
    cipher = re.sub(r"(AES|ARIA|CAMELLIA)_(\d+)", r"\1\2", cipher)
    # OpenSSL's names omit the usual parts.
    cipher = cipher.replace("_CBC", "").replace("CHACHA20_POLY1305_SHA256", "CHACHA20-POLY1305")
    exchange = "" if exchange == "RSA" else f"{exchange}-"
    return (exchange + cipher).replace("_", "-")


def tls_versions(given: Given) -> tuple[ssl.TLSVersion, ssl.TLSVersion]:
    """Return the lowest and the highest allowed version of TLS.

    Raises:
        SettingsError: a value is not allowed, or the two settings contradict each other.
    """
    chosen = list(_VERSIONS)
    if "versions" in given:
        chosen = [one.strip() for one in str(given.get("versions")).split(",") if one.strip()]
        if not chosen or any(one not in _VERSIONS for one in chosen):
            raise given.wrong("versions", "must be TLSv1.2, TLSv1.3 or both, separated by a comma")
    if "version" in given:
        version = given.get("version")
        if version not in ("TLS", *_VERSIONS):
            raise given.wrong("version", "must be TLS, TLSv1.2 or TLSv1.3")
        if version in _VERSIONS:
            if version not in chosen:
                raise given.wrong("version", f"is not among {given.names['versions']!r}")
            if "versions" not in given:
                chosen = [one for one in chosen if one >= version]
    allowed = [_VERSIONS[one] for one in chosen]
    return min(allowed), max(allowed)


def verifies(given: Given) -> bool:
    """Return whether the broker's certificate is verified.

    Raises:
        SettingsError: the setting is not a boolean.
    """
    return "verify" not in given or truth(given, "verify")


def checks_host_names(given: Given) -> bool:
    """Return whether the broker's certificate must match its host name.

    Raises:
        SettingsError: the value of a setting is not allowed.
    """
    if not verifies(given):
        return False
    if "host_names" not in given:
        return True
    if canonical_name(given.names["host_names"]) == "ssl_check_hostname":
        return truth(given, "host_names")
    value = given.get("host_names")
    if not isinstance(value, str) or value.lower() not in {"https", "", "none"}:
        raise given.wrong("host_names", "must be https, or an empty str to check no host names")
    return value.lower() == "https"


def _pem_file(given: Given, meaning: str) -> str:
    """Read a file in PEM format.

    Raises:
        SettingsError: it cannot be read, is too large, or has another format.
    """
    problem = ""
    content: bytes | None = b""
    try:
        content = _read_regular(given.get(meaning))
    except FileNotFoundError:
        problem = "names a file that does not exist"
    except OSError as error:
        problem = f"names a file that can't be read: {_reason(error)}"
    if content is None:
        problem = "must name a regular file, not a directory, a FIFO or a device"
        content = b""
    elif len(content) > _LARGEST:
        problem = "names a file of more than 1 MiB"
    elif not problem and b"-----BEGIN " not in content:
        problem = "names a file that is not in PEM format"
        if content[:4] == b"\xfe\xed\xfe\xed":
            problem += f" but in Java's, JKS; {CONVERT}"
        elif content[:1] == b"\x30":
            problem += f" but in a binary one. If it is PKCS #12, {CONVERT}"
    if problem:
        raise given.wrong(meaning, problem)
    # OpenSSL would skip a certificate after a byte order mark, without an error.
    return content.replace(codecs.BOM_UTF8, b"").decode("ascii", "replace")


def _check_directory(given: Given, path: str) -> None:
    """Refuse a directory with a FIFO or a device among its certificates.

    OpenSSL opens the files of such a directory during a handshake, and would wait for the writer of
    a FIFO. It looks for these names: the hash of a subject, a dot and a number. If the file is a
    revocation list, an ``r`` precedes the number.

    Raises:
        SettingsError: the directory has such an entry, or cannot be read.
    """
    try:
        with os.scandir(path) as entries:
            for entry in entries:
                if re.fullmatch(r"[0-9a-f]{8}\.r?[0-9]+", entry.name) and not entry.is_file():
                    problem = f"names a directory whose {entry.name} is not a regular file"
                    raise given.wrong("ca", problem)
    except OSError as error:
        problem = f"names a directory that can't be read: {_reason(error)}"
        raise given.wrong("ca", problem) from None


def _read_regular(path: str) -> bytes | None:
    """Return the content of a file, but at most one byte more than the largest size allowed.

    Returns None for anything but a regular file: to open a FIFO would wait for its writer, and
    /dev/zero never ends.

    Raises:
        OSError: the file cannot be read.
    """
    handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    try:
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            return None
        with open(handle, "rb", closefd=False) as file:
            return file.read(_LARGEST + 1)
    finally:
        os.close(handle)


_BLOCK: Final = re.compile(r"-----BEGIN ([A-Z0-9 ]+)-----(.*?)-----END \1-----", re.DOTALL)


def pem_text(given: Given, meaning: str) -> str:
    """Return a text in PEM format, divided into lines. In a properties file, it may be on one line.

    Raises:
        SettingsError: the text is not in PEM format.
    """
    blocks: list[str] = []
    for label, body in _BLOCK.findall(given.get(meaning)):
        if ":" in body:  # headers of an older kind of encryption, which need their lines
            lines = body.strip()
        else:
            bare = "".join(body.split())
            lines = "\n".join(bare[at : at + 64] for at in range(0, len(bare), 64))
        blocks.append(f"-----BEGIN {label}-----\n{lines}\n-----END {label}-----\n")
    if not blocks:
        raise given.wrong(meaning, "must be text in PEM format, from -----BEGIN to -----END")
    return "".join(blocks)


# --- why a connection failed ----------------------------------------------------------------------

#: Our words for OpenSSL's X509_V_ERR_* about the broker's certificate.
_VERDICTS: Final[Mapping[int, str]] = {
    9: "is not valid yet",
    10: "has expired",
    18: "is not trusted: it is self-signed",
    19: "is not trusted: its issuer is not a trusted certificate authority",
    20: "is not trusted: its issuer is not a trusted certificate authority",
    21: "is not trusted: its issuer is not a trusted certificate authority",
    23: "was revoked",
    62: "is for another host name",
    64: "is for another address",
}
#: OpenSSL's names for the TLS alerts by which a broker refuses a client's certificate.
_ALERTS: Final = re.compile(r"(SSLV3|TLSV1|TLSV13)_ALERT_(.+)")

#: OpenSSL's reasons for a failed handshake if the broker uses no TLS, or another version.
_NOT_THIS_TLS: Final = frozenset(
    {
        "WRONG_VERSION_NUMBER",
        "UNSUPPORTED_PROTOCOL",
        "NO_PROTOCOLS_AVAILABLE",
        # Since OpenSSL 3.2, instead of WRONG_VERSION_NUMBER.
        "RECORD_LAYER_FAILURE",
    }
)


def tls_refusal(error: BaseException) -> str | None:
    """Return why TLS failed, if another attempt cannot help; otherwise None."""
    seen: set[int] = set()
    below: BaseException | None = error
    while below is not None and id(below) not in seen:
        seen.add(id(below))
        if isinstance(below, ssl.SSLCertVerificationError):
            verdict = _VERDICTS.get(below.verify_code, "is not accepted")
            return f"its certificate {verdict} ({one_line(below.verify_message)})"
        if isinstance(below, ssl.SSLError):
            reason = _openssl_reason(below)
            alert = _ALERTS.fullmatch(reason)
            if alert is not None:
                said = alert[2].replace("_", " ").lower()
                return (
                    f"it sent the alert '{said}', as if the client's certificate were missing or "
                    "untrusted"
                )
            if reason in _NOT_THIS_TLS:
                return f"it does not use the required TLS: {reason}"
            return None
        # kafka-python puts the error into one of its own.
        packed = next((one for one in below.args if isinstance(one, BaseException)), None)
        below = packed or below.__cause__ or below.__context__
    return None

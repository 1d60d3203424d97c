"""TLS and SASL settings: their translation, the refused ones, and that no error shows a secret."""

from __future__ import annotations

import codecs
import errno
import functools
import importlib.util
import os
import ssl
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
from cryptography.hazmat.primitives import serialization
from hypothesis import example, given
from hypothesis import strategies as st

from anyio_sendproducer import ProducerSettings, SettingsError, _settings
from anyio_sendproducer.drivers.kafka_python import _driver as _kafka_python
from anyio_sendproducer.drivers.kafka_python._config import client_config
from anyio_sendproducer.drivers.librdkafka._config import librdkafka_config
from anyio_sendproducer.drivers.security import _settings as _security
from anyio_sendproducer.drivers.security import _tls
from tests.support.kafka_security import Authority, Certificate, jwt
from tests.support.waiting import PATIENCE, blocking_until

KNOWN: dict[str, Any] = cast("Any", _kafka_python).KafkaProducer.DEFAULT_CONFIG
SECRET = "hunter2-s3cr3t"
PLAIN_MODULE = "org.apache.kafka.common.security.plain.PlainLoginModule"
SCRAM_MODULE = "org.apache.kafka.common.security.scram.ScramLoginModule"
make = functools.partial(
    cast("Callable[..., ProducerSettings]", ProducerSettings), bootstrap_servers="a:1"
)
LOGIN: dict[str, Any] = {
    "security.protocol": "SASL_PLAINTEXT",
    "sasl.mechanism": "PLAIN",
    "sasl.username": "me",
    "sasl.password": SECRET,
}
TLS: dict[str, Any] = {"security.protocol": "SSL"}


def config(properties: dict[str, Any]) -> dict[str, Any]:
    return client_config(make(properties=properties), KNOWN)


def librdkafka(properties: dict[str, Any]) -> dict[str, Any]:
    return librdkafka_config(make(properties=properties)).config


def open_files() -> list[str]:
    """The open files of this process in the directory for temporary files."""
    return [
        name
        for name in map(os.path.realpath, Path("/proc/self/fd").glob("*"))
        if name.endswith(".pem")
    ]


def without(properties: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in properties.items() if name not in names}


def refusal(properties: dict[str, Any]) -> str:
    with pytest.raises(SettingsError) as caught:
        config(properties)
    texts: list[str] = []
    error: BaseException | None = caught.value
    while error is not None:
        texts.append(str(error))
        error = error.__cause__ or error.__context__
    assert SECRET not in "".join(texts)
    assert texts[0].startswith("properties: ")
    return texts[0]


def context_of(properties: dict[str, Any]) -> ssl.SSLContext:
    found = config({**TLS, **properties})["ssl_context"]
    assert isinstance(found, _tls.ReloadingSSLContext)
    return found.context()


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("certificates") / "authority")


@pytest.fixture(scope="module")
def certificate(authority: Authority) -> Certificate:
    return authority.issue()


@pytest.fixture(scope="module")
def locked(certificate: Certificate) -> Path:
    """The certificate with its key, which has a password."""
    return certificate.locked(SECRET)


# --- logging in ----------------------------------------------------------------------------------

SASL = {"security_protocol": "SASL_PLAINTEXT", "sasl_mechanism": "PLAIN"}
AS_ME = {"sasl_plain_username": "me", "sasl_plain_password": SECRET}


@pytest.mark.parametrize(
    "properties",
    [
        LOGIN,
        {**without(LOGIN, "sasl.mechanism"), "sasl.mechanisms": "PLAIN"},
        {**LOGIN, "security.protocol": "sasl_plaintext"},
        {**SASL, **AS_ME},
        {**SASL, "sasl.jaas.config": f'{PLAIN_MODULE} required username="me" password="{SECRET}";'},
        {**SASL, **AS_ME, "ssl_cafile": None, "sasl_oauth_token_provider": None},
    ],
    ids=["kafka", "librdkafka", "lower-case", "kafka-python", "jaas", "none"],
)
def test_all_spellings_of_a_login_are_equivalent(properties: dict[str, Any]) -> None:
    made = config(properties)
    assert {name: made[name] for name in (*SASL, *AS_ME)} == {**SASL, **AS_ME}
    assert made.keys() <= KNOWN.keys()


@pytest.mark.parametrize("mechanism", ["SCRAM-SHA-256", "SCRAM-SHA-512"])
def test_a_user_name_for_scram_is_escaped(mechanism: str) -> None:
    made = config({**LOGIN, "sasl.mechanism": mechanism, "sasl.username": "a,b=c"})
    assert made["sasl_plain_username"] == "a=2Cb=3Dc"


class Tokens:
    def __init__(self, token: object, *extensions: Any) -> None:
        self._token = token
        if extensions:
            self.extensions = lambda: extensions[0]

    def token(self) -> Any:
        return self._token


OAUTH = {"security.protocol": "SASL_PLAINTEXT", "sasl.mechanism": "OAUTHBEARER"}


def test_tokens_come_from_any_object_with_the_methods() -> None:
    made = config({**OAUTH, "sasl_oauth_token_provider": Tokens("t0k3n")})
    source = made["sasl_oauth_token_provider"]
    assert (source.token(), source.extensions()) == ("t0k3n", {})
    extended = _security.TokenSource(Tokens("t0k3n", {"cluster": "c"}), PATIENCE)
    assert extended.extensions() == {"cluster": "c"}
    assert "t0k3n" not in repr(source)


@pytest.mark.parametrize("token", [None, "", b"t0k3n", "two words", "line\nend", "a\1b", 7])
def test_an_invalid_token_is_not_sent(token: object) -> None:
    with pytest.raises(_security.NoToken, match="must return a str") as caught:
        _security.TokenSource(Tokens(token), PATIENCE).token()
    assert repr(token) not in str(caught.value) or token in {"", 7}


@pytest.mark.parametrize(
    "extensions",
    [None, 7, ["a"], {"a": 1}, {1: "a"}, {"": "a"}, {"a b": "c"}, {"auth": "c"}, {"a": "b\1c"}],
    ids=repr,
)
def test_invalid_extensions_are_not_sent(extensions: Any) -> None:
    tokens = Tokens("t0k3n", extensions)
    with pytest.raises(_security.NoToken, match="must return a dict"):
        _security.TokenSource(tokens, PATIENCE).extensions()


class PanicException(BaseException):
    """An exception like those of extensions written in Rust."""


@pytest.mark.parametrize("method", ["token", "extensions"])
@pytest.mark.parametrize(
    "kind", [ValueError, KeyboardInterrupt, SystemExit, GeneratorExit, PanicException]
)
def test_any_exception_of_a_token_provider_means_that_there_is_no_token(
    method: str, kind: type[BaseException]
) -> None:
    def fail() -> Any:
        raise kind("no server")

    tokens = Tokens("t0k3n")
    setattr(tokens, method, fail)
    source = _security.TokenSource(tokens, PATIENCE)
    with pytest.raises(_security.NoToken) as caught:
        getattr(source, method)()
    assert str(caught.value) == (
        f"{method}() of sasl_oauth_token_provider raised {kind.__name__}: no server"
    )
    assert type(caught.value.__cause__) is kind


def test_the_wait_for_a_token_provider_that_hangs_is_bounded() -> None:
    goes_on = threading.Event()
    calls: list[int] = []

    class Hanging:
        def token(self) -> str:
            calls.append(1)
            assert len(calls) > 1 or goes_on.wait(PATIENCE)
            return "t0k3n"

    source = _security.TokenSource(Hanging(), 0)
    with pytest.raises(_security.NoToken, match=r"has not returned within 0 s \(start_timeout\)"):
        source.token()
    # Another call starts no second thread that hangs.
    with pytest.raises(_security.NoToken, match="an earlier token"):
        source.token()
    blocking_until(lambda: calls)
    assert len(calls) == 1
    source._seconds = PATIENCE
    goes_on.set()
    assert source.token() == "t0k3n"


def test_a_token_provider_is_called_again_after_a_thread_could_not_start(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    source = _security.TokenSource(Tokens("t0k3n"), PATIENCE)
    with monkeypatch.context() as context:
        context.setattr(threading.Thread, "start", refuse)
        with pytest.raises(_security.NoToken, match=r"no thread could be started.*can't start new"):
            source.token()
    assert source.token() == "t0k3n"


def test_kerberos_is_passed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", repr)
    made = config(
        {
            "security.protocol": "SASL_PLAINTEXT",
            "sasl.mechanism": "GSSAPI",
            "sasl.kerberos.service.name": "brokers",
        }
    )
    assert made["sasl_kerberos_service_name"] == "brokers"
    made = config({"security.protocol": "SASL_SSL", "sasl.mechanism": "AWS_MSK_IAM"})
    assert made["sasl_mechanism"] == "AWS_MSK_IAM"
    said = refusal({"security.protocol": "SASL_PLAINTEXT", "sasl.mechanism": "AWS_MSK_IAM"})
    assert "'sasl.mechanism' AWS_MSK_IAM needs 'security.protocol' SASL_SSL" in said


def test_the_mechanisms_are_those_of_kafka_python() -> None:
    sasl: Any = importlib.import_module("kafka.net.sasl")
    assert set(_security._MECHANISMS) == set(sasl.SASL_MECHANISMS)


# --- the text for Java's login -------------------------------------------------------------------


def jaas(text: str, mechanism: str = "PLAIN") -> tuple[str, str]:
    made = config({**SASL, "sasl_mechanism": mechanism, "sasl.jaas.config": text})
    return made["sasl_plain_username"], made["sasl_plain_password"]


@pytest.mark.parametrize(
    ("text", "password"),
    [
        ('required username="me" password="two words; = //";', "two words; = //"),
        (r'required username="me" password="a\"b\\c\td";', 'a"b\\c\td'),
        (r'required username="me" password="\101\7\q";', "A\7q"),
        ("required username='me' password='it is \"so\"';", 'it is "so"'),
        ("REQUIRED username=me password=word-1_$.x;", "word-1_$.x"),
        ('required /* why */ username="me" // where\n password="p" ;  ', "p"),
        ('optional\n  username = "me"\n  password = "p"\n;', "p"),
    ],
)
def test_jaas_is_read_as_java_reads_it(text: str, password: str) -> None:
    assert jaas(f"{PLAIN_MODULE} {text}") == ("me", password)
    assert jaas(f"{SCRAM_MODULE} {text}", "SCRAM-SHA-256") == ("me", password)


def quoted(text: str) -> str:
    return '"' + "".join(f"\\{ord(one):03o}" if ord(one) < 256 else one for one in text) + '"'


words = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1)


@given(words, words)
def test_any_user_name_and_password_survive_jaas(user: str, password: str) -> None:
    escaped = [text.replace("\\", "\\\\").replace('"', '\\"') for text in (user, password)]
    if not any(set(text) & set("\r\n") for text in escaped):
        text = f'{PLAIN_MODULE} required username="{escaped[0]}" password="{escaped[1]}";'
        assert jaas(text) == (user, password)
    text = f"{PLAIN_MODULE} required username={quoted(user)} password={quoted(password)};"
    assert jaas(text) == (user, password)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (f'{PLAIN_MODULE} required username="me" password="{SECRET}"', "end with a semicolon"),
        (f'{PLAIN_MODULE} required username="me" password="{SECRET};', "not closed"),
        (f"{PLAIN_MODULE} required username=me password={SECRET}!;", "needs quotes"),
        (f"{PLAIN_MODULE} required username=me password=1{SECRET};", "needs quotes"),
        (f"{PLAIN_MODULE} required username=me password=;", "has no value"),
        (f"{PLAIN_MODULE} required username=me password {SECRET};", 'the form name="value"'),
        (f"{PLAIN_MODULE} required = {SECRET};", 'the form name="value"'),
        (f"{PLAIN_MODULE} username=me password={SECRET};", "'required' must follow"),
        (f"{PLAIN_MODULE}", "'required' must follow"),
        (f'{PLAIN_MODULE} required password="{SECRET}";', "has no username"),
        (f'{PLAIN_MODULE} required username="me" password="";', "has no password"),
        (f'{PLAIN_MODULE} required username="me" user="{SECRET}";', "options other than"),
        (f'{PLAIN_MODULE} required username=a password=b; "{SECRET}"', "more than one"),
        (f'com.example.Mine required password="{SECRET}";', "use org.apache.kafka"),
        ("a.b.OAuthBearerLoginModule required;", "set 'sasl_oauth_token_provider'"),
        ("com.sun.security.auth.module.Krb5LoginModule required;", "'sasl.kerberos.service.name'"),
        (f'"{SECRET}"', "does not start with the name of a login module"),
        ("  ", "does not start with the name of a login module"),
        (f'{SCRAM_MODULE} required username=a password="{SECRET}";', "is for SCRAM-SHA-256 or"),
    ],
)
def test_invalid_jaas_is_refused(text: str, says: str) -> None:
    assert says in refusal({**SASL, "sasl.jaas.config": text})


# --- refused properties --------------------------------------------------------------------------


def pem(label: str, content: str) -> str:
    return f"-----BEGIN {label}-----{content}-----END {label}-----"


REFUSED: list[tuple[dict[str, Any], str]] = [
    # Settings that wrongly suggest encryption or authentication.
    ({"ssl_cafile": SECRET}, "'ssl_cafile' has no effect, because 'security.protocol' is PLAINT"),
    ({"ssl.ca.location": SECRET}, "PLAINTEXT, which is the default, and nothing is encrypted"),
    ({"ssl_check_hostname": True}, "set it to SSL, or leave this out"),
    ({**LOGIN, "ssl.ca.location": SECRET}, "is SASL_PLAINTEXT, and nothing is encrypted: set"),
    ({"security.protocol": "PLAINTEXT", "sasl.password": SECRET}, "set it to SASL_SSL, or"),
    ({"sasl.jaas.config": SECRET}, "'sasl.jaas.config' has no effect"),
    ({**TLS, "sasl.mechanism": "PLAIN"}, "'sasl.mechanism' has no effect, because"),
    ({"security.protocol": 7}, "'security.protocol' must be one of PLAINTEXT, SSL"),
    # An incomplete login.
    ({"security.protocol": "SASL_SSL"}, "'sasl.mechanism' is missing"),
    (without(LOGIN, "sasl.mechanism"), "needs: one of PLAIN, SCRAM-SHA-256"),
    (without(LOGIN, "sasl.password"), "PLAIN needs 'sasl.password', or 'sasl.jaas.config'"),
    (without(LOGIN, "sasl.username"), "PLAIN needs 'sasl.username', or 'sasl.jaas.config'"),
    ({**LOGIN, "sasl.mechanism": "OAUTHBEARER"}, "has no effect with 'sasl.mechanism' OAUTHB"),
    (OAUTH, "OAUTHBEARER needs 'sasl_oauth_token_provider'"),
    ({**OAUTH, "sasl_oauth_token_provider": SECRET}, "must be an object with a method token()"),
    ({**LOGIN, "sasl.mechanism": "plain"}, "must be one of PLAIN, SCRAM-SHA-256, SCRAM"),
    ({**LOGIN, "sasl.mechanism": ["PLAIN"]}, "'sasl.mechanism' must be one of"),
    ({**LOGIN, "sasl.kerberos.service.name": SECRET}, "has no effect with 'sasl.mechanism' PL"),
    ({**LOGIN, "sasl.password": ""}, "'sasl.password' is empty"),
    ({**LOGIN, "sasl.password": b"bytes"}, "'sasl.password' must be a str, not bytes"),
    ({**LOGIN, "sasl.password": f"{SECRET}\0"}, "'sasl.password' contains a NUL character"),
    (
        {**LOGIN, "sasl.password": f"{SECRET}\ud800"},
        "'sasl.password' contains characters that",
    ),
    # Two spellings.
    ({**LOGIN, "sasl_plain_password": SECRET}, "'sasl.password' and 'sasl_plain_password' are"),
    ({**LOGIN, "sasl.mechanisms": "PLAIN"}, "'sasl.mechanism' and 'sasl.mechanisms' are one"),
    ({**LOGIN, "sasl.jaas.config": SECRET}, "'sasl.jaas.config' and 'sasl.username' are one"),
    ({**TLS, "ssl_cafile": "a", "ssl.ca.location": "b"}, "'ssl_cafile' and 'ssl.ca.location'"),
    ({**TLS, "ssl_cafile": "a", "ssl.ca.pem": "b"}, "'ssl_cafile' and 'ssl.ca.pem' contradict"),
    # Settings of Java only.
    ({**TLS, "ssl.truststore.password": SECRET}, "only stores in PEM format are supported"),
    ({**TLS, "ssl.keystore.password": SECRET}, "The password of a key is 'ssl.key.password'"),
    (
        {**TLS, "ssl.truststore.type": "JKS"},
        "must be PEM. If the store has another format, convert it to",
    ),
    ({**TLS, "ssl.keystore.type": "PKCS12"}, "keytool -importkeystore"),
    ({**TLS, "ssl.engine.factory.class": "a.B"}, "set 'ssl_context'"),
    ({**TLS, "ssl.provider": "BC"}, "it names a class of Java"),
    ({**LOGIN, "sasl.login.callback.handler.class": "a.B"}, "set 'sasl_oauth_token_provider'"),
    ({"sasl.oauthbearer.token.endpoint.url": SECRET}, "no token is fetched here"),
    # Values.
    ({**TLS, "ssl.endpoint.identification.algorithm": "HTTP"}, "must be https, or an empty str"),
    ({**TLS, "ssl.endpoint.identification.algorithm": False}, "must be https, or an empty str"),
    ({**TLS, "ssl_check_hostname": "maybe"}, "'ssl_check_hostname' must be true or false"),
    ({**TLS, "enable.ssl.certificate.verification": 1}, "must be true or false"),
    ({**TLS, "ssl.enabled.protocols": "TLSv1.1,TLSv1.2"}, "must be TLSv1.2, TLSv1.3 or both"),
    ({**TLS, "ssl.enabled.protocols": ","}, "must be TLSv1.2, TLSv1.3 or both"),
    ({**TLS, "ssl.protocol": "SSLv3"}, "'ssl.protocol' must be TLS, TLSv1.2 or TLSv1.3"),
    (
        {**TLS, "ssl.protocol": "TLSv1.3", "ssl.enabled.protocols": "TLSv1.2"},
        "'ssl.protocol' is not among 'ssl.enabled.protocols'",
    ),
    ({**TLS, "ssl.cipher.suites": "nonsense"}, "names no cipher suite that this OpenSSL has"),
    ({**TLS, "ssl.cipher.suites": f"{SECRET}\0"}, "names no cipher suite that this OpenSSL has"),
    ({**TLS, "ssl.cipher.suites": "\ud800"}, "names no cipher suite that this OpenSSL has"),
    ({**TLS, "ssl.cipher.suites": "TLS_AES_256_GCM_SHA384"}, "names a suite of TLS 1.3, which"),
    # Keys and certificates.
    ({**TLS, "ssl.key.location": "k"}, "'ssl.key.location' is a key without its certificate"),
    ({**TLS, "ssl.keystore.key": "k"}, "'ssl.keystore.key' is a key without its certificate"),
    ({**TLS, "ssl.certificate.pem": "c"}, "'ssl.certificate.pem' is a certificate without its"),
    ({**TLS, "ssl.key.password": SECRET}, "is the password of a key, but no key is set"),
    ({**TLS, "ssl_certfile": "c", "ssl_password": 7}, "'ssl_password' must be a str"),
    (
        {**TLS, "enable.ssl.certificate.verification": False, "ssl_cafile": "x"},
        "'ssl_cafile' has no effect, because 'enable.ssl.certificate.verification' turns all",
    ),
    ({**TLS, "ssl_cafile": 7}, "'ssl_cafile' must be the path of a file"),
    ({**TLS, "ssl_cafile": ""}, "'ssl_cafile' must be the path of a file"),
    ({**TLS, "ssl_cafile": f"{SECRET}\0"}, "without NUL characters"),
    ({**TLS, "ssl_cafile": f"{SECRET}\ud800"}, "'ssl_cafile' contains characters that no path"),
    ({**TLS, "ssl_keyfile": f"-----BEGIN {SECRET}"}, "not its content"),
    ({**TLS, "ssl_cafile": f"/{SECRET}"}, "'ssl_cafile' names a file that does not exist"),
    (
        {**TLS, "ssl_cafile": f"{SECRET:x<300}"},
        "'ssl_cafile' names a file that can't be read: File name too long",
    ),
    ({**TLS, "ssl_ciphers": f"{SECRET}\0"}, "'ssl_ciphers' names no cipher suite"),
    ({**TLS, "ssl.ca.pem": pem("CERTIFICATE", "\u00fc")}, "'ssl.ca.pem' can't be read"),
    (
        {
            **TLS,
            "ssl.certificate.pem": pem("CERTIFICATE", "\ud800"),
            "ssl.key.pem": pem("PRIVATE KEY", f"{SECRET}\ud800"),
        },
        "'ssl.key.pem' can't be read",
    ),
    ({**TLS, "ssl.ca.pem": SECRET}, "'ssl.ca.pem' must be text in PEM format"),
    # A context of the user.
    ({**TLS, "ssl_context": SECRET}, "'ssl_context' must be an ssl.SSLContext, not str"),
    (
        {**TLS, "ssl_context": ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)},
        "'ssl_context' is for servers",
    ),
    (
        {**TLS, "ssl_context": ssl.create_default_context(), "ssl_cafile": SECRET},
        "'ssl_cafile' has no effect beside 'ssl_context'",
    ),
    # Proxies.
    ({"proxy_url": f"me:{SECRET}@host"}, "'proxy_url' must be SCHEME://host:port"),
    ({"proxy_url": f"socks5://me:{SECRET}@host"}, "'proxy_url' must be SCHEME://host:port"),
    ({"socks5_proxy": f"socks5://me:{SECRET}@host:port"}, "must be SCHEME://host:port"),
    ({"proxy_url": 7}, "'proxy_url' must be SCHEME://host:port"),
]


@pytest.mark.parametrize(
    ("properties", "says"),
    [
        pytest.param(*case, id=f"{number}-{list(case[0])[-1]}")
        for number, case in enumerate(REFUSED)
    ],
)
def test_a_refused_property_is_named(properties: dict[str, Any], says: str) -> None:
    assert says in refusal(properties)


def test_a_mechanism_needs_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", dict[str, None]().get)
    for mechanism, package in (("GSSAPI", "gssapi"), ("AWS_MSK_IAM", "botocore")):
        said = refusal({"security.protocol": "SASL_SSL", "sasl.mechanism": mechanism})
        assert f"{mechanism} needs the package {package}" in said


def test_a_proxy_with_a_password_is_passed_on() -> None:
    assert config({"proxy_url": "http://me:pw@h:1"})["proxy_url"] == "http://me:pw@h:1"


secrets = st.text(max_size=30).map(lambda text: f"{SECRET}{text}")
anything: st.SearchStrategy[Any] = st.one_of(
    secrets,
    secrets.map(lambda text: text.encode("utf-8", "replace")),
    secrets.map(lambda text: [text]),
    secrets.map(lambda text: f'{PLAIN_MODULE} required username="u" password="{text}'),
    secrets.map(lambda text: f"-----BEGIN PRIVATE KEY-----{text}-----END PRIVATE KEY-----"),
    secrets.map(lambda text: f"socks5://{text}@host:port"),
    secrets.map(lambda text: Path(text.replace("\0", "")[:40])),
)
#: The message shows the values of these.
SHOWN = {"security_protocol", "sasl_mechanism", "sasl_mechanisms"}


@given(
    st.sampled_from(["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"]),
    st.sampled_from([None, *_security._MECHANISMS]),
    st.dictionaries(
        st.sampled_from(sorted((_security.NAMES | _security.REFUSED.keys()) - SHOWN)),
        anything,
        min_size=1,
        max_size=4,
    ),
)
def test_no_refusal_repeats_a_secret(
    protocol: str, mechanism: str | None, properties: dict[str, Any]
) -> None:
    given_ = {"security.protocol": protocol, "sasl.mechanism": mechanism, **properties}
    if not _settings._SHOWN_PROPERTIES & properties.keys():
        assert SECRET not in repr(make(properties=given_))
    try:
        config(given_)
    except SettingsError as caught:
        error: BaseException | None = caught
        while error is not None:
            assert SECRET not in str(error)
            assert SECRET not in repr(error)
            error = error.__cause__ or error.__context__


# --- TLS -----------------------------------------------------------------------------------------


def test_by_default_tls_checks_everything() -> None:
    context = context_of({})
    assert context.verify_mode is ssl.CERT_REQUIRED
    assert context.check_hostname
    assert context.minimum_version is ssl.TLSVersion.TLSv1_2
    assert context.maximum_version is ssl.TLSVersion.TLSv1_3


@pytest.mark.parametrize(
    "name", ["ssl.truststore.location", "ssl.ca.location", "ssl_cafile", "ssl.cafile"]
)
def test_the_file_of_authorities_has_several_spellings(name: str, certificate: Certificate) -> None:
    for path in (certificate.authority, str(certificate.authority)):
        context = context_of({name: path})
        assert len(context.get_ca_certs()) == 1


@pytest.mark.parametrize("make_config", [config, librdkafka], ids=["kafka-python", "librdkafka"])
def test_the_comments_in_a_file_of_authorities_may_have_any_characters(
    make_config: Callable[[dict[str, Any]], Any], certificate: Certificate, tmp_path: Path
) -> None:
    path = tmp_path / "authorities.pem"
    comment = "# T\u00fcrkiye\n".encode()
    path.write_bytes(comment + certificate.authority.read_bytes())
    make_config({**TLS, "ssl.ca.location": path})
    assert len(context_of({"ssl.ca.location": path}).get_ca_certs()) == 1


def test_no_authority_is_lost_after_a_byte_order_mark(tmp_path: Path) -> None:
    """Each file had a byte order mark before the files were joined."""
    path = tmp_path / "authorities.pem"
    files = [Authority(tmp_path / name).file for name in ("first", "second")]
    path.write_bytes(b"".join(codecs.BOM_UTF8 + one.read_bytes() for one in files))
    assert len(context_of({"ssl.ca.location": path}).get_ca_certs()) == 2


def test_the_authorities_may_be_a_directory(tmp_path: Path) -> None:
    assert context_of({"ssl.ca.location": tmp_path}).get_ca_certs() == []


@pytest.mark.parametrize("name", ["ssl.truststore.certificates", "ssl.ca.pem"])
def test_the_authorities_may_be_text_in_the_settings(name: str, certificate: Certificate) -> None:
    text = certificate.authority.read_text()
    for one in (text, " ".join(text.split("\n"))):
        assert len(context_of({name: one, "ssl.truststore.type": "PEM"}).get_ca_certs()) == 1


@pytest.mark.parametrize(
    ("properties", "checks", "verifies"),
    [
        ({"ssl.endpoint.identification.algorithm": "https"}, True, True),
        ({"ssl.endpoint.identification.algorithm": ""}, False, True),
        ({"ssl.endpoint.identification.algorithm": "none"}, False, True),
        ({"ssl_check_hostname": "false"}, False, True),
        ({"ssl_check_hostname": True}, True, True),
        ({"enable.ssl.certificate.verification": "true"}, True, True),
        ({"enable.ssl.certificate.verification": False}, False, False),
    ],
    ids=str,
)
def test_only_explicit_settings_turn_checks_off(
    properties: dict[str, Any], checks: bool, verifies: bool
) -> None:
    context = context_of(properties)
    assert context.check_hostname is checks
    assert (context.verify_mode is ssl.CERT_REQUIRED) is verifies


@pytest.mark.parametrize(
    ("properties", "least", "most"),
    [
        ({"ssl.protocol": "TLS"}, 2, 3),
        ({"ssl.protocol": "TLSv1.2"}, 2, 3),
        ({"ssl.protocol": "TLSv1.3"}, 3, 3),
        ({"ssl.enabled.protocols": "TLSv1.2, TLSv1.3"}, 2, 3),
        ({"ssl.enabled.protocols": "TLSv1.2"}, 2, 2),
        ({"ssl.enabled.protocols": "TLSv1.3", "ssl.protocol": "TLSv1.3"}, 3, 3),
        ({"ssl.enabled.protocols": "TLSv1.3,TLSv1.2", "ssl.protocol": "TLSv1.3"}, 2, 3),
    ],
    ids=str,
)
def test_versions_of_tls(properties: dict[str, Any], least: int, most: int) -> None:
    versions = {2: ssl.TLSVersion.TLSv1_2, 3: ssl.TLSVersion.TLSv1_3}
    context = context_of(properties)
    assert (context.minimum_version, context.maximum_version) == (versions[least], versions[most])


@pytest.mark.parametrize(
    ("name", "suites", "wanted"),
    [
        ("ssl_ciphers", "ECDHE-RSA-AES256-GCM-SHA384", ["ECDHE-RSA-AES256-GCM-SHA384"]),
        (
            "ssl.cipher.suites",
            "TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384,TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256",
            ["ECDHE-RSA-AES256-GCM-SHA384", "ECDHE-ECDSA-AES128-GCM-SHA256"],
        ),
        (
            "ssl.cipher.suites",
            "TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256",
            ["ECDHE-RSA-CHACHA20-POLY1305"],
        ),
        ("ssl.cipher.suites", "TLS_RSA_WITH_AES_128_CBC_SHA256", ["AES128-SHA256"]),
    ],
)
def test_cipher_suites_may_have_javas_or_openssls_names(
    name: str, suites: str, wanted: list[str]
) -> None:
    found = [cipher["name"] for cipher in context_of({name: suites}).get_ciphers()]
    assert [one for one in found if not one.startswith("TLS_")] == wanted


@pytest.mark.parametrize(
    "names",
    [
        {"ssl.certificate.location": "chain", "ssl.key.location": "key"},
        {"ssl_certfile": "chain", "ssl_keyfile": "key"},
        {"ssl.keystore.location": "both"},
        {"ssl_certfile": "both"},
    ],
    ids=str,
)
def test_a_client_certificate(names: dict[str, str], certificate: Certificate) -> None:
    context_of({name: getattr(certificate, file) for name, file in names.items()})


PEM_NAMES = [
    ("ssl.keystore.key", "ssl.keystore.certificate.chain"),
    ("ssl.key.pem", "ssl.certificate.pem"),
]


@pytest.mark.parametrize("names", PEM_NAMES, ids=["kafka", "librdkafka"])
def test_a_certificate_in_the_settings_leaves_no_file(
    names: tuple[str, str],
    certificate: Certificate,
    locked: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    key, chain = names
    modes: list[int] = []
    real: Any = os.fdopen

    def watched(handle: int, *rest: Any) -> Any:
        modes.append(os.fstat(handle).st_mode & 0o777)
        return real(handle, *rest)

    monkeypatch.setattr(os, "fdopen", watched)
    both = {key: certificate.key.read_text(), chain: certificate.chain.read_text()}
    context_of(both)
    context_of(
        {
            **both,
            key: locked.read_text().partition("-----BEGIN CERT")[0],
            "ssl.key.password": SECRET,
        }
    )
    refusal({**TLS, **both, key: f"-----BEGIN PRIVATE KEY-----{SECRET}-----END PRIVATE KEY-----"})
    assert modes == [0o600] * 3
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["ssl.key.password", "ssl_password"])
def test_a_key_with_a_password(name: str, locked: Path) -> None:
    context_of({"ssl.keystore.location": locked, name: SECRET})
    context_of({"ssl.keystore.location": locked, name: SECRET.encode()})


def test_an_older_kind_of_encrypted_key(certificate: Certificate) -> None:
    key = serialization.load_pem_private_key(certificate.key.read_bytes(), None)
    text = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.TraditionalOpenSSL,
        serialization.BestAvailableEncryption(SECRET.encode()),
    ).decode()
    assert "Proc-Type:" in text
    chain = certificate.chain.read_text()
    context_of({"ssl.key.pem": text, "ssl.certificate.pem": chain, "ssl.key.password": SECRET})


class Files:
    """Certificates, keys and unusable files, by name."""

    def __init__(self, certificate: Certificate, other: Certificate, locked: Path) -> None:
        place = certificate.chain.parent
        self.chain, self.key, self.both = certificate.chain, certificate.key, certificate.both
        self.other_key, self.locked, self.missing = other.key, locked, place / SECRET
        self.directory = place
        self.jks = self._make(place, "jks", b"\xfe\xed\xfe\xed\0\0")
        self.der = self._make(place, "der", b"\x30\x82\1\1")
        self.text = self._make(place, "text", SECRET.encode())
        self.broken = self._make(
            place, "broken", b"-----BEGIN CERTIFICATE-----\n!\n-----END CERTIFICATE-----\n"
        )
        self.broken_key = self._make(
            place,
            "broken_key",
            b"-----BEGIN PRIVATE KEY-----\nMAAA\n-----END PRIVATE KEY-----\n",
        )

    def _make(self, place: Path, name: str, content: bytes) -> Path:
        path = place / f"{SECRET}-{name}"
        path.write_bytes(content)
        return path


@pytest.fixture(scope="module")
def files(authority: Authority, certificate: Certificate, locked: Path) -> Files:
    return Files(certificate, authority.issue(), locked)


@pytest.mark.parametrize(
    ("names", "says"),
    [
        ({"ssl.ca.location": "missing"}, "'ssl.ca.location' names a file that does not exist"),
        ({"ssl.ca.location": "text"}, "names a file that is not in PEM format"),
        ({"ssl.truststore.location": "jks"}, "but in Java's, JKS; convert it to PEM: keytool"),
        ({"ssl.truststore.location": "der"}, "If it is PKCS #12, convert it to PEM: keytool"),
        ({"ssl.ca.location": "key"}, "'ssl.ca.location' contains no CERTIFICATE"),
        ({"ssl.ca.location": "broken"}, "'ssl.ca.location' can't be read: "),
        ({"ssl_certfile": "directory"}, "must name a regular file, not a directory"),
        ({"ssl_certfile": "missing"}, "'ssl_certfile' names a file that does not exist"),
        ({"ssl_certfile": "key"}, "'ssl_certfile' contains no CERTIFICATE"),
        ({"ssl_certfile": "chain"}, "'ssl_certfile' contains no PRIVATE KEY: put the key there"),
        ({"ssl_certfile": "chain", "ssl_keyfile": "missing"}, "'ssl_keyfile' names a file that do"),
        (
            {"ssl_certfile": "chain", "ssl_keyfile": "chain"},
            "'ssl_keyfile' contains no PRIVATE",
        ),
        ({"ssl_certfile": "chain", "ssl_keyfile": "other_key"}, "does not belong to the certific"),
        ({"ssl_certfile": "chain", "ssl_keyfile": "broken_key"}, "'ssl_keyfile' can't be read: "),
        ({"ssl.keystore.location": "locked"}, "a key that is encrypted: set 'ssl.key.password'"),
        ({"ssl_crlfile": "chain"}, "'ssl_crlfile' contains no X509 CRL"),
    ],
    ids=str,
)
def test_unusable_files_are_refused_at_once(names: dict[str, str], says: str, files: Files) -> None:
    paths = {name: getattr(files, file) for name, file in names.items()}
    assert says in refusal({**TLS, **paths})


@pytest.mark.skipif(os.name == "nt", reason="no FIFOs and no such devices")
@pytest.mark.parametrize("make_config", [config, librdkafka], ids=["kafka-python", "librdkafka"])
@pytest.mark.parametrize("kind", ["fifo", "zero", "random", "null", "tty"])
@pytest.mark.parametrize("name", ["ssl_cafile", "ssl_certfile", "ssl_keyfile", "ssl_crlfile"])
def test_only_regular_files_are_read(
    name: str, kind: str, make_config: Any, tmp_path: Path, certificate: Certificate
) -> None:
    path = tmp_path / "a.pem"
    if kind == "fifo":
        os.mkfifo(path)
    else:
        path.symlink_to(f"/dev/{kind}")
    paths = {"ssl_certfile": certificate.chain} if name == "ssl_keyfile" else {}
    with pytest.raises(SettingsError, match=f"'{name}' (must name a regular file|names a file th)"):
        make_config({**TLS, **paths, name: path})
    assert open_files() == []


@pytest.mark.skipif(os.name == "nt", reason="no FIFOs")
@pytest.mark.parametrize("make_config", [config, librdkafka], ids=["kafka-python", "librdkafka"])
def test_the_hashed_names_in_a_directory_of_authorities_are_regular_files(
    make_config: Any, tmp_path: Path
) -> None:
    # In a handshake, OpenSSL opens an entry named like a hash, and would wait for a FIFO's writer.
    (tmp_path / "a-directory").mkdir()
    os.mkfifo(tmp_path / "another-name")
    make_config({**TLS, "ssl_cafile": tmp_path})
    os.mkfifo(tmp_path / "82965258.0")
    with pytest.raises(SettingsError, match=r"'ssl_cafile' .* 82965258\.0 is not a regular file"):
        make_config({**TLS, "ssl_cafile": tmp_path})


@pytest.mark.parametrize("make_config", [config, librdkafka], ids=["kafka-python", "librdkafka"])
def test_an_unreadable_directory_of_authorities_is_refused(
    make_config: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: str) -> Any:
        raise PermissionError(errno.EACCES, "Permission denied", path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(SettingsError, match=r"'ssl_cafile' .* can't be read: Permission denied"):
        make_config({**TLS, "ssl_cafile": tmp_path})


@pytest.mark.parametrize("make_config", [config, librdkafka], ids=["kafka-python", "librdkafka"])
def test_a_large_file_is_refused(
    make_config: Any, tmp_path: Path, certificate: Certificate
) -> None:
    path = tmp_path / "a.pem"
    text = certificate.authority.read_bytes()
    path.write_bytes(text + b"\n" * (1024 * 1024 - len(text)))
    make_config({**TLS, "ssl_cafile": path})
    path.write_bytes(text + b"\n" * (1024 * 1024 - len(text) + 1))
    with pytest.raises(SettingsError, match="'ssl_cafile' names a file of more than 1 MiB"):
        make_config({**TLS, "ssl_cafile": path})
    assert open_files() == []


@pytest.mark.skipif(os.name == "nt", reason="no FIFOs")
def test_a_certificate_that_becomes_a_fifo_does_not_block(
    certificate: Certificate, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    place = tmp_path / "mine.pem"
    place.write_bytes(certificate.both.read_bytes())
    tls = config({**TLS, "ssl_certfile": place})["ssl_context"]
    first = tls.context()
    place.unlink()
    os.mkfifo(place)
    assert tls.context() is first
    assert "'ssl_certfile' must name a regular file" in caplog.text


def test_a_wrong_password_is_an_error_at_once(locked: Path) -> None:
    said = refusal({**TLS, "ssl_certfile": locked, "ssl_password": "another"})
    assert "'ssl_password' is not the password of the key" in said


def test_the_reason_of_another_error_shows_no_secret() -> None:
    assert _tls._reason(ValueError(SECRET)) == "OpenSSL cannot parse it"
    assert _tls._reason(ssl.SSLError(SECRET)) == "OpenSSL cannot parse it"
    assert _tls._reason(OSError(SECRET)) == "OSError"


def test_a_context_of_the_user_is_passed_on_unchanged() -> None:
    context = ssl.create_default_context()
    context.check_hostname = False
    assert config({**TLS, "ssl_context": context})["ssl_context"] is context
    both = {**LOGIN, "security.protocol": "SASL_SSL", "ssl_context": context}
    assert config(both)["ssl_context"] is context


def test_the_next_connection_uses_a_new_certificate(
    authority: Authority, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    files = [authority.issue(), authority.issue()]
    place = tmp_path / "mine.pem"
    place.write_bytes(files[0].both.read_bytes())
    tls = config({**TLS, "ssl_certfile": place})["ssl_context"]
    first = tls.context()
    assert tls.context() is first
    place.write_bytes(files[1].both.read_bytes() + b"\n")
    second = tls.context()
    assert second is not first
    assert tls.context() is second
    place.write_text("half of it")
    assert tls.context() is second
    assert (
        "the files that were read before stay in use: properties: 'ssl_certfile' names"
        in caplog.text
    )
    place.unlink()
    assert tls.context() is second
    place.write_bytes(files[0].both.read_bytes())
    assert tls.context() not in {first, second}


# --- errors of TLS -------------------------------------------------------------------------------


def test_other_errors_are_not_refusals_of_tls() -> None:
    assert _tls.tls_refusal(OSError("down")) is None
    assert _tls.tls_refusal(ssl.SSLEOFError(8, "end")) is None
    turning = OSError("a")
    turning.__cause__ = turning
    assert _tls.tls_refusal(turning) is None


@pytest.mark.parametrize("reason", ["WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE"])
def test_an_answer_that_is_not_the_required_tls_is_a_refusal(reason: str) -> None:
    error = ssl.SSLError(1, "wrong")
    error.reason = reason
    said = _tls.tls_refusal(OSError(error))
    assert said == f"it does not use the required TLS: {reason}"


# --- tokens --------------------------------------------------------------------------------------


@given(st.floats(0, 1e12), st.dictionaries(st.text(), st.text()))
def test_the_expiry_of_a_jwt_is_read(expiry: float, others: dict[str, str]) -> None:
    assert _security.expires_at(jwt({**others, "exp": expiry})) == expiry


@given(st.text(st.characters(codec="ascii")))
@example(jwt({}))
@example(jwt({"exp": None}))
@example(jwt({"exp": "soon"}))
@example(jwt({"exp": float("nan")}))
@example(jwt({"exp": 10**400}))
@example(f"a.{'W1' * 50_000}.")
@example("a.b")
@example("\x00.\x00.")
def test_a_token_without_a_valid_exp_has_no_expiry(token: str) -> None:
    assert _security.expires_at(token) is None

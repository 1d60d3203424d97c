"""TLS and SASL: settings, files and credentials for each client library."""

#: This package exports nothing.
__all__: list[str] = []

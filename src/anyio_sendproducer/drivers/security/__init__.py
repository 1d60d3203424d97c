"""TLS and SASL: settings, files and credentials, whichever client library uses them."""

#: Nothing here is public.
__all__: list[str] = []

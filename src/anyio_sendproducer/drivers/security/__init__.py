"""TLS and SASL: settings, files and credentials, whichever client library uses them."""

"""The driver on kafka-python. No module outside this package imports ``kafka``."""

import warnings

# On Python 3.11 and 3.12 kafka-python 3.0.12 reads its protocol's schemas with a function that is
# deprecated there, some of them long after the import. The filter stays, because catch_warnings()
# is not thread-safe and a thread imports the modules of this package.
warnings.filterwarnings(
    "ignore",
    "(read_text|open_text) is deprecated",
    DeprecationWarning,
    r"(kafka\.protocol|importlib\.resources\._legacy)",
)

#: This package exports nothing.
__all__: list[str] = []

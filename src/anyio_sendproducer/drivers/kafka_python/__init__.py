"""The driver on kafka-python. Nothing outside this package imports ``kafka``."""

import warnings

# On Python 3.11 and 3.12 kafka-python 3.0.12 reads its protocol's schemas, some of them late, by a
# function that is deprecated there. The filter stays: catch_warnings() is not thread-safe, and the
# modules of this package are imported on a thread.
warnings.filterwarnings(
    "ignore",
    "(read_text|open_text) is deprecated",
    DeprecationWarning,
    r"(kafka\.protocol|importlib\.resources\._legacy)",
)

#: Nothing here is public.
__all__: list[str] = []

"""Where the repository's files are."""

from __future__ import annotations

from pathlib import Path
from typing import Final

__all__ = ["ROOT"]

#: The top folder of the checkout, or of the unpacked sdist.
ROOT: Final = Path(__file__).parents[2]

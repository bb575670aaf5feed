"""What annotations say again and again."""

from os import PathLike
from typing import Any

FilePath = str | PathLike[str]
# (x, y); whether pixels or arcsec is said where it stands.
Place = tuple[float, float]
# TensorFlow has no types to check against: an array or tensor, its shape in the docstring.
Tensor = Any

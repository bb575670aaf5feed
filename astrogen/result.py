"""Results and what is said of them, for scripts: the names of `astrogen.galaxies.result`."""

from astrogen.galaxies.quantities import Quantities, format_value
from astrogen.galaxies.result import (
    ExposureFit,
    Result,
    Source,
    all_status,
    file_names,
    read_result,
    results_table,
)

__all__ = [
    "ExposureFit",
    "Quantities",
    "Result",
    "Source",
    "all_status",
    "file_names",
    "format_value",
    "read_result",
    "results_table",
]

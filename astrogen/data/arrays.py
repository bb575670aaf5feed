"""How arrays are written: equal arrays as equal bytes, and nothing that could be code. The ways
back are in reading.py.
"""

import io
import zipfile
from collections.abc import Mapping

import numpy as np

from astrogen.data.files import whole_file
from astrogen.types import FilePath


def npz_bytes(arrays: Mapping[str, np.ndarray], *, level: int = 6) -> bytes:
    """What `np.savez_compressed` writes of {name: array}: equal arrays make equal bytes.

    Made in memory, so that a disk that is full is met by Python alone. `level` is that of zlib: 1
    is fast, 6 is NumPy's.
    """
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED, compresslevel=level) as archive:
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, np.asanyarray(array), allow_pickle=False)
    return buffer.getvalue()


def write_array(path: FilePath, array: np.ndarray) -> None:
    """Write a large array as a .npy file, without a copy of it in memory."""
    array = np.ascontiguousarray(array)
    with whole_file(path) as stream:
        told = np.lib.format.header_data_from_array_1_0(array)
        np.lib.format.write_array_header_1_0(stream, told)
        stream.write(array.data)

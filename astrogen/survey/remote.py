"""A chunk on a worker that others have started: the same code, and one thread, or a refusal in
words.
"""

import hashlib
import os
import sys
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from astrogen.errors import SurveyError
from astrogen.survey.work import infer_chunk
from astrogen.types import FilePath

ALGEBRA = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
TENSORFLOW = ("TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS")
ONE_THREAD = dict.fromkeys(ALGEBRA + TENSORFLOW, "1")  # what libraries read when they are loaded
RESTART = "start the workers anew with " + " ".join(f"{name}=1" for name in ONE_THREAD)


def infer_remotely(
    code: str, path: FilePath, objects: Sequence[Any], exposures: Sequence[Any], fit: Any
) -> Any:
    """`infer_chunk` for a worker of an existing cluster.

    Raises
    ------
    SurveyError : the worker's astrogen has another `code_hash` than `code`, or its libraries cannot
        be kept to one thread: the bytes of the run would be others.
    """
    if code_hash() != code:
        raise SurveyError(
            path,
            "run_survey: workers must have the astrogen of the client, got other code in"
            f" {Path(__file__).parent.parent}; install the same release there",
        )
    keep_to_one_thread(path)
    return infer_chunk(path, objects, exposures, fit)


def keep_to_one_thread(path: FilePath) -> None:
    """Keep linear algebra and TensorFlow to one thread in this process, so that sums do not depend
    on the number of cores; a SurveyError about `path` where it cannot be done.
    """
    # numpy has been loaded by now: too late for the environment
    if any(os.environ.get(name) != "1" for name in ALGEBRA):
        try:
            from threadpoolctl import threadpool_limits
        except ImportError as error:
            raise SurveyError(
                path,
                f"run_survey: workers must keep linear algebra to one thread, got {error}; install"
                f" threadpoolctl there, or {RESTART}",
            ) from error
        threadpool_limits(1)
    if "tensorflow" not in sys.modules:
        os.environ.update(dict.fromkeys(TENSORFLOW, "1"))
    elif any(os.environ.get(name) != "1" for name in TENSORFLOW):
        import tensorflow as tf

        try:
            tf.config.threading.set_intra_op_parallelism_threads(1)
            tf.config.threading.set_inter_op_parallelism_threads(1)
        except RuntimeError as error:
            raise SurveyError(
                path,
                "run_survey: workers must keep TensorFlow to one thread, got one that is at work"
                f" already ({error}); {RESTART}",
            ) from error


@lru_cache(1)
def code_hash() -> str:
    """The sha256 over the package's source files."""
    root, digest = Path(__file__).parent.parent, hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        digest.update(str(path.relative_to(root)).encode() + path.read_bytes())
    return digest.hexdigest()

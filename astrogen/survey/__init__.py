"""Many objects: a catalogue and images in, one table and chunk files out.

Nothing is lost and nothing is done twice.

    catalogue, images -> chunks of objects -> workers -> chunk files -> catalogue.parquet,
    failures.ecsv

A chunk is written whole or not at all, its content depends on the run's configuration alone, and a
resumed run therefore ends with the bytes of an uninterrupted one, whatever the number of workers.
"""

from astrogen.survey.run import run_survey
from astrogen.survey.store import read_object, read_survey
from astrogen.survey.work import Fit

__all__ = ["Fit", "read_object", "read_survey", "run_survey"]

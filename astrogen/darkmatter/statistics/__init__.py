"""Statistics of convergence maps: what an emulator must share with simulations, each a function of
a batch of maps.

    edges = np.geomspace(250, 3000, 12)
    spectrum, error = jackknife(power_spectrum(maps, pixel_scale=2.3, edges=edges),
    groups=simulation)

Maps are [batch, height, width], patches of a flat sky that need not be periodic; `pixel_scale` is
in arcmin per pixel. Every function gives one value (or row) per map, so that means, scatter and
errors by jackknife follow from the same numbers. NumPy alone; the two-sample test by a network is
in `classifier`, which imports TensorFlow. Checked in tests/test_statistics.py against closed forms
of Gaussian fields and against SciPy, scikit-image and astropy.
"""

from astrogen.darkmatter.statistics.fourier import (
    angular_frequency,
    bispectrum,
    equilateral,
    mean_frequency,
    power_spectrum,
    squeezed,
)
from astrogen.darkmatter.statistics.minkowski import minkowski_functionals
from astrogen.darkmatter.statistics.pixels import minimum_counts, moments, peak_counts, pixel_pdf
from astrogen.darkmatter.statistics.scatter import Diversity, diversity, jackknife

__all__ = [
    "Diversity",
    "angular_frequency",
    "bispectrum",
    "diversity",
    "equilateral",
    "jackknife",
    "mean_frequency",
    "minimum_counts",
    "minkowski_functionals",
    "moments",
    "peak_counts",
    "pixel_pdf",
    "power_spectrum",
    "squeezed",
]

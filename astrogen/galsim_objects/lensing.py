"""An emulated universe as a GalSim lensing field: shear, convergence and magnification at
positions, as `galsim.PowerSpectrum` offers them.
"""

from typing import Any

import galsim
import numpy as np

from astrogen.errors import InputError

ARCSEC = 60.0  # per arcmin


class KappaMap:
    """A convergence map that shears and magnifies what lies behind it.

    Pixel centres stand at `centre` plus multiples of the pixel; between them shear and convergence
    are interpolated by cubic convolution. Positions beyond the map's edge are an error.

    Parameters
    ----------
    kappa : array [n, m], n and m even; convergence on a periodic grid (as `KappaMap.draw` makes it)
    pixel_scale : float, arcmin per pixel
    shape : (height, width) or None, the part in the middle that can be looked up: the rest of the
        grid keeps its edges apart
    centre : galsim.PositionD, arcsec, of the middle of the map

    Raises
    ------
    ValueError : kappa is not an even, finite map; a part larger than the map; no positive pixel
        scale.
    """

    def __init__(
        self,
        kappa: np.ndarray,
        *,
        pixel_scale: float,
        shape: Any = None,
        centre: galsim.PositionD = galsim.PositionD(0, 0),
    ) -> None:
        from astrogen.instruments.lensing import shear_kernels

        kappa = np.asarray(kappa, np.float64)
        if (
            kappa.ndim != 2
            or any(side % 2 or side < 4 for side in kappa.shape)
            or not np.isfinite(kappa).all()
        ):
            raise InputError(
                "KappaMap: kappa must be a finite map with even sides of at least 4, got shape"
                f" {kappa.shape}; crop it, and fill what is missing"
            )
        if not pixel_scale > 0:
            raise InputError(
                f"KappaMap: pixel_scale must be positive, got {pixel_scale}; give it in arcmin"
            )
        shape = kappa.shape if shape is None else tuple(shape)
        if any(part > side for part, side in zip(shape, kappa.shape)):
            raise InputError(f"KappaMap: shape must fit into the map of {kappa.shape}, got {shape}")
        self.pixel_scale, self.shape, self.centre = float(pixel_scale), shape, centre
        gamma1, gamma2 = np.fft.irfft2(
            np.fft.rfft2(kappa) * shear_kernels(*kappa.shape), kappa.shape
        )
        self._tables = [self._table(plane) for plane in (gamma1, gamma2, kappa)]

    @classmethod
    def draw(
        cls,
        rng: Any,
        *,
        omega_m: float,
        sigma_8: float,
        size: int = 64,
        prior: Any = "kappa",
        extrapolate: bool = False,
    ) -> "KappaMap":
        """A map of `size` pixels a side, drawn from a prior with GalSim's random numbers.

        Parameters
        ----------
        rng : galsim.BaseDeviate
        omega_m, sigma_8 : float; outside the prior's range only where `extrapolate` is set
        size : int, pixels, even
        prior : str, path or prior
        """
        return cls(**_drawn(rng, omega_m, sigma_8, size, prior, extrapolate))

    def _table(self, plane):
        top, left = ((side - part) // 2 for side, part in zip(plane.shape, self.shape))
        part = plane[top : top + self.shape[0], left : left + self.shape[1]]
        x, y = (
            ARCSEC * self.pixel_scale * (np.arange(num) - (num - 1) / 2) for num in part.shape[::-1]
        )
        return galsim.LookupTable2D(
            x + self.centre.x, y + self.centre.y, part, interpolant="cubic", edge_mode="raise"
        )

    def getLensing(self, pos: Any) -> tuple[Any, Any, Any]:
        """Reduced shear (g1, g2) and magnification at positions in arcsec: PositionD, (x, y), or
        (array, array).
        """
        gamma1, gamma2, kappa = (self._at(table, pos) for table in self._tables)
        g1, g2 = gamma1 / (1 - kappa), gamma2 / (1 - kappa)
        return g1, g2, 1 / ((1 - kappa) ** 2 - gamma1**2 - gamma2**2)

    def getShear(self, pos: Any, reduced: bool = True) -> tuple[Any, Any]:
        """(g1, g2), or (gamma1, gamma2) where `reduced` is not set."""
        if reduced:
            return self.getLensing(pos)[:2]
        return tuple(self._at(table, pos) for table in self._tables[:2])

    def getConvergence(self, pos: Any) -> Any:
        """The convergence kappa."""
        return self._at(self._tables[2], pos)

    def getMagnification(self, pos: Any) -> Any:
        """The magnification mu."""
        return self.getLensing(pos)[2]

    @staticmethod
    def _at(table, pos):
        x, y = (pos.x, pos.y) if isinstance(pos, (galsim.PositionD, galsim.PositionI)) else pos
        return table(x, y)


class DrawnKappaMap(KappaMap):
    """`KappaMap.draw` as a class: a configuration's processes read from it which methods its proxy
    has.
    """

    _req_params = {"omega_m": float, "sigma_8": float}
    _opt_params = {"prior": str, "size": int, "extrapolate": bool}
    _single_params: list[dict[str, type]] = []
    _takes_rng = True

    def __init__(
        self,
        rng: Any,
        *,
        omega_m: float,
        sigma_8: float,
        size: int = 64,
        prior: Any = "kappa",
        extrapolate: bool = False,
    ) -> None:
        super().__init__(**_drawn(rng, omega_m, sigma_8, size, prior, extrapolate))


def _drawn(rng, omega_m, sigma_8, size, prior, extrapolate):
    """The arguments of a KappaMap whose convergence a prior has drawn."""
    from astrogen.priors import load_prior
    from astrogen.priors.convergence import MARGIN

    prior = prior if hasattr(prior, "kappa_spectrum") else load_prior(prior)
    prior.check_cosmology(omega_m, sigma_8, extrapolate=extrapolate)
    side = size + MARGIN
    latent = np.empty(side**2)
    galsim.GaussianDeviate(rng.raw()).generate(latent)
    kappa = prior.decode(
        latent.reshape(1, side, side).astype(np.float32), np.float32([[omega_m, sigma_8]])
    ).numpy()[0]
    return {"kappa": kappa, "pixel_scale": prior.pixel_scale, "shape": (size, size)}

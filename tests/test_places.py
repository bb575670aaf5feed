"""Places on the sky that an image's WCS does not reach, and images that are too crowded for sep."""

import numpy as np
import pytest
import sep
from astropy.coordinates import SkyCoord
from astropy.io import fits
from astropy.wcs import WCS, Sip

from astrogen.data.detection import detect, mask_neighbours, read_positions
from astrogen.data.frames import sky_to_pixels
from astrogen.data.observation import make_observation, make_psf, read_observation
from astrogen.errors import InputError
from astrogen.survey import inputs

NEAR = np.array([[10.0, 20.0], [90.0, 80.0], [49.0, 49.0]])
FAR = SkyCoord([151.0, 150.3, 330.0], [2.5, 1.0, -2.0], unit="deg")


def _distorted():
    """100 x 100 pixels of .2 arcsec; of the cubic terms, wcslib's fixed point runs away at FAR."""
    wcs, a, b = WCS(naxis=2), np.zeros((4, 4)), np.zeros((4, 4))
    wcs.wcs.ctype, wcs.wcs.crval, wcs.wcs.crpix = (
        ["RA---TAN-SIP", "DEC--TAN-SIP"],
        [150, 2],
        [50] * 2,
    )
    wcs.wcs.cdelt = [-0.2 / 3600, 0.2 / 3600]
    a[2, 0], a[0, 2], a[3, 0], b[1, 1], b[0, 3] = 2e-5, -1e-5, 1e-6, 3e-5, -1e-6
    wcs.sip = Sip(a, b, None, None, [50, 50])
    return wcs


def _sky():
    """Three places in the image, then FAR."""
    near = _distorted().pixel_to_world(*NEAR.T)
    degrees = np.r_[near.ra.deg, FAR.ra.deg], np.r_[near.dec.deg, FAR.dec.deg]
    return SkyCoord(*degrees, unit="deg")


@pytest.fixture
def image(tmp_path):
    pixels = np.random.default_rng(1).normal(size=(100, 100)).astype(np.float32)
    hdu = fits.PrimaryHDU(pixels, _distorted().to_header(relax=True))
    hdu.writeto(tmp_path / "a.fits")
    np.save(tmp_path / "psf.npy", _psf().image)
    return tmp_path / "a.fits"


def _psf():
    x = np.arange(9) - 4
    star = np.exp(-(x**2 + x[:, None] ** 2) / 4)
    return make_psf(star / star.sum(), pixel_scale=0.2)


def test_places_out_of_reach_have_no_pixel_and_the_others_theirs():
    x, y = sky_to_pixels(_distorted(), _sky(), name="a")
    assert np.allclose(np.stack([x, y], 1)[:3], NEAR, atol=1e-3)
    assert np.isnan([x[3:], y[3:]]).all()


def test_a_place_out_of_reach_is_refused(image):
    with pytest.raises(InputError, match="position must lie on the image, got .* 151 2.5, where"):
        read_observation(image, psf=_psf(), variance=1.0, position=FAR[0], size=8)
    stamp = read_observation(image, psf=_psf(), variance=1.0, position=_sky()[2], size=8)
    assert stamp.image.shape == (8, 8)
    with pytest.raises(InputError, match="sources must lie in the stamp"):
        read_positions(read_observation(image, psf=_psf(), variance=1.0), FAR)


def test_an_object_out_of_reach_leaves_the_others_of_a_survey(image):
    exposures = inputs.list_exposures([image], psf=[image.parent / "psf.npy"], sigma=["1"])
    targets, lost = inputs.match((list("abcdef"), _sky(), None), exposures)
    assert [target.ident for target in targets] == ["a", "b", "c"]
    assert np.allclose([(target.x, target.y) for target in targets], NEAR, atol=1e-3)
    assert lost == [(name, "no image holds its position") for name in "def"]


@pytest.fixture
def small_pixel_stack():
    """sep gives up where more pixels than these stand out at once."""
    before = sep.get_extract_pixstack()
    sep.set_extract_pixstack(100)
    yield
    sep.set_extract_pixstack(before)


@pytest.mark.parametrize(
    "find, advice",
    [
        pytest.param(lambda seen: detect([seen]), "give positions by sources=", id="detect"),
        pytest.param(mask_neighbours, "give a mask instead", id="mask_neighbours"),
    ],
)
def test_an_image_too_crowded_for_sep_is_refused(small_pixel_stack, find, advice):
    pixels = np.zeros((64, 64), np.float32)
    pixels[24:40, 24:40] = 50.0
    seen = make_observation(
        pixels, psf=_psf(), variance=np.ones_like(pixels), pixel_scale=0.2, name="crowd"
    )
    with pytest.raises(InputError, match=f"sep can tell apart .* for 'crowd'; {advice}"):
        find(seen)

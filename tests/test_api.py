"""The public API, name by name; and the roads by which other packages' images, PSFs and tables come
in and go out.
"""

import inspect
import re
import sys
import types
from types import SimpleNamespace

import galsim
import numpy as np
import pytest
from astropy import units
from astropy.nddata import CCDData, InverseVariance, NDData, StdDevUncertainty, VarianceUncertainty
from astropy.wcs import WCS
from conftest import ROOT
from photutils.psf import GriddedPSFModel, ImagePSF
from test_result import fake_result, observation  # noqa: F401

import astrogen
from astrogen.data.observation import as_observations, make_observation

SCALE, SIDE = 0.2, 40
PSF = galsim.Moffat(beta=3.5, fwhm=0.7)
TRUTH = galsim.Exponential(half_light_radius=0.5, flux=300.0).shear(g1=0.2, g2=0.1)

API = {  # function: its parameters, in their order
    "make_observation": (
        "image psf variance sigma weight mask pixel_scale wcs unit name max_bad_fraction"
    ),
    "make_psf": "image pixel_scale pixel_response recentre name",
    "psf_from_model": "model pixel_scale position plane name",
    "psf_from_galsim": "gsobject pixel_scale oversampling num_pixels",
    "read_observation": (
        "path psf variance sigma weight mask bad_bits hdu plane pixel_scale name position size"
        " max_bad_fraction max_pixels"
    ),
    "read_psf": (
        "path pixel_scale oversampling includes_pixel recentre position hdu plane max_pixels"
    ),
    "mask_neighbours": "observation place",
    "load_prior": "name",
    "deconvolve": (
        "observations psf pixel_scale prior method num_draws seed prior_scale background"
        " num_chains batch_size progress"
    ),
    "deconvolve_jointly": (
        "observations bands aligned prior method num_draws seed prior_scale background"
    ),
    "deblend": (
        "observations sources bands aligned prior method num_draws seed prior_scale background"
    ),
    "read_result": "path",
    "results_table": "results",
    "write_report": "results directory title failures max_figures picture caption",
    "run_survey": (
        "catalogue images out fit psf variance sigma weight mask band chunk num_workers scheduler"
        " shard resume force progress words_fn"
    ),
    "read_survey": "out",
    "read_object": "out ident image",
    "make_field": "maps noise mask pixel_scale beam wcs flipped max_bad_fraction",
    "read_field": "files noise mask footprint pixel_scale beam flip_second",
    "map_mass": "field prior cosmology num_draws num_chains num_burnin seed progress",
    "read_massmap": "path",
    "draw_galaxies": "num seed prior",
    "draw_maps": "num omega_m sigma_8 shape seed prior extrapolate",
    "write_galaxies": "path num seed prior",
    "write_maps": "path num omega_m sigma_8 shape seed prior extrapolate",
    "train_prior": "name records out num_steps seed resume real validation spectrum loss strategy",
}
CLASSES = {  # class: what a user reads of it
    "Observation": "image variance mask psf pixel_scale name wcs unit notes status",
    "PSF": "image pixel_scale pixel_response fwhm",
    "Result": (
        "sources exposures image image_std model residual draws flux half_light_radius e1 e2"
        " quantities flux_covariance deblended status converged summary draw_images write_fits"
        " to_table exposure_table to_ccddata to_arviz"
    ),
    "LensingField": "",
    "MassMap": "mean std draws",
    "AstrogenError": "",
    "InputError": "",
    "InputFileError": "",
    "SurveyError": "",
    "WeightsError": "",
    "PoorInputWarning": "",
}


def test_scripts_find_results_under_one_name():
    from astrogen import result

    assert result.Result is astrogen.Result and result.read_result is astrogen.read_result
    assert all(hasattr(result, name) for name in result.__all__)


def test_these_are_all_public_names():
    assert set(astrogen.__all__) == {"__version__", *API, *CLASSES}


@pytest.mark.parametrize("name", API)
def test_parameters(name):
    parameters = inspect.signature(getattr(astrogen, name)).parameters.values()
    assert " ".join(parameter.name for parameter in parameters) == API[name]
    assert not any(
        parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
        for parameter in parameters
    )
    assert inspect.getdoc(getattr(astrogen, name))


@pytest.mark.parametrize("name", CLASSES)
def test_what_a_class_offers(name):
    offered = {
        *dir(getattr(astrogen, name)),
        *getattr(getattr(astrogen, name), "__annotations__", {}),
    }
    assert set(CLASSES[name].split()) <= offered and inspect.getdoc(getattr(astrogen, name))


# --- the whole road


def draw(side=SIDE):
    return galsim.Convolve(TRUTH, PSF).drawImage(nx=side, ny=side, scale=SCALE, dtype=float).array


def psf_image(oversampling=1, side=33):
    """The effective PSF: with the observed pixel."""
    effective = galsim.Convolve(PSF, galsim.Pixel(SCALE))
    return effective.drawImage(
        nx=side * oversampling,
        ny=side * oversampling,
        scale=SCALE / oversampling,
        method="no_pixel",
        dtype=float,
    ).array


def sky():
    wcs = WCS(naxis=2)
    wcs.wcs.ctype, wcs.wcs.crval, wcs.wcs.crpix, wcs.wcs.cdelt = (
        ["RA---TAN", "DEC--TAN"],
        [150.0, 2.0],
        [20.5, 20.5],
        [-SCALE / 3600, SCALE / 3600],
    )
    return wcs


@pytest.fixture(scope="module")
def ccddata():
    """A galaxy in nJy, a cosmic ray in the mask, the noise in uJy."""
    rng = np.random.default_rng(5)
    image, mask = draw() + 0.5 * rng.normal(size=(SIDE, SIDE)), np.zeros((SIDE, SIDE), bool)
    image[5, 7:9], mask[5, 7:9] = 1e4, True
    return CCDData(
        image,
        unit="nJy",
        mask=mask,
        uncertainty=StdDevUncertainty(np.full(image.shape, 0.5e-3), unit="uJy"),
        wcs=sky(),
        meta={"OBJECT": "NGC 1"},
    )


@pytest.fixture(scope="module")
def result(ccddata):
    epsf = ImagePSF(psf_image(3) * 9 / psf_image(3).sum(), oversampling=3)
    return astrogen.deconvolve(ccddata, psf=epsf, num_draws=40, seed=1)


def test_from_ccddata_to_ccddata_and_table(ccddata, result):
    assert (
        result.name == "NGC 1"
        and result.observation.unit == units.nJy
        and result.observation.mask.sum() == 2
    )
    np.testing.assert_allclose(result.observation.variance[0, 0], 0.25, rtol=1e-5)
    row = result.to_table()[0]
    assert (row["flux"], row["flux_err"]) == result.flux and row["flux"] == pytest.approx(
        300, abs=5 * row["flux_err"]
    )
    assert row["name"] == "NGC 1" and row["half_light_radius"] == result.half_light_radius[0]
    table = result.to_table()
    assert (table["flux"].unit, table["half_light_radius_err"].unit, table["prior_scale"].unit) == (
        units.nJy,
        units.arcsec,
        units.Unit("arcsec/pix"),
    )
    image = result.to_ccddata()
    assert (
        image.unit == units.nJy
        and image.uncertainty.uncertainty_type == "std"
        and image.meta["OBJECT"] == "NGC 1"
        and image.meta["FLUX"] == result.flux[0]
    )
    np.testing.assert_array_equal(image.data, result.image)
    np.testing.assert_array_equal(image.uncertainty.array, result.image_std)
    side = len(result.image)
    middle = image.wcs.pixel_to_world((side - 1) / 2, (side - 1) / 2)
    assert (
        middle.separation(ccddata.wcs.pixel_to_world((SIDE - 1) / 2, (SIDE - 1) / 2)).arcsec < 1e-6
    )


def test_draws_go_to_arviz(result):
    arviz = pytest.importorskip("arviz")
    found = result.to_arviz()
    posterior = found.posterior
    assert posterior["latent"].shape == (1, *result.latent_draws.shape) and posterior[
        "image"
    ].dims == ("chain", "draw", "y", "x")
    np.testing.assert_array_equal(posterior["flux"].values[0], result.flux_draws)
    np.testing.assert_array_equal(found.constant_data["mask"].values, result.observation.mask)
    assert (
        posterior.attrs["k_hat"] == result.diagnostics["k_hat"] and posterior.attrs["unit"] == "nJy"
    )
    summary = arviz.summary(found, var_names=["flux", "shift"])
    assert summary.loc["flux", "mean"] == pytest.approx(result.flux_draws.mean(), rel=1e-2)


def test_draws_go_to_arviz_1_as_a_tree(result, monkeypatch):
    """Its InferenceData is there, but is only a name for xarray's DataTree, which takes no
    groups.
    """
    xarray = pytest.importorskip("xarray")
    one = SimpleNamespace(__version__="1.3.0", InferenceData=xarray.DataTree)
    monkeypatch.setitem(sys.modules, "arviz", one)
    found = result.to_arviz()
    assert isinstance(found, xarray.DataTree)
    assert set(found.children) == {"posterior", "observed_data", "constant_data"}
    np.testing.assert_array_equal(found["posterior/flux"].values[0], result.flux_draws)


def test_without_arviz_the_command_is_named(result, monkeypatch):
    monkeypatch.setitem(sys.modules, "arviz", None)
    with pytest.raises(
        ImportError,
        match=r"to_arviz: arviz must be installed, got .*; pip install 'astrogen\[arviz\]'",
    ):
        result.to_arviz()


def test_tables_of_several_units(observation):  # noqa: F811
    one = fake_result(observation)
    other = fake_result(
        make_observation(
            observation.image,
            psf=observation.psf,
            variance=observation.variance,
            pixel_scale=0.2,
            unit="adu",
        )
    )
    assert astrogen.results_table([one, one])["flux"].unit == units.nJy
    table = astrogen.results_table([one, other])
    assert (
        table["flux"].unit is None
        and list(table["unit"]) == ["nJy", "adu"]
        and table["half_light_radius"].unit == units.arcsec
    )


# --- stamps


@pytest.mark.parametrize(
    "uncertainty, unit",
    [
        (StdDevUncertainty(np.full((SIDE, SIDE), 500.0)), "nJy"),
        (StdDevUncertainty(np.full((SIDE, SIDE), 0.5)), "uJy"),
        (VarianceUncertainty(np.full((SIDE, SIDE), 0.25)), "uJy2"),
        (InverseVariance(np.full((SIDE, SIDE), 4.0)), "1 / uJy2"),
        (StdDevUncertainty(np.full((SIDE, SIDE), 500.0)), None),
    ],
    ids=["std", "std in other units", "variance", "weight", "no unit"],
)
def test_uncertainties_are_in_the_units_of_the_image(uncertainty, unit):
    uncertainty = type(uncertainty)(uncertainty.array, unit=unit)
    (made,), single = as_observations(
        NDData(draw(), uncertainty=uncertainty, unit="nJy", wcs=sky()), psf=psf_image()
    )
    assert single and made.unit == units.nJy and made.pixel_scale == pytest.approx(SCALE)
    np.testing.assert_allclose(made.variance, 250000.0, rtol=1e-5)


def test_noise_planes_with_units():
    made = make_observation(
        draw() * units.uJy,
        psf=psf_image(),
        sigma=np.full((SIDE, SIDE), 20.0) * units.nJy,
        pixel_scale=SCALE,
    )
    np.testing.assert_allclose(made.variance, 4e-4, rtol=1e-5)
    with pytest.raises(
        ValueError,
        match=(
            r"make_observation: variance must be convertible to the image's uJy2, got s; give both"
            r" in one unit"
        ),
    ):
        make_observation(
            draw() * units.uJy, psf=psf_image(), variance=2.0 * units.s, pixel_scale=SCALE
        )


def test_arrays_and_one_psf_each():
    cube, psfs = (
        np.stack([draw(), 2 * draw()]) + np.random.default_rng(1).normal(size=(2, SIDE, SIDE)),
        np.stack([psf_image(), psf_image()]),
    )
    made, single = as_observations(cube, psf=psfs, pixel_scale=SCALE)
    assert (
        not single
        and [one.name for one in made] == ["object 1", "object 2"]
        and made[0].psf is not made[1].psf
    )
    again, single = as_observations(made)
    assert again == made and not single
    assert (
        as_observations(made[0])[1] and as_observations(cube[0], psf=psfs[0], pixel_scale=SCALE)[1]
    )


@pytest.mark.parametrize(
    "stamps, options, message",
    [
        (lambda: draw(), {}, "as_observations: psf must be given for ndarray, got None; give psf="),
        (
            lambda: [draw()],
            {"psf": [psf_image()] * 2, "pixel_scale": SCALE},
            "as_observations: psf must be one for all or one for each of the 1 stamps, got 2",
        ),
        (
            lambda: make_observation(draw(), psf=psf_image(), sigma=1.0, pixel_scale=SCALE),
            {"psf": psf_image()},
            "psf and pixel_scale must be None for Observations",
        ),
    ],
    ids=["none", "number", "twice"],
)
def test_psfs_that_do_not_belong(stamps, options, message):
    with pytest.raises(ValueError, match=message):
        as_observations(stamps(), **options)


# --- PSFs


class Scarlet:
    """What scarlet's PSFs offer."""

    def __init__(self, cube):
        self.cube = cube

    def get_model(self):
        return self.cube


class Framed:
    """A PSF that has an image."""

    image = psf_image()


@pytest.mark.parametrize(
    "model, plane",
    [
        (psf_image(), None),
        (psf_image()[None], None),
        (np.stack([psf_image(side=31)] * 2), 1),
        (Scarlet(psf_image()[None]), None),
        (Framed(), None),
    ],
    ids=["image", "cube of one", "band", "scarlet", "image attribute"],
)
def test_images_are_effective_psfs_on_the_observed_pixels(model, plane):
    psf = astrogen.psf_from_model(model, pixel_scale=SCALE, plane=plane)
    expected = psf_image(side=len(psf.image))
    assert psf.pixel_scale == psf.pixel_response == SCALE
    np.testing.assert_allclose(psf.image, expected / expected.sum(), atol=1e-12)


@pytest.mark.parametrize(
    "side, oversampling", [(33, 1), (33, 3), (32, 4)], ids=["plain", "odd", "even"]
)
def test_photutils_models_keep_their_sampling(side, oversampling):
    image = psf_image(oversampling, side)
    psf = astrogen.psf_from_model(
        ImagePSF(image * oversampling**2 / image.sum(), oversampling=oversampling),
        pixel_scale=SCALE,
    )
    assert (
        psf.pixel_scale == pytest.approx(SCALE / oversampling)
        and psf.pixel_response == SCALE
        and len(psf.image) % 2 == 1
    )
    assert psf.fwhm == pytest.approx(
        astrogen.make_psf(psf_image(5), pixel_scale=SCALE / 5, pixel_response=SCALE).fwhm, rel=0.01
    )
    centre = np.arange(len(psf.image)) @ psf.image.sum(0)
    assert centre == pytest.approx(len(psf.image) // 2, abs=1e-3)


def odd_psf(oversampling, side):
    """Flux per observed pixel of a PSF that no mirror leaves as it is, by GalSim."""
    star = galsim.Gaussian(fwhm=0.7).shear(g1=0.15, g2=0.2)
    coma = star + 0.3 * galsim.Gaussian(fwhm=0.9).shift(0.12, 0.3)
    seen = galsim.Convolve(coma / 1.3, galsim.Pixel(SCALE))
    drawn = seen.drawImage(
        nx=side, ny=side, scale=SCALE / oversampling, method="no_pixel", dtype=float
    )
    return drawn.array * oversampling**2


@pytest.mark.parametrize("kind", ["array", "cube", "scarlet", "photutils", "photutils, a grid"])
def test_the_psf_of_a_model_lies_as_the_model_does(kind):
    """Mirrored or transposed it would still have the width of the model."""
    fine = odd_psf(3, 99)
    model = {
        "array": odd_psf(1, 33),
        "cube": odd_psf(1, 33)[None],
        "scarlet": Scarlet(odd_psf(1, 33)[None]),
        "photutils": ImagePSF(fine, oversampling=3),
        "photutils, a grid": GriddedPSFModel(
            NDData(
                np.stack([fine] * 4),
                meta={"grid_xypos": [(0, 0), (90, 0), (0, 90), (90, 90)], "oversampling": 3},
            )
        ),
    }[kind]
    psf = astrogen.psf_from_model(model, pixel_scale=SCALE, position=(30.0, 50.0))
    factor = round(SCALE / psf.pixel_scale)
    expected = odd_psf(factor, len(psf.image))
    np.testing.assert_allclose(psf.image, expected / expected.sum(), atol=1e-5 * psf.image.max())


def test_a_psf_that_varies_is_taken_where_the_galaxy_is():
    narrow, broad = (
        galsim.Gaussian(fwhm=fwhm).drawImage(nx=51, ny=51, scale=SCALE / 2, dtype=float).array * 4
        for fwhm in (0.6, 1.0)
    )
    model = GriddedPSFModel(
        NDData(
            np.stack([narrow, broad, narrow, broad]),
            meta={"grid_xypos": [(0, 0), (100, 0), (0, 100), (100, 100)], "oversampling": 2},
        )
    )
    widths = [
        astrogen.psf_from_model(model, pixel_scale=SCALE, position=(x, 50.0)).fwhm
        for x in (0.0, 50.0, 100.0)
    ]
    assert (
        widths[0] == pytest.approx(0.6, abs=0.02)
        and widths[2] == pytest.approx(1.0, abs=0.02)
        and widths[0] < widths[1] < widths[2]
    )
    with pytest.raises(
        ValueError,
        match="psf_from_model: position must be given for a PSF that varies over the exposure",
    ):
        astrogen.psf_from_model(model, pixel_scale=SCALE)
    model.x_0, model.y_0 = 100.0, 50.0
    assert astrogen.psf_from_model(model, pixel_scale=SCALE).fwhm == widths[2]


@pytest.mark.parametrize(
    "model, message",
    [
        (
            "psf.fits",
            (
                "model must be a PSF, an image or a cube, or an ImagePSF or GriddedPSFModel of"
                " photutils, got str"
            ),
        ),
        (
            np.stack([psf_image()] * 3),
            "plane must be chosen from 0 to 2 for a cube of PSFs, got None",
        ),
        (
            ImagePSF(psf_image(), oversampling=(1, 2)),
            "model must be oversampled alike along both axes, got 1 and 2",
        ),
    ],
    ids=["path", "cube", "oblong"],
)
def test_models_that_are_no_psf(model, message):
    with pytest.raises(ValueError, match=f"psf_from_model: {message}"):
        astrogen.psf_from_model(model, pixel_scale=SCALE)


# --- a stage of a pipeline


def _recipe():
    return next(
        block
        for block in re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
        if "lsst.pipe.base" in block
    )


class Declared:
    """A base class that takes keywords, and a field that stands for its default: as much of the
    Rubin pipelines as the recipe uses.
    """

    def __init_subclass__(cls, **keywords):
        super().__init_subclass__()
        cls.declared = keywords


def _field(doc, dtype, default):
    return default


def _rubin(monkeypatch):
    class Task:
        def __init__(self):
            self.config = self.ConfigClass()

    modules = {
        "lsst": {},
        "lsst.geom": {"Extent2I": lambda x, y: (x, y)},
        "lsst.pex": {},
        "lsst.pex.config": {"Field": _field, "ListField": _field},
        "lsst.pipe": {},
        "lsst.pipe.base": {
            "PipelineTaskConnections": Declared,
            "PipelineTaskConfig": type("Config", (Declared,), {}),
            "PipelineTask": Task,
            "Struct": types.SimpleNamespace,
            "connectionTypes": types.SimpleNamespace(Input=dict, Output=dict),
        },
    }
    for name, content in modules.items():
        module = types.ModuleType(name)
        vars(module).update(content)
        monkeypatch.setitem(sys.modules, name, module)
        if "." in name:
            parent, _, child = name.rpartition(".")
            setattr(sys.modules[parent], child, module)


class Exposure:
    """An exposure with one galaxy at (50, 40), as afw has it; the mask's bit 4 is a satellite's
    trail, which is not among the bad planes.
    """

    def __init__(self, pixels):
        self.image, self.variance = (
            types.SimpleNamespace(array=pixels),
            types.SimpleNamespace(array=np.full(pixels.shape, 0.25)),
        )
        flags = np.zeros(pixels.shape, int)
        flags[0, 0], flags[1, 1] = 1, 4
        self.mask = types.SimpleNamespace(
            array=flags, getPlaneBitMask=lambda names: {"BAD": 1}[names[0]]
        )

    def getCutout(self, centre, size):
        rows, columns = (
            slice(int(middle - side / 2), int(middle + side / 2))
            for middle, side in zip(centre[::-1], size[::-1], strict=True)
        )
        cutout = Exposure(self.image.array[rows, columns])
        return cutout

    def getWcs(self):
        return types.SimpleNamespace(
            getPixelScale=lambda: types.SimpleNamespace(asArcseconds=lambda: SCALE)
        )

    def getPsf(self):
        return types.SimpleNamespace(
            computeKernelImage=lambda position: types.SimpleNamespace(array=psf_image())
        )


def test_the_recipe_of_a_stage_runs(monkeypatch):
    _rubin(monkeypatch)
    namespace = {}
    exec(compile(_recipe(), "README.md", "exec"), namespace)
    assert namespace["DeconvolveConfig"].declared == {
        "pipelineConnections": namespace["DeconvolveConnections"]
    }
    task = namespace["DeconvolveTask"]()
    task.config.size, task.config.numDraws = SIDE, 8
    pixels = np.pad(draw(), ((20, 20), (30, 30))) + 0.5 * np.random.default_rng(2).normal(
        size=(80, 100)
    )
    source = types.SimpleNamespace(getCentroid=lambda: (50.0, 40.0), getId=lambda: 4711)
    galaxies = task.run(Exposure(pixels), [source]).galaxies
    assert list(galaxies["name"]) == ["4711"] and galaxies["flux"][0] == pytest.approx(300, abs=30)

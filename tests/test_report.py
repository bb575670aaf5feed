"""Figures and the page: what they show, in which order, what they escape, and that they need
nothing from outside.
"""

import base64
import json
import re
from dataclasses import replace
from html.parser import HTMLParser

import galsim
import numpy as np
import pytest
from conftest import lone_result
from matplotlib.image import imread

from astrogen.data.observation import make_observation
from astrogen.data.psf import make_psf
from astrogen.report import draw_figure, write_figure, write_report

ODD_NAME = '<script>alert("1")</script> & $\\frac{'
VOID = {"meta", "img", "br"}


class Page(HTMLParser):
    """Collects tags, text and images; complains about tags that are not closed."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.open, self.words, self.images = [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag == "img":
            self.images.append(dict(attrs)["src"])
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)

    @property
    def text(self):
        return " ".join("".join(self.words).split())


def fake_result(
    name="galaxy", *, masked=0, num_draws=12, diagnostics=None, provenance=None, shape=(30, 32)
):
    rng = np.random.default_rng(5)
    psf = make_psf(
        galsim.Gaussian(fwhm=0.7).drawImage(nx=21, ny=21, scale=0.2, method="no_pixel").array,
        pixel_scale=0.2,
    )
    model = galsim.Gaussian(fwhm=1.0, flux=50).drawImage(nx=shape[1], ny=shape[0], scale=0.2).array
    mask = np.zeros(shape, bool)
    mask[:masked, :8] = True
    observation = make_observation(
        model + 0.05 * rng.normal(size=shape),
        psf=psf,
        sigma=0.05,
        mask=mask,
        pixel_scale=0.2,
        unit="nJy",
        name=name,
    )
    flux = 50 * (1 + 0.01 * rng.normal(size=num_draws))
    draws = np.array(
        [
            galsim.Gaussian(fwhm=0.7, flux=f)
            .shear(g1=g, g2=g)
            .drawImage(nx=64, ny=64, scale=0.1, method="no_pixel")
            .array
            for f, g in zip(flux, np.linspace(0.1, 0.2, num_draws), strict=True)
        ]
    )
    return lone_result(
        observation,
        prior_scale=0.1,
        target_fwhm=0.2,
        draws=draws,
        model=model,
        latent_draws=np.zeros((num_draws, 2)),
        flux_draws=flux,
        shift_draws=np.zeros((num_draws, 2)),
        background_draws=np.zeros(num_draws),
        method="laplace",
        diagnostics=diagnostics or {},
        provenance=provenance or {"seed": 1, "versions": {"astrogen": "0.1.0"}},
    )


def pixels(axis):
    return np.asarray(axis.images[0].get_array())


def test_panels_stand_in_the_order_of_the_story():
    titles = [axis.get_title() for axis in draw_figure(fake_result()).axes[:8]]
    assert titles == [
        "Observed",
        "Model seen through the PSF",
        "Residual",
        "Deconvolved",
        "Uncertainty",
        "Imagined solution 1",
        "Imagined solution 2",
        "Imagined solution 3",
    ]


def test_panels_show_surface_brightness_on_one_stretch_and_the_residual_in_sigma():
    result = fake_result()
    axes = draw_figure(result).axes
    assert pixels(axes[0]) == pytest.approx(result.observation.image / 0.04)
    assert pixels(axes[1]) == pytest.approx(result.model / 0.04)
    assert pixels(axes[2]) == pytest.approx(result.residual / 0.05, rel=1e-4, abs=1e-6)
    assert pixels(axes[3]) == pytest.approx(result.image / 0.01)
    assert pixels(axes[4]) == pytest.approx(result.image_std / 0.01)
    assert all(
        any(np.allclose(pixels(axis), draw / 0.01) for draw in result.draws) for axis in axes[5:8]
    )
    assert len({id(axis.images[0].norm) for axis in axes[:8]}) == 2
    # A galaxy has the same brightness per arcsec^2 in both grids, so the axes must be in arcsec
    # too.
    assert axes[0].get_xlim() == pytest.approx((-3.2, 3.2)) and axes[0].get_ylim() == pytest.approx(
        (-3.0, 3.0)
    )


def test_fitted_background_is_taken_off_the_panels():
    result = fake_result()
    exposure = replace(
        result.exposures[0],
        observation=replace(result.observation, image=result.observation.image + 7),
        model=result.model + 7,
        background_draws=result.background_draws + 7,
    )
    lifted = replace(result, exposures=(exposure,))
    for plain, axis in zip(draw_figure(result).axes[:2], draw_figure(lifted).axes[:2], strict=True):
        assert pixels(axis) == pytest.approx(pixels(plain), abs=1e-3)


def test_words_name_the_quantities_the_scale_and_the_trouble():
    words = [
        text.get_text()
        for text in draw_figure(fake_result(diagnostics={"k_hat": 1.2})).findobj(
            lambda a: hasattr(a, "get_text")
        )
    ]
    text = " ".join(words)
    for wanted in (
        "flux 50",
        "nJy",
        "half-light radius",
        "e₁",
        "reduced χ²",
        "2″",
        "not converged: k-hat is 1.20",
        "surface brightness",
        "σ",
    ):
        assert wanted in text


def test_page_says_what_does_not_fit_under_the_figure(tmp_path):
    long = "not_converged: " + "long " * 50
    result = replace(fake_result(), status=("not_converged: short", long, "poor_fit: third"))
    page = Page(write_report([result], tmp_path, title="t").read_text())
    assert (
        " ".join(long.split()) in page.text
        and "poor_fit: third" in page.text
        and "not_converged: short" not in page.text
    )
    assert "and 2 more, see the file" in draw_figure(result).texts[-1].get_text()


def test_page_lists_what_failed(tmp_path):
    page = Page(
        write_report(
            [fake_result()], tmp_path, title="t", failures=[("<bad>.fits", "PSF must be <odd>")]
        ).read_text()
    )
    assert (
        "1 failed" in page.text and "<bad>.fits" in page.text and "PSF must be <odd>" in page.text
    )
    assert "failed" not in Page(write_report([fake_result()], tmp_path, title="t").read_text()).text


def test_masked_pixels_are_covered():
    clean, masked = draw_figure(fake_result()), draw_figure(fake_result(masked=6))
    assert [len(axis.images) for axis in clean.axes[:3]] == [1, 1, 1]
    assert [len(axis.images) for axis in masked.axes[:3]] == [2, 1, 2]


@pytest.mark.parametrize(
    "result",
    [
        pytest.param(fake_result(ODD_NAME, masked=3), id="odd name"),
        pytest.param(fake_result(num_draws=1), id="one draw"),
        pytest.param(fake_result(masked=40, shape=(24, 8)), id="no data"),
        pytest.param(fake_result(shape=(130, 71), masked=9), id="oblong and larger than the field"),
    ],
)
def test_every_result_has_a_figure(result, tmp_path):
    write_figure(result, tmp_path / "figure.png", dpi=40)
    assert imread(tmp_path / "figure.png").shape[:2] == (328, 560)


def test_figure_takes_its_format_from_the_name(tmp_path):
    write_figure(fake_result(), tmp_path / "figure.pdf")
    assert (tmp_path / "figure.pdf").read_bytes().startswith(b"%PDF")


@pytest.fixture(scope="module")
def page_path(tmp_path_factory):
    results = [
        fake_result("first", provenance={"seed": 1, "weights": "abc"}),
        fake_result(ODD_NAME, masked=3, diagnostics={"r_hat": 1.3}),
        fake_result("third", provenance={"seed": 2, "weights": "abc"}),
        fake_result("first"),
    ]
    return write_report(
        results, tmp_path_factory.mktemp("page") / "new", title="Run <1> & more", max_figures=2
    )


def test_page_is_one_file_that_needs_nothing_else(page_path):
    text = page_path.read_text()
    page = Page(text)
    assert not page.open and len(page.images) == 4 * 2 + 2
    assert all(
        base64.b64decode(source.removeprefix("data:image/png;base64,"), validate=True).startswith(
            b"\x89PNG"
        )
        for source in page.images
    )
    assert not {"script", "link", "iframe"} & {tag for tag, _ in page.tags}
    assert not re.search(r"https?://|@import|url\(|\son\w+=", re.sub(r'"data:[^"]*"', "", text))
    assert sorted(path.name for path in page_path.parent.iterdir())[:1] == [
        "first.png"
    ] and not list(page_path.parent.glob("*.tmp"))


def test_page_tells_values_warnings_provenance_and_what_it_leaves_out(page_path):
    page = Page(page_path.read_text())
    assert "4 objects" in page.text and "1 flagged" in page.text
    assert page.text.count("±") == 4 * 4
    assert "not converged" in page.text and any(
        "R-hat is 1.300" in attributes.get("title", "") for _, attributes in page.tags
    )
    assert "Figures are shown for the first 2 of 4 objects" in page.text
    assert (
        "seed" in page.text and "2 different ones: 1, 2" in page.text and "weightsabc" in page.text
    )
    assert [attributes.get("class") for tag, attributes in page.tags if tag == "tr"].count(
        "flagged"
    ) == 1


def test_names_and_title_are_escaped(page_path):
    page = Page(page_path.read_text())
    assert ODD_NAME in page.text and "Run <1> & more" in page.text
    assert "<script>" not in page_path.read_text()


def test_control_characters_of_names_are_shown_as_text(tmp_path):
    result = fake_result("M 51\x1b]0;evil\x07\u202e")
    failures = [("b\x1b[2J.fits", "no such\u2066 file")]
    path = write_report([result], tmp_path, title="a\x9b31m", failures=failures)
    text = path.read_text()
    assert all(line.isprintable() for line in text.split("\n"))
    assert "M 51\\x1b]0;evil\\x07\\u202e" in text and "b\\x1b[2J.fits" in text
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["M_51_0_evil.png", "index.html"]


def test_links_lead_to_figures(page_path):
    tags = Page(page_path.read_text()).tags
    targets = [attributes["href"].removeprefix("#") for tag, attributes in tags if tag == "a"]
    assert (
        targets
        == [attributes["id"] for tag, attributes in tags if tag == "section"]
        == ["object-1", "object-2"]
    )


def test_equal_results_make_equal_pages(tmp_path):
    pages = [
        write_report([fake_result()], tmp_path / name, title="t").read_bytes() for name in "ab"
    ]
    assert pages[0] == pages[1]


def test_page_holds_two_hundred_objects(tmp_path):
    results = [fake_result(f"galaxy {number}") for number in range(2)] * 100
    path = write_report(results, tmp_path, title="many", max_figures=1)
    assert Page(path.read_text()).text.count("±") == 800 and path.stat().st_size < 5e6


def test_provenance_of_any_json_type_is_shown(tmp_path):
    provenance = {"seed": None, "options": {"draws": 3, "scale": 0.1}, "list": [1, "<b>"]}
    text = Page(
        write_report(
            [fake_result(provenance=provenance)], tmp_path, title="t", max_figures=0
        ).read_text()
    ).text
    assert "draws 3, scale 0.1" in text and json.dumps([1, "<b>"]) in text

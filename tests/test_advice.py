"""Advice in the words of the interface that prints it: every message of the package, as each verb
of the command line prints it, names options that the verb has, and what it advises works.
"""

import argparse
import ast
import inspect
import re
from pathlib import Path

import galsim
import numpy as np
import pytest
from astropy.io import fits
from astropy.wcs import WCS
from test_cli import fake_deconvolve

import astrogen
from astrogen import cli
from astrogen.cli.survey import _expanded as expanded
from astrogen.cli.words import INSTEAD, in_options, reason
from astrogen.errors import InputError, InputFileError
from astrogen.galaxies.result import read_result

PACKAGE = Path(astrogen.__file__).parent
FIELD, MAPS = "data/field.py", "darkmatter/map_mass.py"
STAMPS, DRAWN = "data/observation.py", "galsim_objects/emulate.py"
# Called from Python alone: no verb gets there.
PYTHON_ONLY = ("galsim_objects/", "darkmatter/statistics/", "cli/", "report/")
COMMAND = re.compile(r"`[^`]*`")  # another command, written out, has options of its own


def _parsers():
    """{verb: its parser}, of `emulate` those of its kinds."""
    found = {}

    def _collect(parser, name):
        nested = [a for a in parser._actions if isinstance(a, argparse._SubParsersAction)]
        if not nested:
            found[name] = parser
        for action in nested:
            for verb, inner in action.choices.items():
                _collect(inner, f"{name} {verb}".strip())

    _collect(cli._parser(), "")
    return found


PARSERS = _parsers()


def _template(node):
    """The text of a string in the code, with X for what is put in when it runs; None for others."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(v.value if isinstance(v, ast.Constant) else "X" for v in node.values)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        parts = [_template(node.left), _template(node.right)]
        return None if None in parts else "".join(parts)
    return None


def _messages():
    """(module, line, text) of what is raised or warned of, and of the sentences on results."""
    for path in sorted(PACKAGE.rglob("*.py")):
        module = path.relative_to(PACKAGE).as_posix()
        if module.startswith(PYTHON_ONLY) and module != DRAWN:
            continue
        tree = ast.parse(path.read_text())
        inner = {
            id(part)
            for node in ast.walk(tree)
            if isinstance(node, (ast.JoinedStr, ast.BinOp))
            for part in ast.walk(node)
            if part is not node
        } | {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
        raised = {
            id(argument)
            for node in ast.walk(tree)
            if isinstance(node, ast.Call)
            and re.search(r"Error$|^warnings.warn$", ast.unparse(node.func))
            for argument in node.args
        }
        for node in ast.walk(tree):
            text = _template(node)
            if text and id(node) not in inner:
                if id(node) in raised or re.search(r"\w; [a-z]|\(--\w|\bgot\b", text):
                    yield module, node.lineno, " ".join(text.split())


MESSAGES = list(_messages())


def _arguments():
    """Names of the arguments of the package's functions that are no word of English."""
    names = set()
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, (ast.FunctionDef, ast.Lambda)):
                names |= {a.arg for a in [*node.args.args, *node.args.kwonlyargs]}
    return names


ARGUMENTS = _arguments()


# Modules whose messages a verb cannot print, since it never gets there.
ELSEWHERE = {
    "deconvolve": {
        "survey",
        FIELD,
        MAPS,
        "training",
        DRAWN,
    },
    "survey": {FIELD, MAPS, "training", DRAWN},
    "show": {
        *("survey/inputs.py", STAMPS),
        *(FIELD, MAPS, "training", DRAWN),
    },
    "massmap": {"survey", STAMPS, "training", DRAWN},
    "emulate kappa": {
        "survey",
        FIELD,
        MAPS,
        STAMPS,
        "training",
    },
    "emulate galaxy": {
        "survey",
        FIELD,
        MAPS,
        STAMPS,
        "training",
    },
    "train": {
        "survey",
        FIELD,
        MAPS,
        STAMPS,
        DRAWN,
    },
    "demo": {"survey", "training"},
}
# What a verb never leaves out, so that the message is not printed.
ALWAYS_GIVEN = {
    "survey": ("position and",),
    "demo": ("position and", "mask must", "psf must", "prior must"),
}


def _printed_by(verb):
    """(place, text as it is in the code, text as the verb prints it)."""
    options = argparse.Namespace(parser=PARSERS[verb])
    for module, line, text in MESSAGES:
        given = any(f": {words}" in text for words in ALWAYS_GIVEN.get(verb, ()))
        if not given and not {module, module.split("/")[0]} & ELSEWHERE[verb]:
            yield f"{module}:{line}", text, in_options(text, options)


@pytest.mark.parametrize("verb", PARSERS)
def test_every_message_names_options_that_the_verb_has(verb):
    flags = {name for action in PARSERS[verb]._actions for name in action.option_strings}
    assert len(MESSAGES) > 250
    wrong = []
    for place, _, printed in _printed_by(verb):
        printed = COMMAND.sub("", printed)
        options = set(re.findall(r"(?<![\w-])--[a-z][\w-]*", printed)) - flags
        marked = set(re.findall(r"(?<![\w.'\"/-])([a-z]\w*)=", printed)) & ARGUMENTS
        if options or marked:
            wrong.append((place, printed))
    assert not wrong


@pytest.mark.parametrize("verb", PARSERS)
def test_advice_names_no_argument_of_python(verb):
    """What is to be done stands after a semicolon."""
    known = {name for name in {*_public_arguments(), *INSTEAD} if "_" in name}
    wrong = []
    for place, _, printed in _printed_by(verb):
        advice = COMMAND.sub("", printed).partition("; ")[2]
        if known & set(re.findall(r"(?<![\w/])[a-z]+(?:_[a-z0-9]+)+\b", advice)):
            wrong.append((place, printed))
    assert not wrong


def _public_arguments():
    """Of the functions that read, make and fit what the verbs read and fit."""
    from astrogen.data import field, observation, psf

    for function in (
        *(field.read_field, field.make_field, psf.make_psf, psf.read_psf),
        *(observation.make_observation, observation.read_observation),
    ):
        yield from inspect.signature(function).parameters
    yield from ("prior_scale", "num_draws", "num_chains", "num_burnin", "num_workers")


WORDS = [  # what the library says, the verb, what it prints
    pytest.param(
        "make_psf: psf.fits must have odd sides, got (4, 4); give recentre=True if its centre lies"
        " between the middle pixels, or crop it",
        "deconvolve",
        "make_psf: psf.fits must have odd sides, got (4, 4); give --psf-recentre if its centre lies"
        " between the middle pixels, or crop it",
        id="flag",
    ),
    pytest.param(
        "make_psf: psf.fits must have odd sides, got (4, 4); give recentre=True if its centre lies"
        " between the middle pixels, or crop it",
        "survey",
        "make_psf: psf.fits must have odd sides, got (4, 4); crop it",
        id="one way of two",
    ),
    pytest.param(
        "HDU 1 is a cube of 360 planes; choose one with plane=0 to 359, got None",
        "deconvolve",
        "HDU 1 is a cube of 360 planes; choose one with --plane 0 to 359, got None",
        id="value",
    ),
    pytest.param(
        "HDU 1 is a cube of 360 planes; choose one with plane=0 to 359, got None",
        "massmap",
        "HDU 1 is a cube of 360 planes; write the plane that is meant to a file of its own",
        id="no option",
    ),
    pytest.param(
        "more than one HDU could be the sigma: 2 ERR; choose with sigma=jw.fits[ERR] or"
        " weight=jw.fits[WHT]",
        "deconvolve",
        "more than one HDU could be the sigma: 2 ERR; choose with --sigma jw.fits[ERR] or"
        " --weight jw.fits[WHT]",
        id="file",
    ),
    pytest.param(
        "map_mass: num_chains and num_draws must be at least 2 and 8, got 1 and 8; R-hat compares",
        "massmap",
        "map_mass: --chains and --draws must be at least 2 and 8, got 1 and 8; R-hat compares",
        id="subjects",
    ),
    pytest.param(
        "check_cosmology: omega_m must be within 0.2 to 0.4, got 0.9; choose one inside, or"
        " extrapolate (--extrapolate) at your own risk",
        "massmap",
        "check_cosmology: --omega-m must be within 0.2 to 0.4, got 0.9; choose one inside",
        id="an option of another verb",
    ),
    pytest.param(
        "make_psf: psf is centred +0.50, +0.50 pixels from its middle pixel; give recentre=True"
        " (--psf-recentre of astrogen deconvolve) if its middle pixel is not the star's place",
        "deconvolve",
        "make_psf: psf is centred +0.50, +0.50 pixels from its middle pixel; give --psf-recentre if"
        " its middle pixel is not the star's place",
        id="said in both ways",
    ),
    pytest.param(
        "load_prior: name must be one of ['kappa'], got 'kapa'",
        "massmap",
        "load_prior: --prior must be one of ['kappa'], got 'kapa'",
        id="name of a function's own",
    ),
    pytest.param(
        "read_rows: chunk must be whole, got junk; run it again with resume=True",
        "show",
        "read_rows: chunk must be whole, got junk; go on with `astrogen survey ... --resume`",
        id="another verb's",
    ),
    pytest.param(
        "not_converged: k-hat is 0.9: no; use method hmc",
        "deconvolve",
        "not_converged: k-hat is 0.9: no; use --method hmc",
        id="method of a result",
    ),
    pytest.param(
        "not converged: R-hat 1.2; take more draws or chains",
        "massmap",
        "not converged: R-hat 1.2; take more draws (--draws) or chains (--chains)",
        id="draws of a result",
    ),
    pytest.param(
        "not_converged: k-hat is 0.9: no; use method hmc",
        "show",
        "not_converged: k-hat is 0.9: no; use method hmc",
        id="a result of another command",
    ),
    pytest.param(
        "make_observation: image must be finite, got 3 in 'max_pixels=3', run/psf=3.fits and a_b=c",
        "deconvolve",
        "make_observation: image must be finite, got 3 in 'max_pixels=3', run/psf=3.fits and a_b=c",
        id="names of files and of others",
    ),
]


@pytest.mark.parametrize(("text", "verb", "printed"), WORDS)
def test_arguments_become_options(text, verb, printed):
    assert in_options(text, argparse.Namespace(parser=PARSERS[verb])) == printed


def test_paths_of_errors_are_left_as_they_are():
    options = argparse.Namespace(parser=PARSERS["deconvolve"])
    error = InputFileError("psf=3; or mask=2/x.fits", "is empty")
    assert reason(error, options) == "psf=3; or mask=2/x.fits: is empty"
    assert reason(InputError("a: b must be c, got bad_bits=1"), options).endswith("--bad-bits 1")


# --- advice that is followed


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """psf.fits, and what inference gets instead of being run."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(astrogen.__dict__, "deconvolve", fake_deconvolve)
    monkeypatch.setitem(astrogen.__dict__, "load_prior", lambda name: name)
    fits.writeto("psf.fits", _star(21))
    return tmp_path


def _star(side):
    return galsim.Gaussian(fwhm=0.7).drawImage(nx=side, ny=side, scale=0.2, method="no_pixel").array


def _noise(number, shape=(30, 30)):
    return 0.01 * np.random.default_rng(number).normal(size=shape).astype("f4")


def _header():
    wcs = WCS(naxis=2)
    wcs.wcs.ctype, wcs.wcs.crval, wcs.wcs.cdelt = (
        ["RA---TAN", "DEC--TAN"],
        [150, 2],
        [-0.2 / 3600, 0.2 / 3600],
    )
    return wcs.to_header()


def _write(name, planes):
    fits.HDUList(
        [fits.PrimaryHDU()]
        + [fits.ImageHDU(pixels, _header(), name=hdu) for hdu, pixels in planes.items()]
    ).writeto(name)


def _deconvolve(capsys, *words):
    """(exit code, what was said on stderr, the observation) of `astrogen deconvolve`."""
    words = [str(word) for word in words]
    out = f"out{len(list(Path().glob('out*')))}"
    code = cli.main(["deconvolve", *words, "--draws", "9", "--figures", "0", "--out", out])
    results = sorted(Path(out).glob("*.fits"))
    result = read_result(results[0]).observation if results else None
    return code, capsys.readouterr().err, result


def test_the_plane_of_a_cube_is_chosen_as_advised(folder, capsys):
    _write("cube.fits", {"SCI": np.stack([_noise(number) for number in range(3)])})
    code, said, _ = _deconvolve(capsys, "cube.fits", "--psf", "psf.fits")
    assert code == 4 and "choose one with --plane 0 to 2, got None" in said
    code, _, seen = _deconvolve(capsys, "cube.fits", "--psf", "psf.fits", "--plane", 1)
    assert code == 0 and np.array_equal(seen.image, _noise(1))


def test_the_plane_of_a_psf_is_chosen_as_advised(folder, capsys):
    _write("one.fits", {"SCI": _noise(1)})
    fits.writeto("psfs.fits", np.stack([_star(21), np.eye(21, dtype="f4")]))
    code, said, _ = _deconvolve(capsys, "one.fits", "--psf", "psfs.fits")
    assert code == 4 and "choose one with --psf-plane 0 to 1, got None" in said
    code, _, seen = _deconvolve(capsys, "one.fits", "--psf", "psfs.fits", "--psf-plane", 0)
    assert code == 0 and seen.psf.image.max() == pytest.approx(
        (_star(21) / _star(21).sum()).max(), rel=1e-4
    )


def test_an_even_psf_is_recentred_as_advised(folder, capsys):
    _write("one.fits", {"SCI": _noise(1)})
    fits.writeto("even.fits", _star(20))
    code, said, _ = _deconvolve(capsys, "one.fits", "--psf", "even.fits")
    assert code == 4 and "give --psf-recentre" in said and "recentre=" not in said
    code, _, seen = _deconvolve(capsys, "one.fits", "--psf", "even.fits", "--psf-recentre")
    psf = seen.psf.image
    offsets = np.arange(len(psf)) - len(psf) // 2
    assert code == 0 and abs(psf.sum(0) @ offsets) < 0.01 and abs(psf.sum(1) @ offsets) < 0.01


@pytest.mark.parametrize("which", ["image", "psf"])
def test_an_hdu_is_chosen_as_advised(folder, capsys, which):
    planes = (
        {"A": _noise(1), "B": _noise(2)} if which == "image" else {"A": _star(21), "B": _star(9)}
    )
    _write("two.fits", planes)
    _write("one.fits", {"SCI": _noise(1)})

    def _words(name):
        return (name, "--psf", "psf.fits") if which == "image" else ("one.fits", "--psf", name)

    code, said, _ = _deconvolve(capsys, *_words("two.fits"))
    assert code == 4 and "2 B (" in said
    assert "choose with the number in front, as two.fits[NUMBER]" in said
    code, _, seen = _deconvolve(capsys, *_words("two.fits[2]"))
    pixels = seen.image if which == "image" else seen.psf.image
    assert code == 0 and pixels.shape == planes["B"].shape


@pytest.mark.parametrize("way", ["--sigma", "--weight"])
def test_the_noise_is_chosen_as_advised(folder, capsys, way):
    planes = {"SCI": _noise(1), "ERR": np.full((30, 30), 0.01), "WHT": np.full((30, 30), 4e4)}
    _write("three.fits", planes)
    code, said, _ = _deconvolve(capsys, "three.fits", "--psf", "psf.fits")
    assert code == 4 and re.search(
        r"choose with --sigma three.fits\[ERR\] or --weight three.fits\[WHT\]", said
    )
    advised = re.search(rf"{way} (\S+)", said)[1]
    code, _, seen = _deconvolve(capsys, "three.fits", "--psf", "psf.fits", way, advised)
    assert code == 0
    assert seen.variance == pytest.approx({"--sigma": 1e-4, "--weight": 2.5e-5}[way])


@pytest.mark.parametrize(
    ("image", "words", "advice", "more"),
    [
        pytest.param(
            np.where(np.arange(900).reshape(30, 30) < 600, np.nan, 1),
            ["--sigma", "1"],
            "mask them or raise --max-bad-fraction",
            ["--max-bad-fraction", "0.9"],
            id="bad pixels",
        ),
        pytest.param(
            np.ones((30, 30)),
            [],
            "give --variance, --sigma or --weight",
            ["--sigma", "1"],
            id="noise",
        ),
        pytest.param(
            np.ones((30, 30)),
            ["--sigma", "1", "--bad-bits", "4"],
            "--mask must be given with --bad-bits, got --bad-bits [4] and no mask in image.npy;"
            " give --mask",
            ["--mask", "mask.npy"],
            id="mask",
        ),
    ],
)
def test_what_is_advised_works(folder, capsys, image, words, advice, more):
    np.save("image.npy", image)
    np.save("mask.npy", np.zeros((30, 30), int))
    words = ["image.npy", "--psf", "psf.fits", "--pixel-scale", "0.2", *words]
    code, said, _ = _deconvolve(capsys, *words)
    assert code == 4 and advice in said
    code, said, _ = _deconvolve(capsys, *words, *more)
    assert code == 0, said


def test_the_pixel_scale_is_given_as_advised(folder, capsys):
    np.save("image.npy", _noise(1))
    code, said, _ = _deconvolve(capsys, "image.npy", "--psf", "psf.fits")
    assert code == 4 and "give --pixel-scale in arcsec per pixel" in said
    code, _, seen = _deconvolve(capsys, "image.npy", "--psf", "psf.fits", "--pixel-scale", 0.3)
    assert code == 0 and seen.pixel_scale == 0.3


def test_a_large_image_is_read_as_advised(folder, capsys):
    _write("large.fits", {"SCI": _noise(1, (150, 150))})
    words = ["large.fits", "--psf", "psf.fits", "--max-pixels"]
    code, said, _ = _deconvolve(capsys, *words, 10000)
    assert code == 4 and "more than 10000 pixels; raise --max-pixels if that is meant" in said
    assert _deconvolve(capsys, *words, 150**2)[0] == 0


def test_images_of_a_survey_may_choose_their_hdu(folder):
    for name in ("a1.fits", "a2.fits", "b[1].fits"):
        Path(name).touch()
    assert expanded(["a*.fits[SCI]"]) == ["a1.fits[SCI]", "a2.fits[SCI]"]
    assert expanded(["a1.fits[2]", "b[1].fits"]) == ["a1.fits[2]", "b[1].fits"]
    assert expanded(["a[12].fits"]) == ["a1.fits", "a2.fits"]
    with pytest.raises(InputError, match=r"survey: c.fits\[1\] must match files, got none"):
        expanded(["c.fits[1]"])

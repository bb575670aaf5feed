"""Readers, small files for each, ways to damage them, and a process in which that is safe to try.

A case is (reader, number): equal cases are equal bytes. What a case came to is one word: `read`,
`refused` (an error of astrogen), or what must not be: `changed` (other values than were written,
although the file carries checksums), `foreign` (another exception), `memory`; the parent adds
`hang` and `crash`.
"""

import contextlib
import hashlib
import io
import json
import multiprocessing
import resource
import signal
import subprocess
import sys
import tempfile
import traceback
import warnings
import zipfile
import zlib
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import survey_stand_in as stand_in
from astropy.io import fits
from astropy.table import Table
from astropy.wcs import WCS

from astrogen.errors import AstrogenError

CPU_SECONDS, WALL_SECONDS = 20, 180  # of one case; the second for what waits without working
MEMORY = 6 * 2**30  # bytes of address space that a case may add
NUMBERS = (0, 1, -1, 2, 8, -32, 255, 1000, 10**6, 2**31, 10**9, 10**12, -(10**12), 2**63, 10**30)
WORDS = (
    "",
    "x",
    "'",
    '"',
    "&",
    "nan",
    "1e999",
    "--",
    "\x1b]0;evil\x07",
    "\u202e",
    "(",
    "{",
    "[" * 3000,
)
KEYWORDS = (
    "NAXIS", "NAXIS1", "NAXIS2", "NAXIS3", "BITPIX", "PCOUNT", "GCOUNT", "GROUPS", "TFIELDS", "THEAP",
    "TFORM1", "TDIM1", "TTYPE1", "TNULL1", "TSCAL1", "TZERO1", "TUNIT1", "TDISP1", "ZIMAGE",
    "ZNAXIS", "ZNAXIS1", "ZTILE1", "ZBITPIX", "ZCMPTYPE", "ZVAL1", "XTENSION", "EXTNAME", "EXTVER",
    "SIMPLE", "CONTINUE", "END", "BSCALE", "BZERO", "BLANK", "BUNIT", "WCSAXES", "A_ORDER",
    "CTYPE1", "CRVAL1", "CRPIX1", "CD1_1", "CDELT1", "PV1_1", "CUNIT1", "RADESYS", "EQUINOX",
)  # fmt: skip
FORMS = (
    "1E",
    "PE(9)",
    "QD(99999999)",
    "1000000000000E",
    "0E",
    "9X",
    "16A",
    "F10.3",
    "A99999",
    "1Z",
)


class Reader(NamedTuple):
    """make(folder) writes a sound file and returns its path; read(folder) reads it; kind: which
    damage is meant for it; checksums: no other values may come out; vouch(folder) makes what
    belongs to the file agree with its damage; share: of the cases, where a file is large; such a
    file is tried among the many alone."""

    make: callable
    read: callable
    kind: str = "bytes"
    checksums: bool = False
    vouch: callable = None
    share: float = 1.0


# --- damage


def damage(content, kind, rng):
    """Other bytes: one blind change or one that is meant for the kind of file, sometimes
    several.
    """
    for _ in range(1 if rng.random() < 0.7 else int(rng.integers(2, 6))):
        aimed = AIMED.get(kind)
        content = (aimed if aimed and rng.random() < 0.6 else _blind)(content, rng)
    return content


def _blind(content, rng):
    content = bytearray(content or b"\0")
    place, much = int(rng.integers(len(content))), int(2 ** rng.uniform(0, 11))
    noise = rng.bytes(min(much, 64))
    match int(rng.integers(8)):
        case 0:
            content[place] ^= 1 << int(rng.integers(8))
        case 1:
            content[place] = int(rng.integers(256))
        case 2:
            del content[place:]
        case 3:
            del content[place : place + much]
        case 4:
            content[place:place] = noise
        case 5:
            content[place : place + much] = bytes(len(content[place : place + much]))
        case 6:
            content[place:place] = content[place : place + much]
        case 7:
            tail = len(content) - 1 - min(place, len(content) - 1) % 64
            content[tail] = int(rng.integers(256))
    return bytes(content)


def _fits_card(content, rng):
    """Another value, or another keyword, in one card of a header; or one card more."""
    cards = [
        place
        for place in range(0, len(content) - 79, 80)
        if content[place + 8 : place + 10] == b"= " and content[place : place + 1].isalpha()
    ]
    if not cards:
        return content
    place = int(rng.choice(cards))
    keyword = content[place : place + 8].decode("latin-1")
    if rng.random() < 0.5:
        keyword = str(rng.choice(KEYWORDS))
    value = rng.choice(["number", "word", "form", "truth", "real"])
    text = {
        "number": f"{NUMBERS[rng.integers(len(NUMBERS))]:>20d}",
        "word": f"'{WORDS[rng.integers(len(WORDS) - 1)]}'",
        "form": f"'{FORMS[rng.integers(len(FORMS))]:8s}'",
        "truth": f"{'TF'[rng.integers(2)]:>20s}",
        "real": f"{rng.choice([1e300, -0.5, 1e-300]):>20G}",
    }[str(value)]
    card = f"{keyword:8.8s}= {text}".encode("latin-1", "replace")[:80].ljust(80)
    if rng.random() < 0.2:  # instead of a blank card or the END
        place = content.find(b" " * 80, place // 2880 * 2880)
    return content[:place] + card + content[place + 80 :] if place >= 0 else content


def _json_value(content, rng):
    """Another value, or none, somewhere in a tree."""
    try:
        tree = json.loads(content)
    except (ValueError, RecursionError):
        return _blind(content, rng)
    place, parent = tree, None
    while isinstance(place, dict | list) and place:
        keys = list(place) if isinstance(place, dict) else range(len(place))
        parent, key = place, keys[int(rng.integers(len(keys)))]
        place = place[key]
        if rng.random() < 0.3:
            break
    if parent is None:
        return content
    values = [*NUMBERS, *WORDS, None, True, 0.5, -1e308, [], {}, [[]] * 40, {"a": [1]}, "../x"]
    if rng.random() < 0.2:
        del parent[key]
    else:
        parent[key] = values[int(rng.integers(len(values)))]
    text = json.dumps(tree)
    if rng.random() < 0.1:
        text = text.replace("1", "9" * int(rng.choice([25, 5000])), 1)
    if rng.random() < 0.1:
        text = text.replace(":", ":" + "[" * int(rng.choice([100, 100_000])), 1)
    return text.encode()


def _npy_header(content, rng):
    if not content.startswith(b"\x93NUMPY"):
        return _blind(content, rng)
    shapes = ("()", "(0,)", "(-1,)", "(1000000000000,)", "(2, -3, -4)", "(1e9,)", "(True,)", "x")
    kinds = ("'|O'", "'<f4'", "'>f8'", "'|V0'", "'<U9'", "'<c16'", "[('a','<f4')]", "'M8[s]'")
    text = (
        f"{{'descr': {rng.choice(kinds)}, 'fortran_order': {rng.choice(['True', 'False', '3'])},"
        f" 'shape': {rng.choice(shapes)}, }}"
    )
    length = int.from_bytes(content[8:10], "little")
    return content[:10] + text.encode()[:length].ljust(length) + content[10 + length :]


def _npz_member(content, rng):
    """An archive whose members have been damaged, packed again with right checks."""
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            members = {name: archive.read(name) for name in archive.namelist()}
    except Exception:
        return _blind(content, rng)
    stream, chosen = io.BytesIO(), str(rng.choice(list(members)))
    members[chosen] = (_npy_header if rng.random() < 0.6 else _blind)(members[chosen], rng)
    if rng.random() < 0.1:
        members["bomb.npy"] = bytes(2**28)
    with zipfile.ZipFile(stream, "w", int(rng.choice([0, 8, 12, 14]))) as archive:
        for name, member in members.items():
            archive.writestr(name, member)
    return stream.getvalue()


def _text_token(content, rng):
    """Another token in a text."""
    tokens = content.split(b" " if rng.random() < 0.5 else b"\n")
    other = rng.choice(["number", "word", "none"])
    tokens[int(rng.integers(len(tokens)))] = {
        "number": str(NUMBERS[rng.integers(len(NUMBERS))]).encode(),
        "word": WORDS[rng.integers(len(WORDS))].encode(),
        "none": b"",
    }[str(other)]
    return (b" " if content.count(b" ") + 1 == len(tokens) else b"\n").join(tokens)


def _tail(content, rng):
    """The footer, where Parquet and zip keep their directories."""
    cut = max(0, len(content) - 2000)
    return content[:cut] + _blind(content[cut:], rng)


AIMED = {
    "fits": _fits_card,
    "json": _json_value,
    "npy": _npy_header,
    "npz": _npz_member,
    "text": _text_token,
    "tail": _tail,
}


def without_checksums(content):
    """A FITS file whose checksums have become comments."""
    cards = [content[place : place + 80] for place in range(0, len(content), 80)]
    return b"".join(
        b"COMMENT".ljust(80) if card[:8] in (b"CHECKSUM", b"DATASUM ") else card for card in cards
    )


# --- readers


def _wcs(kind="TAN"):
    wcs = WCS(naxis=2)
    wcs.wcs.ctype, wcs.wcs.crval = [f"RA---{kind}", f"DEC--{kind}"], [150.0, 2.0]
    wcs.wcs.crpix, wcs.wcs.cdelt = [12.5, 12.5], [-5.5e-5, 5.5e-5]
    return wcs


def _stamp():
    from astrogen.data.observation import make_observation

    image = np.random.default_rng(1).normal(size=(24, 24)).astype(np.float32)
    return make_observation(
        image, psf=_psf(), variance=np.ones((24, 24), np.float32), wcs=_wcs(), name="a"
    )


def _psf(side=9):
    from astrogen.data.observation import make_psf

    x = np.arange(side) - side // 2
    image = np.exp(-(x**2 + x[:, None] ** 2) / 4)
    return make_psf(image / image.sum(), pixel_scale=0.198)


def _image(folder, *, name="a.fits", checksum=False, kind="TAN"):
    rng, header = np.random.default_rng(2), _wcs(kind).to_header()
    hdus = [
        fits.PrimaryHDU(),
        fits.ImageHDU(rng.normal(size=(24, 24)).astype(">f4"), header, "SCI"),
    ]
    hdus += [fits.ImageHDU(np.ones((24, 24), np.float32), name="VARIANCE")]
    hdus += [fits.ImageHDU(np.zeros((24, 24), np.int16), name="MASK")]
    fits.HDUList(hdus).writeto(folder / name, checksum=checksum)
    return folder / name


def _compressed(compression):
    def make(folder):
        image = np.random.default_rng(3).integers(0, 99, (24, 24)).astype(np.int16)
        hdu = fits.CompImageHDU(image, compression_type=compression, tile_shape=(8, 24))
        fits.HDUList([fits.PrimaryHDU(), hdu]).writeto(folder / "a.fits")
        return folder / "a.fits"

    return make


def _observed(folder, name="a.fits", **how):
    from astrogen.data.observation import read_observation

    seen = read_observation(folder / name, psf=_psf(), pixel_scale=0.198, **how)
    return [seen.image, seen.variance, seen.mask]


def _planes(folder):
    from astrogen.data.images import read_images

    return [plane.pixels for plane in read_images(folder / "a.fits")]


def _npy(folder):
    np.save(folder / "a.npy", np.ones((24, 24), np.float32))
    return folder / "a.npy"


def _psfex(folder):
    table = fits.BinTableHDU(Table({"PSF_MASK": np.ones((1, 3, 9, 9), np.float32)}))
    cards = {"POLNAXIS": 2, "POLNGRP": 1, "POLDEG1": 1, "POLNAME1": "X_IMAGE", "PSF_SAMP": 1.0}
    cards |= {"POLNAME2": "Y_IMAGE", "POLZERO1": 9.0, "POLZERO2": 9.0, "POLSCAL1": 9.0}
    table.header.update(cards | {"POLSCAL2": 9.0})
    fits.HDUList([fits.PrimaryHDU(), table]).writeto(folder / "a.psf")
    return folder / "a.psf"


def _psf_image(folder):
    fits.PrimaryHDU(np.asarray(_psf().image, np.float32)).writeto(folder / "a.psf")
    return folder / "a.psf"


def _read_psf(folder):
    from astrogen.data.observation import read_psf

    return [read_psf(folder / "a.psf", pixel_scale=0.2, position=(9.0, 8.0)).image]


CATALOGUE = {"id": ["07", "a b", "c"], "ra": [1.0, 2.0, 3.0], "dec": [4.0, 5.0, 6.0]}


def _catalogue(name, kind, **how):
    def make(folder):
        Table(CATALOGUE).write(folder / name, format=kind, **how)
        if name == "a.sum":
            with fits.open(folder / name) as hdus:
                content = io.BytesIO()
                hdus.writeto(content, checksum=True)
            (folder / name).write_bytes(content.getvalue())
        return folder / name

    return make


def _variable(folder):
    lengths = np.array([np.arange(n, dtype=np.float32) for n in (1, 5, 3)], object)
    columns = [fits.Column("ra", "E", array=[1, 2, 3]), fits.Column("dec", "PE()", array=lengths)]
    table = fits.BinTableHDU.from_columns(columns)
    fits.HDUList([fits.PrimaryHDU(), table]).writeto(folder / "a.fits")
    return folder / "a.fits"


def _read_catalogue(name):
    def read(folder):
        from astrogen.survey.inputs import read_catalogue

        ident, sky, _ = read_catalogue(folder / name)
        return [ident, sky.ra.deg, sky.dec.deg]

    return read


def _read_table(folder):
    from astrogen.data.tables import read_table

    return [list(read_table(next(folder.glob("a.*"))).columns)]


def _sextractor(folder):
    (folder / "a.cat").write_text("#  1 NUMBER  n\n#  2 X_IMAGE  x\n  1  3.5\n  2  4.5\n")
    return folder / "a.cat"


def _images_table(folder):
    Table({"image": ["e.fits"], "psf": ["p.npy"], "sigma": ["2.0"]}).write(folder / "a.csv")
    return folder / "a.csv"


def _list_exposures(folder):
    from astrogen.survey.inputs import list_exposures

    return [list(map(str, list_exposures([folder / "a.csv"])[0]))]


def _read_field(folder):
    from astrogen.data.field import read_field

    return [read_field([f"{folder / 'a.fits'}[SCI]"], noise=[0.1]).maps]


def _make_result():
    from conftest import lone_result

    rng = np.random.default_rng(4)
    draws = np.abs(rng.normal(size=(8, 32, 32)))
    return lone_result(
        _stamp(), prior_scale=0.1, target_fwhm=0.2, draws=draws, model=np.ones((24, 24)),
        latent_draws=rng.normal(size=(8, 3)), flux_draws=draws.sum((1, 2)),
        shift_draws=np.zeros((8, 2)), background_draws=np.zeros(8), method="laplace",
        diagnostics={"k_hat": 0.1}, provenance={"seed": 1},
    )  # fmt: skip


def _result(folder):
    _make_result().write_fits(folder / "a.fits")
    return folder / "a.fits"


def _bare(make):
    def bare(folder):
        path = make(folder)
        path.write_bytes(without_checksums(path.read_bytes()))
        return path

    return bare


def _read_result(folder):
    from astrogen.galaxies.result import read_result

    found = read_result(folder / "a.fits")
    return [found.image, found.draws, found.flux, found.status, found.name, found.model]


def _joint_result(folder):
    from astrogen.galaxies import conclude

    rng, stamps = np.random.default_rng(8), [_stamp(), _stamp()]
    planes = [np.ones((24, 24), np.float32)] * 2
    source = conclude.make_source(
        stamps[0], "a", conclude.Grid(0.1, 0.2),
        conclude.Drawn(
            np.abs(rng.normal(size=(4, 2, 16, 16))), np.zeros((4, 2)), rng.normal(size=(4, 3))
        ),
        colours=conclude.Colours(("g", "r"), "r", 1.0), models=planes, residual_amplitude=0.1,
    )  # fmt: skip
    exposures = [
        conclude.make_exposure(
            stamp, light=plane, background_draws=np.zeros(4), num_fitted=3.0, band=band
        )
        for stamp, plane, band in zip(stamps, planes, ("g", "r"), strict=True)
    ]
    conclude.make_result(
        [source, source], exposures, method="laplace", diagnostics={"k_hat": 0.1},
        provenance={"seed": 1},
    ).write_fits(folder / "a.fits")  # fmt: skip
    return folder / "a.fits"


def _read_joint_result(folder):
    from astrogen import read_result

    found = read_result(folder / "a.fits")
    values = [found.status]
    for source in found.sources:
        values += [source.images, source.draws, source.flux_draws, source.wcs, *source.models]
    for one in found.exposures:
        values += [one.model, one.residual, one.background_draws, one.band, one.fit]
    return values


def _best(folder):
    from astrogen.training.wgan import TOLD, write_best

    write_best(folder / "best.npz", _network(), dict.fromkeys(TOLD, 0.5))
    return folder / "best.npz"


def _network():
    import keras

    return keras.Sequential([keras.Input((3,)), keras.layers.Dense(4), keras.layers.Dense(1)])


def _read_best(folder):
    from astrogen.training.wgan import read_best

    network = _network()
    told = read_best(folder / "best.npz", network)
    return [*network.get_weights(), told]


def _massmap(folder):
    from astrogen.darkmatter.map_mass import MassMap
    from astrogen.data.field import make_field

    plane = np.random.default_rng(5).normal(size=(8, 8)).astype(np.float32)
    MassMap(
        field=make_field(plane, noise=1.0, pixel_scale=2.3), mean=plane, std=plane, ks=None,
        draws=np.stack([plane] * 3), cosmology_draws=np.ones((3, 2), np.float32), wiener=plane,
        diagnostics={"r_hat": 1.0}, converged=True, status=(), provenance={"cosmology": [0.3, 0.8]},
    ).write_fits(folder / "a.fits")  # fmt: skip
    return folder / "a.fits"


def _read_massmap(folder):
    from astrogen.darkmatter.map_mass import read_massmap

    found = read_massmap(folder / "a.fits")
    return [found.mean, found.draws, found.cosmology_draws, found.status, found.field.variance]


def _prior(folder):
    from astrogen.priors.storage import write_weights

    rng = np.random.default_rng(6)
    card = {
        "kind": "basis", "name": "tiny", "pixel_scale": 0.1, "target_fwhm": 0.2, "latent": 2,
        "encoder_widths": [], "decoder_widths": [], "floor": 0.01, "log_amplitude": [0.3, 0.5],
        "tilt": 0.4,
    }  # fmt: skip
    dense = {"weight_00": rng.normal(size=(3, 4)), "weight_01": np.zeros(4)}
    arrays = {
        "basis": {"images": rng.normal(size=(3, 8, 8)), "mean": np.zeros(3), "std": np.ones(3)},
        "encoder": dense,
        "decoder": {
            "weight_00": rng.normal(size=(2, 6)), "weight_01": np.zeros(6),
            "whitening_mean": np.zeros(2), "whitening_factor": np.eye(2),
        },
    }  # fmt: skip
    write_weights(folder, card=card, arrays=arrays)
    return folder / "card.json"


def _weights(folder):
    _prior(folder)
    return folder / "decoder.npz"


def _vouch_for_weights(folder):
    """The card states the sha256 of the damaged file, and the arrays if it is one of arrays."""
    card, content = (
        json.loads((folder / "card.json").read_text()),
        (folder / "decoder.npz").read_bytes(),
    )
    card["files"]["decoder.npz"]["sha256"] = hashlib.sha256(content).hexdigest()
    (folder / "card.json").write_text(json.dumps(card))


def _load_prior(folder):
    from astrogen.priors import load_prior

    return [load_prior(folder).basis.numpy()]


def _drawn(start, stop):
    """Records of one field."""
    return [{"kappa": np.full((4, 4), index), "omega_m": 0.3, "sigma_8": 0.8, "simulation": index,
             "index": index} for index in range(start, stop)], []  # fmt: skip


def _records(name):
    def make(folder):
        from data_pipelines.records import _write_manifest, _write_shard

        fields = {"kappa": {"dtype": "float32", "shape": [4, 4], "unit": ""}}
        fields |= {n: {"dtype": "float32", "shape": [], "unit": ""} for n in ("omega_m", "sigma_8")}
        fields |= {n: {"dtype": "int64", "shape": [], "unit": ""} for n in ("simulation", "index")}
        header = {"kind": "convergence", "num": 3, "shard_size": 3, "pixel_scale": 2.3,
                  "fields": fields, "transform": "kappa"}  # fmt: skip
        shard = _write_shard(folder / "a.tfrecord", [_drawn(0, 3)], fields, _Silent())
        _write_manifest(folder, header, [{"start": 0, "stop": 3, **shard}])
        return folder / name

    return make


class _Silent:
    """A progress bar that is none."""

    def update(self, num):
        pass


def _vouch_for_records(folder):
    from astrogen.training.records import digest

    try:
        manifest = json.loads((folder / "manifest.json").read_text())
        for shard in manifest["shards"]:
            content = (folder / "a.tfrecord").read_bytes()
            shard["sha256"] = hashlib.sha256(content).hexdigest()
        manifest["sha256"] = digest(manifest)
        (folder / "manifest.json").write_text(json.dumps(manifest))
    except (ValueError, KeyError, TypeError, RecursionError):
        pass  # no manifest is left to vouch for anything


def _load_maps(folder):
    from astrogen.training.records import load_maps

    return list(load_maps(folder).values())


def _spectrum(folder):
    rng, grid = np.random.default_rng(7), [(m, s) for m in (0.2, 0.3, 0.4) for s in (0.6, 0.8, 1.0)]
    told = {
        "what": "theory", "cosmologies": grid, "source_redshift": 1.0,
        "spectrum": rng.uniform(1, 2, (9, 30)).tolist(),
        "multipoles": np.geomspace(50, 6700, 30).tolist(),
    }  # fmt: skip
    (folder / "a.json").write_text(json.dumps(told))
    return folder / "a.json"


def _read_theory(folder):
    from astrogen.training.spectra import read_theory

    theory, redshift = read_theory(folder / "a.json")
    return [*theory, redshift]


@lru_cache(maxsize=1)
def _finished_run():
    """{path: content} of a finished survey run, whose fit takes no time, and of what it was made
    from; made once for all that reads of it.
    """
    with tempfile.TemporaryDirectory() as root:
        folder = Path(root)
        stand_in.write_inputs(folder)
        program = [sys.executable, stand_in.__file__, *stand_in.arguments(folder, folder / "run")]
        subprocess.run(program, check=True, capture_output=True)
        paths = [path for path in folder.rglob("*") if path.is_file()]
        return {path.relative_to(folder): path.read_bytes() for path in paths}


def _survey(name):
    """One file of a finished survey run."""

    def make(folder):
        for path, content in _finished_run().items():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_bytes(content)
        return folder / "run" / name

    return make


def _read_survey(folder):
    from astrogen.survey import read_object, read_survey

    table = read_survey(folder / "run")
    values = [np.asarray(table[name]) for name in table.colnames]
    return [*values, *(read_object(folder / "run", f"o{number}").draws for number in (0, 11))]


def _resume_survey(folder):
    """The bytes of a run that is gone on with: those of the whole one, whatever had to be done
    again.
    """
    from astrogen import cli

    stand_in.stay_here()
    told = stand_in.arguments(folder, folder / "run")
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        assert cli.main(["--traceback", "survey", *told, "--resume"]) == 0
    paths = sorted(path for path in (folder / "run").rglob("*") if path.is_file())
    return [part for path in paths for part in (path.name, np.frombuffer(path.read_bytes(), "u1"))]


def _maps(name, content):
    def make(folder):
        (folder / name).write_bytes(content())
        return folder / name

    return make


def _fits_map(side=80, **cards):
    stream, hdu = io.BytesIO(), fits.PrimaryHDU(np.ones((side, side), np.float32))
    hdu.header.update(cards)
    hdu.writeto(stream)
    return stream.getvalue()


def _sky():
    stream = io.BytesIO()
    np.save(stream, np.ones(12 * 2048**2, np.int8))
    return stream.getvalue()


def _read_maps(name, map_format, scale=None):
    def read(folder):
        from data_pipelines.maps import read_maps

        return [read_maps(folder / name, map_format=map_format, map_pixel_scale=scale)]

    return read


def _real_catalogue(name):
    def make(folder):
        stamp = np.asarray(_psf(11).image, np.float32)
        for file in ("images.fits", "psfs.fits"):
            fits.PrimaryHDU(stamp).writeto(folder / file)
        Table({
            "IDENT": [1], "MAG": [20.0], "BAND": ["I"], "WEIGHT": [1.0], "PIXEL_SCALE": [0.03],
            "GAL_FILENAME": ["images.fits"], "GAL_HDU": [0], "PSF_FILENAME": ["psfs.fits"],
            "PSF_HDU": [0], "NOISE_MEAN": [0.0], "NOISE_VARIANCE": [1.0],
        }).write(folder / "catalog.fits")  # fmt: skip
        return folder / name

    return make


def _read_real(folder):
    from data_pipelines import real

    real._open.cache_clear()
    real._check_layout.cache_clear()
    real.recipe(folder / "catalog.fits", stamp=16, psf_stamp=9)
    records, skipped = real.read_entries(folder / "catalog.fits", 16, 9, 0, 1)
    return [len(records), len(skipped)]


def _own_json(folder):
    (folder / "a.json").write_text(json.dumps({"a": [1, 2.5, "x"], "b": {"c": None}}))
    return folder / "a.json"


def _read_json(folder):
    from astrogen.data.reading import read_json

    return [str(read_json(folder / "a.json"))]


SURVEY = {
    "manifest": ("manifest.json", "json"),
    "ledger": ("ledger.json", "json"),
    "chunk": ("chunks/000000.npz", "npz"),
    "index": ("chunks/000000.json", "json"),
    "catalogue": ("catalogue.parquet", "tail"),
    "failures": ("failures.ecsv", "text"),
}
READERS = {
    "image": Reader(_image, _observed, "fits"),
    "image_with_checksums": Reader(lambda f: _image(f, checksum=True), _planes, "fits", True),
    "image_gzip": Reader(
        lambda f: _image(f, name="a.fits.gz"), lambda f: _observed(f, "a.fits.gz")
    ),
    "image_tpv": Reader(lambda f: _image(f, kind="TPV"), _observed, "fits"),
    "cutout": Reader(_image, lambda f: _observed(f, position=(9.0, 9.0), size=8), "fits"),
    "image_npy": Reader(_npy, lambda f: _observed(f, "a.npy", variance=1.0), "npy"),
    **{
        f"image_{kind.lower()}": Reader(_compressed(kind), _planes, "fits")
        for kind in ("RICE_1", "GZIP_1", "GZIP_2", "PLIO_1", "HCOMPRESS_1")
    },
    "psfex": Reader(_psfex, _read_psf, "fits"),
    "psf": Reader(_psf_image, _read_psf, "fits"),
    "catalogue_fits": Reader(_catalogue("a.fits", "fits"), _read_catalogue("a.fits"), "fits"),
    "catalogue_sum": Reader(_catalogue("a.sum", "fits"), _read_catalogue("a.sum"), "fits", True),
    "catalogue_variable": Reader(_variable, _read_table, "fits"),
    "catalogue_ecsv": Reader(_catalogue("a.ecsv", "ascii.ecsv"), _read_catalogue("a.ecsv"), "text"),
    "catalogue_csv": Reader(_catalogue("a.csv", "ascii.csv"), _read_catalogue("a.csv"), "text"),
    "catalogue_parquet": Reader(
        _catalogue("a.parquet", "parquet"), _read_catalogue("a.parquet"), "tail"
    ),
    "catalogue_sextractor": Reader(_sextractor, _read_table, "text"),
    **{
        f"votable_{kind}": Reader(
            _catalogue("a.vot", "votable", tabledata_format=kind), _read_catalogue("a.vot"), "text"
        )
        for kind in ("tabledata", "binary", "binary2")
    },
    "table_of_images": Reader(_images_table, _list_exposures, "text"),
    "field": Reader(_image, _read_field, "fits"),
    "result": Reader(_result, _read_result, "fits", True),
    "result_without_checksums": Reader(_bare(_result), _read_result, "fits"),
    "joint_result": Reader(_joint_result, _read_joint_result, "fits", True),
    "joint_result_without_checksums": Reader(_bare(_joint_result), _read_joint_result, "fits"),
    "massmap": Reader(_massmap, _read_massmap, "fits", True),
    "massmap_without_checksums": Reader(_bare(_massmap), _read_massmap, "fits"),
    "prior_card": Reader(_prior, _load_prior, "json"),
    "prior_weights": Reader(_weights, _load_prior, "npz", True),
    "prior_weights_vouched": Reader(_weights, _load_prior, "npz", vouch=_vouch_for_weights),
    "records_manifest": Reader(_records("manifest.json"), _load_maps, "json", True),
    "records_manifest_vouched": Reader(
        _records("manifest.json"), _load_maps, "json", vouch=_vouch_for_records
    ),
    "records_shard": Reader(_records("a.tfrecord"), _load_maps, checksums=True),
    "records_shard_vouched": Reader(_records("a.tfrecord"), _load_maps, vouch=_vouch_for_records),
    "spectrum": Reader(_spectrum, _read_theory, "json"),
    **{
        f"survey_{kind}{verb}": Reader(_survey(name), read, how, True)
        for kind, (name, how) in SURVEY.items()
        for verb, read in (("", _read_survey), ("_resumed", _resume_survey))
    },
    "best": Reader(_best, _read_best, checksums=True),
    "best_packed_again": Reader(_best, _read_best, "npz"),
    "json": Reader(_own_json, _read_json, "json"),
    "maps_columbia": Reader(
        _maps("a.fits", lambda: _fits_map(ANGLE=3.0)), _read_maps("a.fits", "columbia"), "fits"
    ),
    "maps_ktng": Reader(_maps("a.dat", _fits_map), _read_maps("a.dat", "ktng", 2.3), "fits"),
    "maps_healpix": Reader(
        _maps("a.npy", _sky), _read_maps("a.npy", "cosmogrid"), "npy", share=0.1
    ),
    "real_catalogue": Reader(_real_catalogue("catalog.fits"), _read_real, "fits"),
    "real_images": Reader(_real_catalogue("images.fits"), _read_real, "fits"),
}


# --- cases, in a process of their own


def run_case(reader, pristine, folder, path, number, name):
    """What became of one case, in one word, and what is to be said about it."""
    rng = np.random.default_rng([20261125, number, zlib.crc32(name.encode())])
    for file, content in pristine.items():
        file.write_bytes(content)
    path.write_bytes(damage(pristine[path], reader.kind, rng))
    if reader.vouch:
        reader.vouch(folder)
    try:
        found = _fingerprint(reader.read(folder))
    except AstrogenError as error:
        cause = error
        while cause is not None and not isinstance(cause, MemoryError):
            cause = cause.__cause__
        return ("memory" if cause else "refused"), str(error)[:200]
    except MemoryError:
        return "memory", traceback.format_exc()
    except Exception:
        return "foreign", traceback.format_exc()
    return "read", found


def _fingerprint(values):
    digest = hashlib.sha256()
    for value in values:
        digest.update(value.tobytes() if hasattr(value, "tobytes") else str(value).encode())
    return digest.hexdigest()


def serve(connection):
    """Answer (name of a reader, number) with (word, told) until nothing more comes."""
    warnings.simplefilter("ignore")
    np.seterr(all="ignore")
    made = {}
    with tempfile.TemporaryDirectory() as root:
        while (case := connection.recv()) is not None:
            name, number = case
            reader = READERS[name]
            if name not in made:
                resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY,) * 2)
                folder = Path(root) / name
                folder.mkdir()
                path = reader.make(folder)
                files = [file for file in folder.rglob("*") if file.is_file()]
                pristine = {file: file.read_bytes() for file in files}
                made[name] = folder, path, pristine, _fingerprint(reader.read(folder))
            folder, path, pristine, whole = made[name]
            pages = int(Path("/proc/self/statm").read_text().split()[0])
            _limit(pages * resource.getpagesize() + MEMORY)
            # Its signal ends the process, also inside of a library: the parent sees a hang.
            signal.setitimer(signal.ITIMER_PROF, CPU_SECONDS)
            word, told = run_case(reader, pristine, folder, path, number, name)
            signal.setitimer(signal.ITIMER_PROF, 0)
            if word == "read" and reader.checksums and told != whole:
                word = "changed"
            connection.send((word, told))


def _limit(address_space):
    resource.setrlimit(resource.RLIMIT_AS, (address_space, resource.RLIM_INFINITY))


class Cases:
    """A process that runs cases, and another one after each that it does not survive."""

    def __init__(self):
        self.process = None

    def run(self, name, number):
        """(word, told) of one case."""
        if self.process is None:
            context = multiprocessing.get_context("spawn")
            self.connection, other = context.Pipe()
            self.process = context.Process(target=serve, args=(other,), daemon=True)
            self.process.start()
            other.close()
        try:
            self.connection.send((name, number))
            if self.connection.poll(WALL_SECONDS):
                return self.connection.recv()
            word = "hang"
        except (EOFError, ConnectionError):
            self.process.join(10)
            word = "hang" if self.process.exitcode == -signal.SIGPROF else "crash"
        told = f"the process ended with {self.process.exitcode}"
        self.close()
        return word, told

    def close(self):
        """End the process, whatever it is doing."""
        if self.process is not None:
            self.process.kill()
            self.process.join()
            self.connection.close()
            self.process = None

"""The verbs about convergence maps: simulate them, bring in those that users have, measure the
transfer, compare with theory.
"""

import argparse
import json
import sys
from functools import partial
from pathlib import Path
from typing import Any

from astrogen.data.files import write_whole
from astrogen.errors import InputError
from data_pipelines.words import positive, record_options, seed

VERBS = ("convergence", "maps", "check-convergence", "expected-spectrum", "measure-transfer")
FURTHEST = 1.2  # redshift of sources that theory is computed for
MAP_FORMATS = ("image", "ktng", "massivenus", "columbia", "cosmogrid")


def _add_convergence(verbs):
    verb = verbs.add_parser(
        "convergence",
        parents=[record_options(shard_size=None)],
        help="convergence maps from particle-mesh simulations",
        description=(
            "Simulate dark matter with jaxpm (pip install 'astrogen[simulations]') and ray-trace"
            " convergence maps in the Born approximation: sources at redshift 1, 64x64 pixels of"
            " 2.3 arcmin. Every simulation has its own initial conditions and its own (Omega_m,"
            " sigma_8), from a low-discrepancy design over 0.2-0.4 and 0.6-1.0. One simulation"
            " takes about 10 s on one core, a map through it 20 ms."
        ),
    )
    verb.add_argument(
        "--num-cosmologies",
        type=positive,
        required=True,
        metavar="N",
        help="number of simulations, one for each cosmology of the design",
    )
    verb.add_argument(
        "--maps-per-simulation",
        type=positive,
        required=True,
        metavar="M",
        help="maps through each simulation; 32 share most of their information",
    )
    verb.add_argument(
        "--seed",
        type=seed,
        required=True,
        help="of the design, of the initial conditions and of the lines of sight",
    )
    verb.add_argument(
        "--cosmology",
        type=float,
        nargs=2,
        metavar=("OMEGA_M", "SIGMA_8"),
        help="all simulations at this cosmology, instead of the design",
    )
    verb.add_argument(
        "--uncorrected",
        action="store_true",
        help="leave out the transfer to the HMCode-2020 spectrum",
    )


def _add_maps(verbs):
    verb = verbs.add_parser(
        "maps",
        parents=[record_options(shard_size=None)],
        help="convergence maps from files that you have",
        description=(
            "Bring convergence maps to the records of the simulated ones: averaged to the same"
            " pixels, cut into the same squares. Every file counts as one simulation. Files that"
            " cannot be used are left out and reported."
        ),
    )
    verb.add_argument("files", type=Path, nargs="+", metavar="FILE", help="maps of one cosmology")
    verb.add_argument(
        "--format",
        choices=MAP_FORMATS,
        default="image",
        help=(
            "image: FITS or .npy, one map or a cube; ktng, massivenus and columbia: as released; "
            "cosmogrid: a HEALPix sky in RING order (default: %(default)s)"
        ),
    )
    verb.add_argument(
        "--omega-m",
        type=float,
        required=True,
        metavar="OMEGA_M",
        help="total matter density of the maps",
    )
    verb.add_argument("--sigma-8", type=float, required=True, metavar="SIGMA_8", help="of the maps")
    verb.add_argument(
        "--source-redshift",
        type=float,
        default=1.0,
        metavar="Z",
        help="of the maps (default: %(default)s)",
    )
    verb.add_argument(
        "--map-pixel-scale",
        type=float,
        metavar="ARCMIN",
        help="of the files, where their format does not say",
    )


def _add_check(verbs):
    verb = verbs.add_parser(
        "check-convergence",
        help="compare the mean spectrum of simulated maps with theory",
        description=(
            "Mean power spectrum of records over HMCode-2020 (Limber, pixels and edges included) in"
            " bands of l, with errors from simulation to simulation."
        ),
    )
    verb.add_argument(
        "records",
        type=Path,
        metavar="DIR",
        help="as `convergence` or `maps` wrote them; what is finished is used",
    )
    verb.add_argument(
        "--ktng",
        type=Path,
        metavar="FILE",
        help=(
            "the kappaTNG map (FITS), compared with theory in the same bands; its sources are not"
            " at redshift 1"
        ),
    )
    verb.add_argument("--json", type=Path, metavar="FILE", help="write the numbers as JSON too")


def _add_expected(verbs):
    verb = verbs.add_parser(
        "expected-spectrum",
        help="what theory expects of the spectrum of the convergence",
        description=(
            "Angular power spectra of the convergence that HMCode-2020 expects (Limber), at 25"
            " cosmologies of the range; takes two minutes. `astrogen train kappa --spectrum FILE`"
            " makes its maps of it: simulations are right in the mean, but a few dozen of them"
            " scatter by some per cent, and small ones know nothing of long waves."
        ),
    )
    verb.add_argument(
        "--source-redshift",
        type=float,
        default=1.0,
        metavar="Z",
        help="of the maps, up to 1.2 (default: %(default)s)",
    )
    verb.add_argument("--out", type=Path, required=True, metavar="FILE", help="JSON file to write")


def _add_measure_transfer(verbs):
    verb = verbs.add_parser(
        "measure-transfer",
        help="measure the transfer from the simulations to HMCode-2020 again",
        description=(
            "Run pairs of simulations at nine cosmologies (4 minutes on one core) and write the"
            " table that `convergence` applies, data_pipelines/transfer.json."
        ),
    )
    verb.add_argument("--seed", type=seed, required=True, help="of the initial conditions")
    verb.add_argument(
        "--out",
        type=Path,
        metavar="FILE",
        help="table to write (default: the one that `convergence` reads)",
    )


def add_verbs(verbs: Any) -> None:
    """Add the verbs of this module to a parser's."""
    _add_convergence(verbs)
    _add_maps(verbs)
    _add_check(verbs)
    _add_expected(verbs)
    _add_measure_transfer(verbs)


def _simulations():
    """The modules that need the extra `simulations`, or an error that says how to get it."""
    try:
        from data_pipelines import convergence
    except ImportError as error:
        raise InputError(
            f"convergence: the extra `simulations` must be installed, got {error}; run pip install"
            " 'astrogen[simulations]'"
        ) from error
    return convergence


def _write_convergence(options):
    convergence = _simulations()
    from data_pipelines.records import write_records  # TensorFlow

    num = options.num_cosmologies
    points = (
        [tuple(options.cosmology)] * num
        if options.cosmology
        else convergence.design(num, options.seed)
    )
    header = convergence.recipe(
        points,
        maps_per_simulation=options.maps_per_simulation,
        seed=options.seed,
        corrected=not options.uncorrected,
    )
    # One simulation at a time, whole, and by default one shard each: what is finished can be used
    # while the rest runs.
    header["shard_size"] = options.shard_size or options.maps_per_simulation
    return write_records(
        options.out,
        header=header,
        draw_fn=partial(convergence.draw_records, header),
        num_workers=options.workers,
        resume=options.resume,
        chunk=options.maps_per_simulation,
        unit="maps",
    )


def _write_maps(options):
    from data_pipelines import maps
    from data_pipelines.records import write_records  # TensorFlow

    header = maps.recipe(
        options.files,
        map_format=options.format,
        omega_m=options.omega_m,
        sigma_8=options.sigma_8,
        source_redshift=options.source_redshift,
        map_pixel_scale=options.map_pixel_scale,
    )
    per_file = header["maps_per_simulation"]
    header["shard_size"] = options.shard_size or per_file
    return write_records(
        options.out,
        header=header,
        draw_fn=partial(maps.draw_records, header),
        num_workers=options.workers,
        resume=options.resume,
        chunk=per_file,
        unit="maps",
    )


def _table(checked):
    """The numbers of a check as text, one band of l a line."""
    ratio, error, ktng = (
        checked["ratio"],
        checked["error"] or [float("nan")] * len(checked["ratio"]),
        checked.get("ktng", {}),
    )
    lines = [
        "        l       P / HMCode-2020   error"
        + "".join(f"   kappaTNG, sources at {redshift}" for redshift in ktng)
    ]
    for number, (low, high) in enumerate(zip(checked["bands"], checked["bands"][1:])):
        line = f"{low:6.0f} - {high:4.0f}   {ratio[number]:10.3f}   {error[number]:10.3f}"
        lines.append(line + "".join(f"   {values[number]:24.3f}" for values in ktng.values()))
    return "\n".join(lines)


def _check(options):
    _simulations()
    from astrogen.training.records import load_manifest, load_maps  # TensorFlow
    from data_pipelines.comparison import compare_ktng, compare_with_theory

    manifest = load_manifest(options.records)
    maps = load_maps(options.records, pixel_scale=None, unfinished=True)
    checked = compare_with_theory(maps, source_redshift=manifest["source_redshift"])
    if options.ktng:
        checked["ktng"] = compare_ktng(options.ktng, pixel_scale=maps["pixel_scale"])
    print(_table(checked))
    print(
        "{num_maps} maps of {num_simulations} simulations; pixels: standard deviation"
        " {standard_deviation:.5f}, skewness {skewness:.3f}".format(**checked)
    )
    if options.json:
        write_whole(options.json, json.dumps(checked, indent=1) + "\n")


def _expected(options):
    _simulations()
    from data_pipelines.comparison import expected_points, expected_spectra

    if not 0 < options.source_redshift <= FURTHEST:
        raise InputError(
            f"expected-spectrum: --source-redshift must be within 0 to {FURTHEST}, got"
            f" {options.source_redshift}; spectra of matter end there"
        )
    expected = expected_spectra(
        expected_points(),
        source_redshift=options.source_redshift,
        progress_fn=partial(print, file=sys.stderr),
    )
    write_whole(options.out, json.dumps(expected, indent=1) + "\n")
    print(f"spectra at {len(expected['cosmologies'])} cosmologies: {options.out}")


def _measure_transfer(options):
    convergence = _simulations()
    table = convergence.measure_recipe_transfer(options.seed, partial(print, file=sys.stderr))
    write_whole(options.out or convergence.TABLE, json.dumps(table, indent=1) + "\n")
    print(f"transfer measured; rms of what the table leaves, in ln T: {table['rms_of_residual']}")


def run(options: argparse.Namespace) -> dict[str, Any] | None:
    """Run one of VERBS; the manifest of the records it wrote, or None."""
    return {
        "convergence": _write_convergence,
        "maps": _write_maps,
        "check-convergence": _check,
        "expected-spectrum": _expected,
        "measure-transfer": _measure_transfer,
    }[options.verb](options)

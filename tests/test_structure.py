"""The direction of the data flow, read from the imports: who may know whom."""

import ast
import subprocess
import sys
from configparser import ConfigParser

import pytest
from conftest import ROOT
from setuptools import find_packages

import astrogen

PACKAGES = ("astrogen", "data_pipelines", "benchmarks")


def _modules():
    files = [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]
    return {
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
        for path in files
    }


def _imports(path, name):
    package = name.split(".") if path.name == "__init__.py" else name.split(".")[:-1]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = (
                ".".join([*package[: len(package) - node.level + 1], *filter(None, [node.module])])
                if node.level
                else node.module
            )
            yield from (f"{base}.{alias.name}" for alias in node.names)


IMPORTS = {name: set(_imports(path, name)) for name, path in _modules().items()}


def _within(name, *packages):
    return any(name == package or name.startswith(package + ".") for package in packages)


USES = ("astrogen.galaxies", "astrogen.darkmatter", "astrogen.report", "astrogen.survey")
MEETING = ("astrogen.inference", *USES)
AFTER_DATA = ("astrogen.instruments", "astrogen.priors", *MEETING)
FORBIDDEN = {  # importer: what it must not know
    "astrogen": [
        "data_pipelines",
        "benchmarks",
        "tests",
        "tensorflow_probability.layers",
        "tf_keras",
        "pickle",
    ],
    # The folders in the order of the data flow.
    "astrogen.data": [*AFTER_DATA, "tensorflow", "keras"],
    "astrogen.instruments": ["astrogen.priors", *MEETING],
    "astrogen.priors": ["astrogen.instruments", *MEETING],
    "astrogen.inference": ["astrogen.data", "astrogen.instruments", "astrogen.priors", *USES],
    "astrogen.galaxies": ["astrogen.darkmatter", "astrogen.report", "astrogen.survey"],
    "astrogen.darkmatter": ["astrogen.galaxies", "astrogen.report", "astrogen.survey"],
    "astrogen.report": [
        "astrogen.priors",
        "astrogen.instruments",
        "astrogen.galaxies.posterior",
        "astrogen.galaxies.deconvolve",
        "astrogen.galaxies.deblend",
    ],
    "data_pipelines": ["astrogen.priors", "astrogen.galaxies.posterior", "astrogen.inference"],
    "data_pipelines.population": ["tensorflow"],
    "data_pipelines.real": ["tensorflow"],
    "data_pipelines.workers": ["tensorflow", "numpy"],
}
HOMES = {  # a library: the only module or package of astrogen that imports it
    "astropy.io": "astrogen.data.images",
    "galsim": "astrogen.galsim_objects",
    "matplotlib": "astrogen.report",
}


@pytest.mark.parametrize("importer", FORBIDDEN)
def test_modules_do_not_know_what_comes_after_them(importer):
    wrong = {
        name: seen
        for name in IMPORTS
        if _within(name, importer)
        if (seen := [i for i in IMPORTS[name] if _within(i, *FORBIDDEN[importer])])
    }
    assert not wrong


@pytest.mark.parametrize("library", HOMES)
def test_a_library_has_one_home(library):
    homes = {
        name
        for name, seen in IMPORTS.items()
        if _within(name, "astrogen") and any(_within(i, library) for i in seen)
    }
    assert all(_within(home, HOMES[library]) for home in homes), homes


def test_nothing_imports_the_command_line():
    assert not [
        name
        for name, seen in IMPORTS.items()
        if not _within(name, "astrogen.__main__", "astrogen.cli")
        and any(_within(i, "astrogen.cli") for i in seen)
    ]


def test_no_module_imports_itself_by_a_detour():
    graph = {
        name: {
            other
            for other in IMPORTS
            if other != name
            and any(_within(i, other) and i.count(".") <= other.count(".") + 1 for i in seen)
        }
        for name, seen in IMPORTS.items()
    }
    packages = {name for name in graph if any(other.startswith(name + ".") for other in graph)}
    left = {name: seen - packages for name, seen in graph.items() if name not in packages}
    while leaves := [name for name, seen in left.items() if not seen & left.keys()]:
        left = {name: seen for name, seen in left.items() if name not in leaves}
    assert not left, f"a cycle among {sorted(left)}"


def test_import_is_light():
    """`astrogen --version` must not wait for TensorFlow."""
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            (
                "import sys, astrogen; print([m for m in ('tensorflow', 'numpy', 'astropy',"
                " 'matplotlib') if m in sys.modules])"
            ),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.stdout.strip() == "[]", done.stderr


@pytest.mark.parametrize("name", astrogen.__all__)
def test_every_public_name_can_be_had(name):
    assert getattr(astrogen, name) is not None
    assert name in dir(astrogen)


def test_an_unknown_name_says_what_there_is():
    with pytest.raises(
        AttributeError, match="has no attribute 'deconvolute'; it offers .*deconvolve"
    ):
        astrogen.deconvolute  # noqa: B018


def test_the_wheel_holds_all_that_users_run():
    """`python -m data_pipelines` runs where only the wheel is installed, with the table it
    reads.
    """
    told = ConfigParser()
    told.read(ROOT / "setup.cfg")
    found = find_packages(ROOT, include=told["options.packages.find"]["include"].split())
    assert {"astrogen", "astrogen.survey", "data_pipelines"} <= set(found)
    assert not {"tests", "benchmarks"} & set(found)
    kept = {name: globs.split() for name, globs in told["options.package_data"].items()}
    for path in (ROOT / "data_pipelines").iterdir():
        if path.is_file() and path.suffix != ".py":
            assert any(path.match(glob) for glob in kept["data_pipelines"]), path

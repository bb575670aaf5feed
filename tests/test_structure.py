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


@pytest.mark.parametrize(
    "imported, heavy",
    [
        # `astrogen --version` must not wait
        ("astrogen", ("tensorflow", "numpy", "astropy", "matplotlib")),
        # nor who reads results, or watches the workers of a run
        ("astrogen.galaxies.result", ("tensorflow", "matplotlib")),
        ("astrogen.survey.run", ("tensorflow", "matplotlib")),
    ],
    ids=["version", "results", "survey"],
)
def test_import_is_light(imported, heavy):
    code = f"import sys, {imported}; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60
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


def _functions(name):
    """(qualified name, node, whether users see it) of each function of a module and its classes."""
    for node in ast.parse(_modules()[name].read_text()).body:
        if isinstance(node, ast.FunctionDef):
            yield node.name, node, not node.name.startswith("_")
        elif isinstance(node, ast.ClassDef):
            for item in node.body:
                if isinstance(item, ast.FunctionDef):
                    hidden = node.name.startswith("_") or item.name.startswith("_")
                    shown = not hidden or (item.name == "__init__" and node.name[0] != "_")
                    yield f"{node.name}.{item.name}", item, shown


def _parameters(node):
    told = node.args
    every = [*told.posonlyargs, *told.args, *told.kwonlyargs, told.vararg, told.kwarg]
    return [item for item in every if item is not None and item.arg not in ("self", "cls")]


ANNOTATED = (
    "astrogen.errors",
    "astrogen.noise",
    "astrogen.processes",
    "astrogen.quiet",
    "astrogen.data",
    "astrogen.instruments",
    "astrogen.priors",
    "astrogen.darkmatter",
    "astrogen.survey",
    "astrogen.report",
    "astrogen.galsim_objects",
    "astrogen.demo",
    "data_pipelines",
)


@pytest.mark.parametrize("package", ANNOTATED)
def test_public_functions_say_what_they_take_and_give(package):
    """mypy looks only into functions that are annotated."""
    bare = [
        f"{module}.{name}"
        for module in _modules()
        if _within(module, package)
        for name, node, shown in _functions(module)
        if shown
        if node.returns is None or any(item.annotation is None for item in _parameters(node))
    ]
    assert not bare


def test_the_wheel_says_that_it_has_types():
    told = ConfigParser()
    told.read(ROOT / "setup.cfg")
    for package in ("astrogen", "data_pipelines"):
        assert (ROOT / package / "py.typed").is_file()
        assert "py.typed" in told["options.package_data"][package].split()


MOST_LINES, MOST_PARAMETERS = 60, 8
LONG = {  # functions that are waited for
    "astrogen.galaxies.blend.make_blend",
}
DOOR = "a public door: what users give by name"
INNER = "of the inference that is being rewritten"
MANY = {  # functions with more parameters than that, and why
    "astrogen.data.observation.make_observation": DOOR,
    "astrogen.data.observation.read_observation": DOOR,
    "astrogen.data.observation.read_frame": "the files and HDUs of `read_observation`",
    "astrogen.data.psf.read_psf": DOOR,
    "astrogen.galaxies.deconvolve.deconvolve": DOOR,
    "astrogen.galaxies.deblend.deconvolve_jointly": DOOR,
    "astrogen.galaxies.deblend.deblend": DOOR,
    "astrogen.survey.run.run_survey": DOOR,
    "astrogen.training.train_prior": DOOR,
    "astrogen.instruments.telescope.see_affine": "a formula of ten symbols",
    "astrogen.galaxies.conclude.make_source": "the parts of a result",
    "astrogen.galaxies.deblend._fit": INNER,
    "astrogen.galaxies.deconvolve.deconvolve_each": INNER,
    "astrogen.galaxies.posterior.compress": INNER,
    "astrogen.inference.hmc._run": "what one graph of chains is given",
}


def _every_function():
    for module in _modules():
        for name, node, _ in _functions(module):
            yield f"{module}.{name}", node


def _num_lines(node):
    """From `def` on, without the docstring."""
    docstring = node.body[0] if ast.get_docstring(node) is not None else None
    told = docstring.end_lineno - docstring.lineno + 1 if docstring else 0
    return node.end_lineno - node.lineno + 1 - told


def test_functions_fit_on_a_page():
    long = {name for name, node in _every_function() if _num_lines(node) > MOST_LINES}
    assert long <= LONG


def test_functions_take_few_parameters_or_say_why():
    many = {name for name, node in _every_function() if len(_parameters(node)) > MOST_PARAMETERS}
    assert many <= MANY.keys()

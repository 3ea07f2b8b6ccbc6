"""What is published: both distributions hold what they should, and work where nothing else is."""

import importlib.util
import json
import os
import re
import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

import funprop

ROOT = Path(__file__).parent.parent
# Beside the package: what its tests, its site and .ci/run need, and what people look for.
BESIDE = {".ci/run", "CHANGELOG.md", "CITATION.cff", "CODE_OF_CONDUCT.md", "CONTRIBUTING.md"}
BESIDE |= {"LICENSE", "PKG-INFO", "README.md", "SECURITY.md", "pyproject.toml"}
# scikit-learn has no types, and what is set in an __init__ is inferred.
UNTYPED = (
    "funprop.estimators.",
    "funprop.train.data.batches.RecordBatches",
    "funprop.train.loop.Loop",
)
UNTYPED += ("funprop.train.loop.Loop", "funprop.train.runs.recorded.recorded")


def test_one_version_everywhere():
    """And the changelog tells of it, above all or below what is not yet released."""
    assert f"\nversion: {funprop.__version__}\n" in (ROOT / "CITATION.cff").read_text()
    changelog = (ROOT / "CHANGELOG.md").read_text()
    versions = re.findall(r"^## \[?(\d[^\] ]*)", changelog, re.M)
    assert re.search(r"^## Unreleased$", changelog, re.M) or versions[0] == funprop.__version__


def quietly(*words, cwd):
    """What a command prints, in an environment that has nothing of this one."""
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")}
    told = subprocess.run(words, cwd=cwd, env=environment, capture_output=True, text=True)
    assert told.returncode == 0, told.stdout + told.stderr
    return told.stdout


def sources(folder):
    """The files below, without what Python and its tools leave."""
    found = {file.relative_to(ROOT) for file in (ROOT / folder).rglob("*") if file.is_file()}
    return {str(file) for file in found if "__pycache__" not in file.parts}


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The sdist and the wheel, which is made from the sdist."""
    pytest.importorskip("build")
    out = tmp_path_factory.mktemp("dist")
    quietly(sys.executable, "-m", "build", "--outdir", str(out), str(ROOT), cwd=out)
    return next(out.glob("*.tar.gz")), next(out.glob("*.whl"))


@pytest.mark.slow
def test_they_hold_what_is_needed_and_nothing_else(built):
    with tarfile.open(built[0]) as file:
        sdist = {name.split("/", 1)[1] for name in file.getnames()}
    with zipfile.ZipFile(built[1]) as file:
        wheel = set(file.namelist())
    needed = set().union(*map(sources, ("funprop", "tests", "examples", "docs"))) | BESIDE
    assert sdist - {".gitignore"} == needed
    plugin = "funprop/plugin/pytest_funprop.py"
    module = {name for name in wheel if ".dist-info/" not in name}
    assert module == sources("funprop") - {plugin} | {"pytest_funprop.py"}
    assert {"funprop/py.typed", "funprop/explaining/page.js"} <= wheel


def unknown(folder):
    """The names whose types pyright cannot find out, in the environment there."""
    pyright = importlib.util.find_spec("pyright")
    if pyright is None:
        return set()
    command = (sys.executable, "-m", "pyright", "--verifytypes", "funprop", "--ignoreexternal")
    environment = os.environ | {"PATH": f"{folder}/venv/bin:{os.environ['PATH']}"}
    environment["VIRTUAL_ENV"] = str(folder / "venv")
    told = subprocess.run(
        [*command, "--outputjson"], cwd=folder, env=environment, capture_output=True, text=True
    )
    symbols = json.loads(told.stdout)["typeCompleteness"]["symbols"]
    assert len(symbols) > 1000
    return {s["name"] for s in symbols if not s["isTypeKnown"] and not s["isTypeAmbiguous"]}


@pytest.mark.slow
def test_the_wheel_works_in_an_empty_environment(built, tmp_path):
    """The core alone imports, verifies and trains; with the extra, so does the command."""
    venv.create(tmp_path / "venv", with_pip=True)
    python, pip = str(tmp_path / "venv/bin/python"), ("-m", "pip", "install", "-q")
    quietly(python, *pip, str(built[1]), cwd=tmp_path)
    program = """
import jax, optax, funprop as fp, numpy as np
x, y = np.eye(4, dtype="float32"), np.arange(4) % 2
objective = fp.objective(fp.mlp(8, 2), fp.softmax_cross_entropy())
train = fp.step(fp.backprop(objective), optax.adam(1e-2))
state = train.init(objective.init(jax.random.key(0), (x, y)), None)
result = fp.fit(train, state, (x, y), epochs=2, batch_size=2)
fp.verify(fp.mlp(8, 2), result.state.params, x).raise_if_wrong()
print(fp.__file__)
"""
    assert "site-packages" in quietly(python, "-c", program, cwd=tmp_path)
    quietly(python, *pip, f"{built[1]}[train]", cwd=tmp_path)
    command = str(tmp_path / "venv/bin/funprop")
    assert quietly(command, "--version", cwd=tmp_path).startswith(f"funprop {funprop.__version__},")
    said = quietly(command, "train", "iris", "--epochs", "2", "--out", "run", cwd=tmp_path)
    assert "Every hand-written gradient is the derivative" in said
    assert (tmp_path / "run" / "params.safetensors").exists()
    assert not {name for name in unknown(tmp_path) if not name.startswith(UNTYPED)}


@pytest.mark.slow
def test_the_sdist_runs_its_tests(built, tmp_path):
    """All can be collected there, and those that read files beside the package pass."""
    with tarfile.open(built[0]) as file:
        file.extractall(tmp_path, filter="data")
    (root,) = tmp_path.iterdir()
    pytest_ = (sys.executable, "-m", "pytest", "-q", "-n", "0", "-p", "no:cacheprovider")
    quietly(*pytest_, "--collect-only", cwd=root)
    some = ("tests/test_release.py", "tests/test_public_api.py", "tests/test_params_file.py")
    quietly(*pytest_, *some, cwd=root)
    quietly(*pytest_, "tests/test_docs.py", "-k", "links or public or pencil", cwd=root)
    quietly(*pytest_, "tests/test_job.py", "-k", "readme or four_stages_is", cwd=root)

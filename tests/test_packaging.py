"""The distribution: what a wheel holds, and that it works without a compiler."""

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PIP = [sys.executable, "-m", "pip", "--disable-pip-version-check"]


def build_wheel(folder, **environment):
    """A wheel built from a copy of the sources, so that the checkout is left alone."""
    source = folder / "source"
    names = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        cwd=ROOT, check=True, capture_output=True, text=True,
    ).stdout.split("\0")  # fmt: skip
    for name in filter(None, names):
        if (ROOT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    command = [*PIP, "wheel", "--no-build-isolation", "--no-deps", "-w", str(folder), str(source)]
    built = subprocess.run(command, env=os.environ | environment, capture_output=True, text=True)
    assert built.returncode == 0, built.stdout + built.stderr
    (wheel,) = folder.glob("*.whl")
    return wheel


# An editable installation finds the checkout's modules wherever they are missing.
NOT_EDITABLE = "import sys; sys.meta_path[:] = [f for f in sys.meta_path if 'editable' not in f.__module__.lower()]\n"


def run_from(wheel, folder, code):
    """Run code in a process that finds the wheel's content first and the checkout nowhere."""
    target = folder / "installed"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(target)
    environment = {**os.environ, "PYTHONPATH": str(target), "PYTHONSAFEPATH": "1"}
    command = [sys.executable, "-W", "error::ImportWarning", "-c", NOT_EDITABLE + code]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)


REPORT = """
import json, importlib.util, torch, fastdiff, fastdiff.kernels
from fastdiff.backends.registry import list_backends
plan = fastdiff.plan(steps=3)
sample = fastdiff.sample(lambda z, c: z * 0.3, plan, (2, 5), 0)
print(json.dumps({
    "where": fastdiff.__file__,
    "kernels": importlib.util.find_spec("kernels") is not None,
    "backends": {r.name: r.reason for r in list_backends()},
    "sample": [v.hex() for v in sample.flatten().tolist()],
}))
"""


@pytest.fixture(scope="module")
def pure(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pure")
    return build_wheel(folder, CC="false", CXX="false"), folder


def test_without_a_compiler_the_wheel_works_and_says_what_is_missing(pure):
    wheel, folder = pure
    done = run_from(wheel, folder, REPORT)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["where"].startswith(str(folder))
    assert report["backends"]["reference"] is None
    assert "fastdiff._host" in report["backends"]["cpu"]
    assert "C++17 compiler" in report["backends"]["cpu"]
    assert not report["kernels"], "a top-level package called kernels was installed"
    # The same bits as the installation under test, which is compiled.
    here = subprocess.run([sys.executable, "-c", REPORT], capture_output=True, text=True, check=True)
    assert json.loads(here.stdout)["sample"] == report["sample"]


def test_what_the_wheel_holds(pure):
    names = zipfile.ZipFile(pure[0]).namelist()
    assert "fastdiff/data/digits.safetensors" in names
    assert any(name.startswith("fastdiff/kernels/") for name in names)
    top = {name.split("/")[0] for name in names}
    assert top == {"fastdiff", next(name for name in top if name.endswith(".dist-info"))}
    metadata = zipfile.ZipFile(pure[0]).read(next(name for name in names if name.endswith("METADATA"))).decode()
    assert "Name: fastdiff-sampler" in metadata


def test_a_forced_backend_that_was_not_built_names_the_way_out(pure):
    wheel, folder = pure
    code = "import fastdiff\nwith fastdiff.use_backend('cpu'): pass"
    done = run_from(wheel, folder, code)
    assert done.returncode != 0
    assert "backend 'cpu' cannot be used: fastdiff._host cannot be loaded" in done.stderr
    assert "usable now: ['reference'" in done.stderr


@pytest.mark.night
def test_a_compiled_wheel(tmp_path):
    wheel = build_wheel(tmp_path)
    report = json.loads(run_from(wheel, tmp_path, REPORT).stdout)
    assert report["backends"]["cpu"] is None
    assert report["where"].startswith(str(tmp_path))


@pytest.mark.night
def test_a_build_environment_without_torch(tmp_path):
    """With pip's isolation torch cannot be imported while building; the host module is built all the same."""
    built = subprocess.run([*PIP, "wheel", "--no-deps", "-w", str(tmp_path), str(ROOT)], capture_output=True, text=True)
    assert built.returncode == 0, built.stdout + built.stderr
    (wheel,) = tmp_path.glob("*.whl")
    assert any(name.startswith("fastdiff/_host") for name in zipfile.ZipFile(wheel).namelist())
    report = json.loads(run_from(wheel, tmp_path, REPORT).stdout)
    assert "fastdiff._C was not built" in report["backends"]["cpu"]

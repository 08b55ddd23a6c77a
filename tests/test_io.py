"""Files: all or nothing, the same bytes every time, and nothing that can run code."""

import errno
import json
import os
import pickle
from pathlib import Path

import pytest
import safetensors.torch
import torch

from fastdiff import plan
from fastdiff.app import io
from fastdiff.errors import CheckpointError, OutputError, PlanError

FACTS = {f"fact {i}": f"value {i} γ" for i in range(20)}
SAMPLES = torch.arange(12.0).view(3, 1, 2, 2)


def test_write_replaces_the_whole_file(tmp_path: Path):
    target = tmp_path / "a.bin"
    target.write_bytes(b"old and long")
    io.write(target, b"new")
    assert target.read_bytes() == b"new"
    assert os.listdir(tmp_path) == ["a.bin"]


@pytest.mark.parametrize("failing", ["replace", "fsync"])
def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path, monkeypatch, failing: str):
    target = tmp_path / "a.bin"
    target.write_bytes(b"old")

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(io.os, failing, full)
    with pytest.raises(OutputError, match=r"a\.bin: No space left"):
        io.write(target, b"new")
    assert target.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["a.bin"]


def test_content_is_on_the_disk_before_the_name_is(tmp_path: Path, monkeypatch):
    done = []
    real = os.fsync, os.replace
    monkeypatch.setattr(io.os, "fsync", lambda descriptor: (done.append("fsync"), real[0](descriptor)))
    monkeypatch.setattr(io.os, "replace", lambda a, b: (done.append("replace"), real[1](a, b)))
    io.write(tmp_path / "a.bin", b"new")
    assert done == ["fsync", "replace", "fsync"]


def test_mode_follows_the_umask(tmp_path: Path):
    before = os.umask(0o027)
    try:
        io.write(tmp_path / "a.bin", b"")
    finally:
        os.umask(before)
    assert (tmp_path / "a.bin").stat().st_mode & 0o777 == 0o640


def test_folders_are_checked_before_work_and_without_a_trace(tmp_path: Path):
    io.check_folder(tmp_path / "a.bin")
    assert os.listdir(tmp_path) == []
    with pytest.raises(OutputError, match="there is no folder"):
        io.check_folder(tmp_path / "missing" / "a.bin")
    with pytest.raises(OutputError, match="is a folder"):
        io.check_folder(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="there is no folder"):
        io.check_folder(tmp_path / "file" / "a.bin")


@pytest.mark.parametrize("name", ["n" * 251 + ".bin", "γ" * 125 + ".bin"])
def test_names_as_long_as_the_system_takes_work(tmp_path: Path, name: str):
    io.check_folder(tmp_path / name)
    io.write(tmp_path / name, b"new")
    assert os.listdir(tmp_path) == [name]
    with pytest.raises(OutputError, match="its name has more than 255 bytes; choose a shorter one"):
        io.check_folder(tmp_path / (name + "xx"))
    assert os.listdir(tmp_path) == [name]


def test_a_folder_that_cannot_be_written_is_refused(tmp_path: Path, monkeypatch):
    def refuse(*_: object) -> int:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(io.os, "open", refuse)
    with pytest.raises(OutputError, match="Permission denied; choose another place"):
        io.check_folder(tmp_path / "a.bin")


def test_samples_are_the_same_bytes_every_time():
    encoded = {io.encode_samples(SAMPLES, FACTS) for _ in range(20)}
    assert len(encoded) == 1
    header = encoded.pop()[8:].split(b"}}")[0]
    assert header.index(b'"fact 1"') < header.index(b'"fact 10"') < header.index(b'"fact 2"')
    shuffled = dict(reversed(FACTS.items()))
    assert io.encode_samples(SAMPLES, FACTS) == io.encode_samples(SAMPLES, shuffled)


def test_samples_come_back(tmp_path: Path):
    path = tmp_path / "set.safetensors"
    io.write(path, io.encode_samples(SAMPLES.transpose(2, 3), FACTS))
    samples, facts = io.read_samples(path)
    assert torch.equal(samples, SAMPLES.transpose(2, 3))
    assert facts == FACTS
    assert torch.equal(safetensors.torch.load_file(path)["samples"], samples)


@pytest.mark.parametrize("name", ["set.pkl", "set.safetensors"])
def test_a_pickle_is_no_set_of_samples(tmp_path: Path, name: str):
    path = tmp_path / name
    path.write_bytes(pickle.dumps({"samples": [1.0]}))
    with pytest.raises(CheckpointError, match="is not a set of samples"):
        io.read_samples(path)


def test_a_set_without_samples_is_refused(tmp_path: Path):
    path = tmp_path / "set.safetensors"
    safetensors.torch.save_file({"weights": SAMPLES}, path)
    with pytest.raises(CheckpointError, match="tensor 'samples'"):
        io.read_samples(path)


def test_plans_come_back(tmp_path: Path):
    path = tmp_path / "plan.json"
    compiled = plan(steps=3)
    io.write(path, compiled.to_json().encode())
    assert io.read_plan(path) == compiled


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\x80\x04\x95", "not text"),
        (b"junk", "not JSON"),
        (b"{}", "no field 'fastdiff_plan'"),
        (b"[1]", "no field 'fastdiff_plan'"),
        (json.dumps({"fastdiff_plan": 99}).encode(), "fastdiff_plan is 99; this version reads 1"),
        (plan(steps=2).to_json().replace("0x1.4", "0x1.5", 1).encode(), "the file was changed"),
    ],
)
def test_what_is_no_plan_is_refused_by_name(tmp_path: Path, content: bytes, message: str):
    path = tmp_path / "plan.json"
    path.write_bytes(content)
    with pytest.raises(PlanError, match=message) as caught:
        io.read_plan(path)
    assert "plan.json" in str(caught.value)

"""The samples of before: hashes that were taken when solvers became steps and rows got another format.

The network of the golden plans is elementwise and rounds each operation once, so its bits are the same everywhere. The
digits' network is torch's, whose bits depend on the processor and on the release.
"""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

import fastdiff
from fastdiff.app.digits import load_digits
from fastdiff.backends.registry import use_backend
from fastdiff.maths.churn import Churn
from fastdiff.maths.prediction import edm
from fastdiff.plans.compose import plan

sys.path.insert(0, str(Path(__file__).parent / "golden"))

from regenerate import FIRST

SHAPE, SEED = (3, 2, 5, 7), 7
SAMPLES = {
    "heun": "52d969c6712233f0a75464cb536905e7f27565188625de556a94751e50d257c5",
    "heun-float64": "e6ed33941db1a4ea51599b0ebe417c853c2cacc49b62d36b0bb3150fbd7b79cf",
    "heun-churn-guided": "efd7adbd3f7cf7ae0f33124b9b1508e1488ef36905024e2022d111b97db2928b",
    "heun-clip-interval-unbatched": "9c1b28f410150282d708ee2ae024e5bd6762c90b48adc83b7a98c42d1cdb85bc",
    "heun-vp-v": "9eff62df77ffcc83c7bc6357ebd01652be642b2295b1c44cad9a6079996ecd7f",
    "heun-iddpm": "4a78eb401515639ebbd1e97fadf9e7c5a0fd1a996afc8f9ad282b97a21069fee",
    "euler-vp": "7876d6a52292a5d72ad62aea58d506a35a12580e45280289d102debfddaf143c",
    "euler-ve-caller-noise": "990d6514ff60d7fd2b89de718852612521d333c2c4493456090fecc6fd7bdef3",
    "midpoint-flow": "3eb83a06737f69115b5e1f113db16b9399393a46103ef8c0f863678bce76541b",
    "ralston-score-on-mixed-schedule": "5e8049e89ee375607750ea39d67ac3940d32495c7b9b45cafba9ed1daca27628",
    "euler-x0-given-sigmas": "9644678c511f561ec2c8b563bce6a7fbed2529513fbafab264aac46c6fa78a24",
}
DIGITS = {
    "AVX512": "54ef7d57e622474cf896258a390d715c5222ef0756d4946648f6a6e1c120ef4c",
    "AVX2": "61de1ab2239e8794dbe818fda3a46bf9f5564043910db222ff0cdfd35d9f567e",
}
"""By the instruction set of torch and oneDNN (ATEN_CPU_CAPABILITY and ONEDNN_MAX_CPU_ISA), for one thread."""
TORCH = "2.13.0+cpu"


def sha256(tensor: Tensor) -> str:
    return hashlib.sha256(tensor.contiguous().numpy().tobytes()).hexdigest()


def network(z: Tensor, c_noise: Tensor) -> Tensor:
    return z * -0.625 + c_noise.view(-1, 1, 1, 1).to(z.dtype) * 0.03125


def callers_noise(row: int, draw: int) -> Tensor:
    return torch.arange(210.0).view(SHAPE).mul(0.0625).sub(6) * (1 + row) * 0.5 + draw


@pytest.mark.parametrize("backend", ["reference", "cpu"])
@pytest.mark.parametrize("name", FIRST)
def test_the_samples_of_golden_plans_are_the_same_bits(name: str, backend: str) -> None:
    compiled = FIRST[name]()
    with use_backend(backend):
        run = fastdiff.Run(compiled, SHAPE, SEED, noise=callers_noise if compiled.caller_noise else None)
        for evaluation in run:
            calls = len(evaluation.branches) * SHAPE[0] // len(evaluation.z)
            run.step(*[network(evaluation.z, evaluation.c_noise) * (1 + i) for i in range(calls)])
        assert sha256(run.finish()) == SAMPLES[name]


@pytest.mark.skipif(torch.__version__ != TORCH, reason=f"the network's bits are those of torch {TORCH}")
@pytest.mark.skipif(torch.backends.cpu.get_cpu_capability() not in DIGITS, reason="no hash for this processor")
def test_the_digits_are_the_same_bits() -> None:
    net, facts = load_digits()
    compiled = plan(
        schedule="edm",
        prediction=edm(sigma_data=float(facts["sigma_data"])),
        solver="heun",
        steps=18,
        guidance=2.0,
        churn=Churn(10),
    )
    labels = torch.eye(10)
    conditioning = {"cond": {"class_labels": labels}, "uncond": {"class_labels": torch.zeros_like(labels)}}
    digits = fastdiff.sample(net, compiled, (10, 1, 8, 8), 0, **conditioning)
    assert sha256(digits) == DIGITS[torch.backends.cpu.get_cpu_capability()]

"""The digit network: its file, its shapes and dtypes, its training loss, its training command."""

import pickle
import sys
from pathlib import Path

import pytest
import safetensors.torch
import torch
from click.testing import CliRunner
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))

import evaluate_digits
import train_digits

import fastdiff
from fastdiff.app.digits import CHECKPOINT, DigitsNet, load_digits
from fastdiff.errors import CheckpointError
from fastdiff.maths.prediction import edm
from fastdiff.testing.rows import same_bits

FACTS = {
    "sigma_data", "steps", "batch", "loss", "loss_held_out", "parameters", "ema", "seed",
    "versions", "data", "data_licence", "command", "date",
}  # fmt: skip


def inputs(batch: int = 4) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(batch, 1, 8, 8, generator=generator)
    c_noise = torch.linspace(-1.5, 1.1, batch)
    return x, c_noise, torch.eye(10)[torch.arange(batch)]


def test_shipped_checkpoint_is_small_and_says_what_it_is() -> None:
    net, facts = load_digits()
    assert CHECKPOINT.stat().st_size < 5_000_000
    assert set(facts) == FACTS
    assert all(facts.values())
    assert int(facts["parameters"]) == sum(p.numel() for p in net.parameters())
    assert 0.7 < float(facts["sigma_data"]) < 0.8
    assert float(facts["loss"]) < 0.3
    assert not net.training
    assert not any(p.requires_grad for p in net.parameters())


def test_shipped_loss_is_the_one_measured_again() -> None:
    net, facts = load_digits()
    images, labels, *_ = evaluate_digits.real_digits()
    loss = train_digits.mean_loss(net, images, labels, float(facts["sigma_data"]))
    # Printed with 4 decimals; the network's own rounding is orders below that.
    assert loss == pytest.approx(float(facts["loss"]), abs=1e-4)


def test_loading_leaves_the_global_generator_alone() -> None:
    before = torch.get_rng_state()
    load_digits()
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_output_follows_the_dtype_of_the_parameters(dtype: torch.dtype) -> None:
    x, c_noise, labels = inputs()
    exact = load_digits(dtype=torch.float64)[0](x, c_noise, labels)
    f = load_digits(dtype=dtype)[0](x.to(dtype), c_noise, labels)
    assert f.shape == (4, 1, 8, 8)
    assert f.dtype == dtype
    # About 25 roundings follow each other (six blocks of two convolutions and two norms); each
    # moves what it rounds by at most eps of its size, and the residual sums hardly amplify that.
    assert (f.double() - exact).abs().max() < 25 * torch.finfo(dtype).eps * exact.abs().max()


def test_noise_condition_broadcasts() -> None:
    net, _ = load_digits()
    x, _, labels = inputs()
    c_noise = torch.tensor(-0.3)
    f = net(x, c_noise.expand(4), labels)
    assert torch.equal(net(x, c_noise, labels), f)
    assert torch.equal(net(x, c_noise[None], labels), f)


def test_conditions_matter_and_a_zero_row_is_unconditional() -> None:
    net, _ = load_digits()
    x, c_noise, labels = inputs()
    conditional = net(x, c_noise, labels)
    mixed = net(x, c_noise, labels * torch.tensor([[0.0], [1], [1], [1]]))
    unconditional = net(x, c_noise, torch.zeros(4, 10))
    assert torch.equal(mixed[1:], conditional[1:])
    assert torch.equal(mixed[0], unconditional[0])
    assert (unconditional - conditional).abs().amax(dim=(1, 2, 3)).min() > 1e-3
    assert (net(x, c_noise + 0.1, labels) - conditional).abs().max() > 1e-3


def test_denoiser_returns_the_data_where_the_noise_is_small() -> None:
    """For sigma << sigma_data, D = x + O(sigma): the error is c_out F with F of unit size."""
    net, facts = load_digits()
    *_, images, labels = evaluate_digits.real_digits()
    sigma, sigma_data = 0.05, float(facts["sigma_data"])
    generator = torch.Generator().manual_seed(0)
    x = images + sigma * torch.randn(images.shape, generator=generator)
    total = sigma**2 + sigma_data**2
    one_hot = torch.eye(10)[labels]
    f = net(x / total**0.5, torch.tensor(sigma).log() / 4, one_hot)
    denoised = sigma_data**2 / total * x + sigma * sigma_data / total**0.5 * f
    # Data live on 17 values on a thin set, so a trained D removes most of the noise it is given.
    assert (denoised - images).square().mean().sqrt() < 0.8 * sigma


@pytest.mark.parametrize("pickled", ["torch", "pickle"])
def test_pickle_renamed_safetensors_is_refused(tmp_path: Path, pickled: str) -> None:
    path = tmp_path / "digits.safetensors"
    if pickled == "torch":
        torch.save(DigitsNet().state_dict(), path)
    else:
        path.write_bytes(pickle.dumps({"net": list(range(100))}))
    with pytest.raises(CheckpointError, match=r"not a safetensors file.*never a pickle"):
        load_digits(path)


@pytest.mark.parametrize("keep", [0, 7, 100, -1])
def test_truncated_file_is_refused(tmp_path: Path, keep: int) -> None:
    path = tmp_path / "digits.safetensors"
    path.write_bytes(CHECKPOINT.read_bytes()[:keep])
    with pytest.raises(CheckpointError):
        load_digits(path)


def test_safetensors_of_another_network_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "other.safetensors"
    safetensors.torch.save_file({"weight": torch.zeros(3)}, path)
    with pytest.raises(CheckpointError, match="does not hold a DigitsNet"):
        load_digits(path)


def test_checkpoint_without_sigma_data_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "units.safetensors"
    train_digits.save(path, DigitsNet(), {"steps": "0"})
    with pytest.raises(CheckpointError, match="sigma_data"):
        load_digits(path)


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="absent"):
        load_digits(tmp_path / "absent.safetensors")


def test_new_network_has_expected_loss_one() -> None:
    """EDM: lambda c_out^2 = 1, and for N(0, sigma_data^2) data the target has variance 1.

    The target is then exactly N(0, 1) for every sigma, so the mean of n squares has variance 2/n;
    allow five standard deviations.
    """
    generator = torch.Generator().manual_seed(0)
    sigma_data, batch = 0.75, 500
    x0 = sigma_data * torch.randn(batch, 1, 8, 8, generator=generator)
    with torch.no_grad():
        loss = train_digits.edm_loss(DigitsNet(), x0, torch.zeros(batch, 10), sigma_data, generator)
    assert loss.shape == (batch,)
    assert abs(loss.mean().item() - 1) < 5 * (2 / (64 * batch)) ** 0.5


def test_training_command_writes_a_checkpoint_that_loads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train_digits, "LOSS_SAMPLES", 50)
    out = tmp_path / "new" / "digits.safetensors"
    result = CliRunner().invoke(
        train_digits.main,
        ["--steps", "3", "--out", str(out), "--samples", "10"],
        catch_exceptions=False,
    )
    assert result.exit_code == 0
    assert "guidance 2: " in result.output
    _, facts = load_digits(out)
    assert set(facts) == FACTS
    assert facts["steps"] == "3"
    assert [path.name for path in out.parent.iterdir()] == [out.name]


def test_training_repeats_bit_for_bit() -> None:
    images, labels, *_ = evaluate_digits.real_digits()
    first, _ = train_digits.train(images, labels, 0.75, steps=2, minutes=None, seed=1)
    second, taken = train_digits.train(images, labels, 0.75, steps=2, minutes=None, seed=1)
    assert taken == 2
    for a, b in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(a, b)


def test_guided_samples_are_recognised(tmp_path: Path) -> None:
    """20 samples at guidance 2: fewer than 19 right has probability 2e-4 if 99.9 % are right."""
    net, facts = load_digits()
    grid = tmp_path / "grid.png"
    accuracies = evaluate_digits.evaluate(net, facts, 20, 12, (2.0,), seed=0, grid=grid)
    assert accuracies[2.0] >= 19 / 20
    assert Image.open(grid).size == (1000, 50)


@pytest.mark.parametrize("batch", [2, 3, 7])
def test_samples_do_not_depend_on_the_batch_if_the_network_is_evaluated_one_by_one(batch: int) -> None:
    net, facts = load_digits()
    plan = fastdiff.plan(
        schedule="edm", prediction=edm(float(facts["sigma_data"])), steps=3, guidance=2.0, churn=fastdiff.Churn(1)
    )
    labels = torch.eye(10)[:batch]

    def draw(chosen: slice) -> torch.Tensor:
        cond, uncond = {"class_labels": labels[chosen]}, {"class_labels": torch.zeros_like(labels[chosen])}
        seeds = torch.arange(batch)[chosen]
        return fastdiff.sample(net, plan, (len(seeds), 1, 8, 8), seeds, cond=cond, uncond=uncond, network_batch=1)

    together = draw(slice(None))
    for i in range(batch):
        assert same_bits(draw(slice(i, i + 1)), together[i : i + 1])

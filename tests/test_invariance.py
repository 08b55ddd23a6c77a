"""The same seed gives the same bits: batch, position, threads, layouts, compiled or not, again and again."""

import pytest
import torch

import fastdiff
from fastdiff import ops
from fastdiff.testing.rows import same_bits

PLAN = fastdiff.plan(steps=4, churn=fastdiff.Churn(2), guidance=2.0)
SAMPLE = (2, 3, 5)
SEEDS = torch.arange(1000, 1257)


def net(z, c_noise):
    """Elementwise, so batch-invariant itself."""
    return z * 0.3 + z.square() * 0.01


@pytest.fixture(scope="module")
def everyone():
    return fastdiff.sample(net, PLAN, (257, *SAMPLE), SEEDS)


@pytest.mark.parametrize("batch", [1, 2, 3, 7, 64, 257])
def test_batch_size_and_position(everyone, batch):
    order = torch.randperm(257, generator=torch.Generator().manual_seed(batch))[:batch]
    assert same_bits(fastdiff.sample(net, PLAN, (batch, *SAMPLE), SEEDS[order]), everyone[order])


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("network_dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_backends_and_network_dtypes(backend, network_dtype):
    # A network whose output is exact in every type: the state must not notice in which one it travels.
    def exact(z, c_noise):
        return (z.float() > 0).to(z.dtype)

    with fastdiff.use_backend(backend):
        found = fastdiff.sample(exact, PLAN, (5, *SAMPLE), 0, network_dtype=network_dtype)
    assert same_bits(found, fastdiff.sample(exact, PLAN, (5, *SAMPLE), 0))


def test_layouts():
    row_major = fastdiff.sample(net, PLAN, (5, *SAMPLE), 0)
    channels_last = fastdiff.sample(net, PLAN, (5, *SAMPLE), 0, memory_format=torch.channels_last)
    assert channels_last.is_contiguous(memory_format=torch.channels_last)
    assert same_bits(row_major, channels_last)
    deep = (4, 2, 3, 2, 3)
    three_d = fastdiff.sample(net, PLAN, deep, 0, memory_format=torch.channels_last_3d)
    assert same_bits(fastdiff.sample(net, PLAN, deep, 0), three_d)


@pytest.mark.parametrize("shape", [(1, 70001), (3, 40000), (4097, 17)])
def test_threads(shape):
    before = torch.get_num_threads()
    found = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found.append(fastdiff.sample(net, fastdiff.plan(steps=2, churn=fastdiff.Churn(1)), shape, 7))
    finally:
        torch.set_num_threads(before)
    assert same_bits(found[0], found[1])
    assert same_bits(found[0], found[2])


def test_a_thousand_repeats():
    first = fastdiff.sample(net, PLAN, (2, *SAMPLE), 3)
    for _ in range(1000):
        assert same_bits(fastdiff.sample(net, PLAN, (2, *SAMPLE), 3), first)


def test_torch_generator_is_neither_read_nor_moved():
    state = torch.random.get_rng_state()
    first = fastdiff.sample(net, PLAN, (2, *SAMPLE), 3)
    assert torch.equal(torch.random.get_rng_state(), state)
    torch.manual_seed(99)
    assert same_bits(fastdiff.sample(net, PLAN, (2, *SAMPLE), 3), first)


def test_ops_compiled_give_the_bits_of_eager():
    row = PLAN.rows[2]
    coef = torch.tensor([row.coefficients])
    draws = torch.tensor([[[d.purpose, d.tensor, d.draw, d.sub_draw] for _, d in row.draws]])
    seeds = torch.arange(4)
    x, f, g = torch.randn(3, 4, 33, generator=torch.Generator().manual_seed(0))

    def run(x, f, g):
        x, z = x.clone(), torch.zeros(8, 33)
        ops.stage([x, f, g], coef, row.program, seeds=seeds, draws=draws, stores=[x], z=z)
        return x, z

    for eager, compiled in zip(run(x, f, g), torch.compile(run, fullgraph=True)(x, f, g), strict=True):
        assert same_bits(eager, compiled)


def test_networks_that_look_at_their_batch_are_exact_in_fixed_chunks():
    def nosy(z, c_noise):
        return z * (0.3 + 0.01 * z.shape[0]) + z.mean() * 0.01

    one = fastdiff.sample(nosy, PLAN, (1, *SAMPLE), 4, network_batch=1)
    many = fastdiff.sample(nosy, PLAN, (7, *SAMPLE), 0, network_batch=1)
    assert same_bits(many[4:5], one)
    assert not same_bits(
        fastdiff.sample(nosy, PLAN, (7, *SAMPLE), 0)[4:5], fastdiff.sample(nosy, PLAN, (1, *SAMPLE), 4)
    )


def test_chunks_are_padded_to_their_size():
    sizes = []

    def spy(z, c_noise, label):
        sizes.append((len(z), len(c_noise), len(label)))
        return z * label.view(-1, 1, 1, 1)

    label = torch.linspace(0.1, 0.5, 5)
    found = fastdiff.sample(spy, fastdiff.plan(steps=2), (5, *SAMPLE), 0, cond={"label": label}, network_batch=3)
    assert set(sizes) == {(3, 3, 3)}
    plain = fastdiff.sample(
        lambda z, c, label: z * label.view(-1, 1, 1, 1), fastdiff.plan(steps=2), (5, *SAMPLE), 0, cond={"label": label}
    )
    assert same_bits(found, plain)

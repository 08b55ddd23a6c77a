"""``sample(cuda_graph=True)``: replays have the bits of the loop for all numbers, and what cannot be is refused."""

import gc
import threading

import pytest
import torch
from emulated import EmulatedCuda
from pretend_graph import recorded
from torch import nn

import fastdiff
from fastdiff.errors import InputError, NetworkError
from fastdiff.runs import graph
from fastdiff.runs.graph import clear_graphs
from fastdiff.runs.tables import Tables
from fastdiff.testing.rows import same_bits

SHAPE = (3, 2, 5, 4)
CHURNED = fastdiff.plan(steps=4, churn=fastdiff.Churn(10.0), guidance=2.0)
TURNED = fastdiff.Guidance(2.0, order=("uncond", "cond"))


@pytest.fixture(scope="module")
def library():
    return EmulatedCuda()


@pytest.fixture
def pretend(library):
    with recorded(library) as recording:
        yield recording


class Net(nn.Module):
    """Reads everything that a replay may change."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.linspace(0.1, 0.4, 2))

    def forward(self, z, c_noise, label, scale=1.0):
        label = label if label.dim() == 1 else label.sum(1)
        shift = (0.01 * c_noise + label).view(-1, 1, 1, 1)
        return torch.tanh(z * self.weight.view(2, 1, 1) * scale + shift.to(z.dtype))


@pytest.fixture
def net():
    return Net()


def conditions(value=0.5):
    label = torch.tensor([value, 1.0, 1.5])
    return {"cond": {"label": label}, "uncond": {"label": -label}}


def both(net, plan, seeds, **options):
    """The same sampling, replayed and as a loop."""
    options = conditions() | options
    replayed = fastdiff.sample(net, plan, SHAPE, seeds, cuda_graph=True, **options)
    return replayed, fastdiff.sample(net, plan, SHAPE, seeds, **options)


def test_new_numbers_need_no_new_recording(pretend, net):
    other = fastdiff.plan(schedule=[50.0, 10.0, 1.0, 0.1, 0.0], churn=fastdiff.Churn(7.0), guidance=3.5)
    assert other.structure == CHURNED.structure
    assert other.sha256 != CHURNED.sha256
    found = []
    for plan in (CHURNED, other, CHURNED):
        for seeds in (0, [5, 3, 2**40], torch.tensor([7, 8, 9])):
            for label in (0.5, -2.0):
                replayed, looped = both(net, plan, seeds, **conditions(label))
                assert same_bits(replayed, looped)
                found.append(replayed)
    assert pretend.made == 1
    assert pretend.replays == len(found) == 18
    # The samples are theirs who asked, and all differ but for the repeated plan.
    assert len({tuple(sample.flatten().tolist()) for sample in found}) == 12


def test_a_callers_noise_is_replayed(pretend, net):
    plan = fastdiff.plan(steps=3, churn=fastdiff.Churn(10.0), noise="caller")

    def noise_of(seed):
        def noise(row, draw):
            return torch.randn(SHAPE, generator=torch.Generator().manual_seed(1000 * seed + 10 * row + draw))

        return noise

    for seed in (1, 2):
        replayed, looped = both(net, plan, 0, noise=noise_of(seed), uncond=None)
        assert same_bits(replayed, looped)
    assert pretend.made == 1


def test_what_is_baked_in_makes_another_recording(pretend, net):
    # The first recording is still kept when the next three are made, which differ from it in one thing each.
    options = [
        {},
        {"plan": fastdiff.plan(steps=4, churn=fastdiff.Churn(10.0), guidance=TURNED)},
        {"cond": {"label": torch.ones(3, 2)}, "uncond": {"label": torch.zeros(3, 2)}},
        {"plan": fastdiff.plan(steps=5, churn=fastdiff.Churn(10.0), guidance=2.0)},
        {"plan": fastdiff.plan(steps=4, churn=fastdiff.Churn(10.0))},
        {"network_dtype": torch.bfloat16},
        {"network_batch": 1},
        {"memory_format": torch.channels_last},
        {"cond": {"label": torch.ones(3), "scale": 0.5}, "uncond": {"label": torch.ones(3), "scale": 0.5}},
    ]
    for made, changed in enumerate(options, start=1):
        plan = changed.pop("plan", CHURNED)
        net.to(changed.get("network_dtype", torch.float32))
        for seeds in (1, 2):
            replayed, looped = both(net, plan, seeds, **changed)
            assert same_bits(replayed, looped), changed
        assert pretend.made == made, changed


def test_moved_parameters_and_other_modes_are_noticed(pretend, net):
    both(net, CHURNED, 0)
    with torch.no_grad():
        net.weight.mul_(2.0)  # in its place: the recording reads it
    assert same_bits(*both(net, CHURNED, 0))
    assert pretend.made == 1
    net.weight.data = net.weight.data * 0.5
    assert same_bits(*both(net, CHURNED, 0))
    assert pretend.made == 2
    net.eval()
    assert same_bits(*both(net, CHURNED, 0))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert same_bits(*both(net, CHURNED, 0))
    assert pretend.made == 4


def test_recordings_live_as_long_as_their_network(pretend):
    net = Net()
    both(net, CHURNED, 0)
    both(net.forward, CHURNED, 0)
    both(net.forward, CHURNED, 1)
    assert pretend.made == 2
    (kept,) = graph._recorded.values()
    assert len(kept) == 2
    for size in range(1, 7):
        fastdiff.sample(net, CHURNED, (size, 2, 3, 3), 0, cuda_graph=True, **_of_size(size))
    assert len(kept) == graph.MOST_PER_NETWORK
    del net
    gc.collect()
    assert not graph._recorded


def _of_size(size):
    return {"cond": {"label": torch.zeros(size)}, "uncond": {"label": torch.ones(size)}}


def test_clear_graphs_forgets(pretend, net):
    both(net, CHURNED, 0)
    clear_graphs()
    both(net, CHURNED, 0)
    assert pretend.made == 2


def test_inside_inference_mode_and_after_it(pretend, net):
    with torch.inference_mode():
        replayed, looped = both(net, CHURNED, 0)
    assert same_bits(replayed, looped)
    assert not replayed.is_inference()
    assert same_bits(*both(net, CHURNED, 1))
    assert pretend.made == 1


def test_threads_share_a_recording(pretend, net):
    both(net, CHURNED, 0)
    expected = [fastdiff.sample(net, CHURNED, SHAPE, seed, **conditions()) for seed in range(8)]
    got = [None] * 8

    def draw(seed):
        got[seed] = fastdiff.sample(net, CHURNED, SHAPE, seed, cuda_graph=True, **conditions())

    threads = [threading.Thread(target=draw, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(same_bits(*pair) for pair in zip(got, expected, strict=True))
    assert pretend.made == 1


@pytest.mark.parametrize(
    "option", [{"callback": print}, {"progress": True}, {"differentiable": True}], ids=lambda option: next(iter(option))
)
def test_what_needs_the_host_is_refused(pretend, net, option):
    with pytest.raises(InputError, match=f"{next(iter(option))} cannot be had with cuda_graph=True"):
        both(net, CHURNED, 0, **option)
    assert pretend.made == 0


def test_a_network_that_waits_is_refused_and_nothing_is_kept(pretend):
    def waits(z, c_noise, label):
        return z * (0.5 if c_noise[0].item() > 0 else 0.25)

    expected = r"did something at .*\.py:\d+ that a CUDA graph cannot record \(CUDA error: operation not"
    with pytest.raises(NetworkError, match=expected + r" permitted when stream is capturing\)\. It must"):
        both(waits, CHURNED, 0)
    assert not graph._recorded.get(waits)
    assert pretend.current_stream().name == "main"
    fastdiff.sample(waits, CHURNED, SHAPE, 0, **conditions())


def test_a_network_that_changes_shape_is_refused(pretend):
    calls = []

    def changes(z, c_noise, label):
        calls.append(z)
        return z / 2 if len(calls) <= CHURNED.evaluations + 2 else z[:, :1]

    with pytest.raises(NetworkError, match=r"the network returned shape \[6, 1, 5, 4\]; it must return \[6, 2, 5, 4\]"):
        both(changes, CHURNED, 0)
    assert not graph._recorded.get(changes)


def test_an_error_of_the_network_itself_comes_through(pretend):
    def broken(z, c_noise, label):
        raise ValueError("no such label")

    with pytest.raises(ValueError, match="no such label"):
        both(broken, CHURNED, 0)


def test_conditioning_that_cannot_be_told_apart_is_refused(pretend, net):
    given = {"label": torch.ones(3), "scale": {1.0}}
    with pytest.raises(InputError, match="conditioning that is no tensor is baked into a graph and must be hashable"):
        fastdiff.sample(net, fastdiff.plan(steps=2), SHAPE, 0, cuda_graph=True, cond=given)


def test_a_network_that_cannot_be_watched_is_refused(pretend):
    class Slots:
        __slots__ = ()

        def __call__(self, z, c_noise):
            return z

    with pytest.raises(InputError, match="a Slots cannot be watched"):
        fastdiff.sample(Slots(), fastdiff.plan(steps=2), SHAPE, 0, cuda_graph=True)


def test_a_recording_warms_up_on_a_stream_of_its_own_and_takes_turns(pretend, net):
    def told(z, c_noise, label):
        if "network" not in pretend.events:
            pretend.events.append("network")
        return net(z, c_noise, label)

    fastdiff.sample(told, CHURNED, SHAPE, 0, cuda_graph=True, **conditions())
    assert pretend.events == [
        "side waits for main",
        "on side",
        "network",
        "main waits for side",
        "capture begins on side",
        "capture ends",
        "wait",
        "replay",
        "record",
    ]


def test_a_turn_ends_in_order_when_something_breaks_off(pretend, net, monkeypatch):
    both(net, CHURNED, 0)
    pretend.events.clear()
    monkeypatch.setattr(fastdiff.Run, "finish", _out_of_memory)
    with pytest.raises(torch.OutOfMemoryError):
        fastdiff.sample(net, CHURNED, SHAPE, 0, cuda_graph=True, **conditions())
    assert pretend.events == ["wait", "replay", "record"]


def test_a_plan_that_was_loaded_in_part_is_loaded_again(pretend, net, monkeypatch):
    both(net, CHURNED, 0)
    load, other = Tables.load, fastdiff.plan(steps=4, churn=fastdiff.Churn(10.0), guidance=3.0)

    def broken(tables, plan):
        load(tables, plan)
        _out_of_memory()

    monkeypatch.setattr(Tables, "load", broken)
    with pytest.raises(torch.OutOfMemoryError):
        fastdiff.sample(net, other, SHAPE, 0, cuda_graph=True, **conditions())
    monkeypatch.setattr(Tables, "load", load)
    assert same_bits(*both(net, CHURNED, 0))


def _out_of_memory(*_, **__):
    raise torch.OutOfMemoryError("CUDA out of memory")


def test_memory_is_kept_from_others_while_another_stream_uses_it(pretend, net):
    both(net, CHURNED, 0)
    assert pretend.kept_for == []
    other = pretend.Stream()
    with pretend.stream(other):
        replayed = fastdiff.sample(net, CHURNED, SHAPE, 1, cuda_graph=True, **conditions())
    assert same_bits(replayed, fastdiff.sample(net, CHURNED, SHAPE, 1, **conditions()))
    # Seeds, network input, one buffer, coefficients, draws, c_noise, and the label.
    assert pretend.kept_for == [other] * 7


def test_running_out_of_memory_is_not_the_networks_fault(pretend, net):
    calls = []

    def greedy(z, c_noise, label):
        calls.append(z)
        if len(calls) > CHURNED.evaluations:
            _out_of_memory()
        return net(z, c_noise, label)

    with pytest.raises(torch.OutOfMemoryError):
        both(greedy, CHURNED, 0)
    assert pretend.current_stream().name == "main"


def test_a_network_that_records_itself_is_refused(pretend, net):
    def cascade(z, c_noise, label):
        return net(z, c_noise, label) + fastdiff.sample(net, CHURNED, SHAPE, 0, cuda_graph=True, **conditions())[0]

    with pytest.raises(InputError, match="recordings do not nest; leave cuda_graph out inside"):
        both(cascade, CHURNED, 0)


def test_recordings_can_be_cleared_from_within_a_network(pretend, net):
    def tidy(z, c_noise, label):
        clear_graphs()
        return net(z, c_noise, label)

    assert same_bits(*both(tidy, CHURNED, 0))


def test_conditioning_must_be_where_the_graph_reads_it(pretend, net):
    with pytest.raises(InputError, match="a conditioning tensor is on meta and the sampling on cpu; a graph would not"):
        both(net, fastdiff.plan(steps=2), 0, cond={"label": torch.ones(3, device="meta")})


def test_noise_and_plan_go_together_as_in_the_loop(pretend, net):
    injected = fastdiff.plan(steps=3, noise="caller")
    for plan, noise in ((injected, None), (CHURNED, lambda row, draw: torch.ones(SHAPE))):
        for recorded_ in (True, False):
            with pytest.raises(InputError, match="the two go together"):
                fastdiff.sample(net, plan, SHAPE, 0, noise=noise, cuda_graph=recorded_, **conditions())


def test_parameters_of_another_shape_type_or_kind_are_noticed(pretend):
    net = nn.Module()
    net.weight = nn.Parameter(torch.rand(2, 2))
    net.forward = lambda z, c_noise: torch.einsum("bcij,cd->bdij", z, net.weight).contiguous()
    plan = fastdiff.plan(steps=2)

    def drawn():
        replayed, looped = (fastdiff.sample(net, plan, SHAPE, 0, cuda_graph=on) for on in (True, False))
        assert same_bits(replayed, looped)

    drawn()
    net.weight.data = net.weight.data.t()  # in the same memory
    drawn()
    net.inner = nn.Dropout().eval()
    drawn()
    net.inner.train()
    drawn()
    assert pretend.made == 4
    net.later = nn.LazyLinear(3)
    with pytest.raises(InputError, match="has no shape yet; call the network once before it is recorded"):
        drawn()


def test_only_cuda_devices_have_graphs(net):
    with pytest.raises(InputError, match="cuda_graph=True was asked for on cpu; graphs exist on cuda only"):
        both(net, CHURNED, 0)

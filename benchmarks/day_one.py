"""The first day on a GPU: bits, graphs, memory checks and times that nobody could show without one.

Every section runs here too, with ``--pretend``: on the CPU, with the kernels of the emulated CUDA backend, and
with graphs that the CPU records. Its times then mean nothing, and the page says so.
"""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import fastdiff
from fastdiff import ops
from fastdiff.backends import reference
from fastdiff.backends.registry import list_backends
from fastdiff.errors import NetworkError
from fastdiff.rows.row import NETWORK_PREFIX, Row
from fastdiff.runs.graph import clear_graphs
from fastdiff.testing import gram
from fastdiff.testing.rows import random_case, run_on, same_bits

ROOT = Path(__file__).parents[1]
OK, FAILED, SKIPPED = "ok", "FAILED", "skipped"
SANITIZERS = ("memcheck", "racecheck", "initcheck")
MOST_ELEMENTS = 4097
GRAM_SIZES = tuple(size for size in gram.SIZES if size)
ROWS = 24
"""So many rows go through the checkers: the first of the section ``bits``, which Triton has compiled by then."""
CHURN = fastdiff.Churn(40.0)


@dataclass(frozen=True)
class Line:
    """One line of the page."""

    section: str
    name: str
    status: str
    text: str


Lines = Iterator[tuple[str, str, str]]


class Gpu:
    """The device, as far as the sections need one.

    ``describe``, ``capture`` and ``seconds`` are all that only a device can run; the tests run everything else.
    """

    device, backends = torch.device("cuda"), ("cuda", "triton")
    cases_seconds, rounds, most_quads = 60.0, 50, 2**24
    sanitizer_seconds = 60.0

    def devices(self) -> list[torch.device]:
        """All that are there."""
        return [torch.device("cuda", index) for index in range(torch.cuda.device_count())]

    def describe(self) -> str:
        """The device in a few words."""
        major, minor = torch.cuda.get_device_capability()
        memory = torch.cuda.get_device_properties(0).total_memory / 2**30
        return f"{torch.cuda.get_device_name()}, capability {major}.{minor}, {memory:.0f} GiB"

    def capture(self, work: Callable[[], None]) -> Callable[[], None]:
        """Record a function's launches; what is returned replays them."""
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            work()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            work()
        return graph.replay

    def seconds(self, work: Callable[[], None]) -> float:
        """Time of one call on the device, the median of several."""
        times = []
        for _ in range(self.rounds):
            start, end = (torch.cuda.Event(enable_timing=True) for _ in "se")
            start.record()
            work()
            end.record()
            end.synchronize()
            times.append(start.elapsed_time(end) / 1000)
        return statistics.median(times)

    def sanitizer(self) -> str | None:
        """The tool's path, or None."""
        return shutil.which("compute-sanitizer") or shutil.which("compute-sanitizer", path="/usr/local/cuda/bin")


class PretendGpu(Gpu):
    """The CPU in its place, with the CUDA backend emulated; nothing that it measures means anything."""

    device, backends = torch.device("cpu"), ("emulated-cuda",)
    cases_seconds, rounds, most_quads = 2.0, 3, 2**12

    def devices(self) -> list[torch.device]:
        """The CPU alone."""
        return [self.device]

    def describe(self) -> str:
        """That there is none."""
        return f"PRETENDED, on {platform.processor() or platform.machine()}: no figure on this page means anything"

    def capture(self, work: Callable[[], None]) -> Callable[[], None]:
        """The function itself, once it has run."""
        work()
        return work

    def seconds(self, work: Callable[[], None]) -> float:
        """Time of one call on the host."""
        times = []
        for _ in range(self.rounds):
            start = time.perf_counter()
            work()
            times.append(time.perf_counter() - start)
        return statistics.median(times)

    def sanitizer(self) -> str | None:
        """A tool that runs the command that it is given, with a setting before it."""
        return shutil.which("env")


# Sections ----------------------------------------------------------------------------------------------------------


def machine(gpu: Gpu) -> Lines:
    """What was found."""
    yield "device", OK, gpu.describe()
    yield "software", OK, f"fastdiff {fastdiff.__version__}, torch {torch.__version__}, CUDA {torch.version.cuda}"
    for report in list_backends():
        if report.usable:
            yield f"backend {report.name}", OK, report.details
        else:
            # On a GPU both must be there; elsewhere their absence is a fact, not a failure.
            wanted = report.name in gpu.backends
            yield f"backend {report.name}", FAILED if wanted else SKIPPED, str(report.reason)


def bits(gpu: Gpu) -> Lines:
    """Random rows and grams against the reference, which runs on the CPU."""
    for name in usable(gpu):
        for what, some in (("rows", some_row), ("grams", some_gram)):
            cases, wrong, end = 0, None, time.monotonic() + gpu.cases_seconds
            while wrong is None and time.monotonic() < end:
                wrong = some(gpu.device, name, cases)
                cases += 1
            text = f"the reference's bits on {cases} random {what}" if wrong is None else f"other bits: {wrong}"
            yield f"{what}, {name}", OK if wrong is None else FAILED, text


def noise(gpu: Gpu) -> Lines:
    """Many normals against the reference."""
    shape = (4, gpu.most_quads // 16)
    seeds, counter = [0, 1, 2**40 + 3, 2**63 - 1], (1, 2, 3, 4)
    expected = torch.empty(shape)
    with fastdiff.use_backend("reference"):
        ops.fill_noise(expected, seeds, *counter)
    for name in usable(gpu):
        got = torch.empty(shape, device=gpu.device)
        with fastdiff.use_backend(name):
            ops.fill_noise(got, seeds, *counter)
        same = same_bits(got.cpu(), expected)
        yield f"noise, {name}", OK if same else FAILED, f"{expected.numel()} normals, {'the same' if same else 'OTHER'}"


def graphs(gpu: Gpu) -> Lines:
    """Whole samplings recorded once and replayed with other numbers, on every device."""
    for device in gpu.devices():
        for name in usable(gpu):
            with fastdiff.use_backend(name):
                for what, same, text in (*replays(device), *recordings(device), *refusals(device)):
                    yield f"{what}, {device}, {name}", OK if same else FAILED, text
        clear_graphs()


def sanitizer(gpu: Gpu) -> Lines:
    """The vendor's own checkers on a few rows, in processes of their own."""
    tool = gpu.sanitizer()
    if tool is None:
        yield (
            "compute-sanitizer",
            SKIPPED,
            "it is neither in PATH nor in /usr/local/cuda/bin; it comes with the toolkit",
        )
        return
    for name in SANITIZERS:
        pretend = isinstance(gpu, PretendGpu)
        options = [f"TOOL={name}"] if pretend else ["--tool", name, "--error-exitcode", "1"]
        command = [tool, *options, sys.executable, __file__, "--rows", str(ROWS), *(["--pretend"] if pretend else [])]
        # Each tensor in an allocation of its own: inside torch's large ones no access is out of bounds.
        environment = os.environ | {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
        limit = gpu.sanitizer_seconds
        try:
            done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=limit)
        except subprocess.TimeoutExpired:
            yield name, SKIPPED, f"it did not end within {limit:g} s; run it by itself: {' '.join(command)}"
            continue
        last = (done.stdout.strip() or done.stderr.strip()).splitlines()[-1:]
        yield name, FAILED if done.returncode else OK, "; ".join(last)


def times(gpu: Gpu) -> Lines:
    """Each launch of stochastic Heun, beside a copy on the device that moves as many bytes."""
    for guidance in (1.0, 2.0):
        plan = fastdiff.plan(steps=4, churn=CHURN, guidance=guidance)
        moved = plan.traffic(2)
        for at, label in ((1, "predictor"), (2, "corrector")):
            for quads in sorted({gpu.most_quads // 256, gpu.most_quads}):
                bytes_ = moved[at] * 4 * quads
                copied = copy_seconds(gpu, bytes_)
                for name in (*usable(gpu), "reference"):
                    taken = row_seconds(gpu, plan.rows[at], name, quads)
                    speed, share = bytes_ / taken / 1e9, copied / taken
                    text = f"{taken * 1e6:.1f} us, {speed:.0f} GB/s, {100 * share:.0f} % of a copy's speed"
                    yield f"{label}, guidance {guidance:g}, {4 * quads} elements, {name}", OK, text
    yield from loop_times(gpu)


# What the sections are made of -------------------------------------------------------------------------------------


def usable(gpu: Gpu) -> list[str]:
    """The backends of the device that can run here."""
    return [report.name for report in list_backends() if report.usable and report.name in gpu.backends]


def some_row(device: torch.device, backend: str, seed: int) -> str | None:
    """Run a random row; what it is if its bits are not the reference's."""
    case = random_case(seed, max_elements=MOST_ELEMENTS)
    got, expected = case.run(run_on(device, backend)), case.run("reference")
    return None if agree(got, expected) else case.describe()


def some_gram(device: torch.device, backend: str, seed: int) -> str | None:
    """Run a random gram; what it is if its bits are not the reference's."""
    case = gram.random_gram(seed, GRAM_SIZES)
    got, expected = case.run(gram.run_on(device, backend)), case.run(reference.gram)
    return None if agree(got, expected) else case.describe()


def agree(got: dict[str, Tensor], expected: dict[str, Tensor]) -> bool:
    """Whether all that must be written has the right bits."""
    return all(same_bits(got[key], value) for key, value in expected.items())


PLANS = [fastdiff.plan(steps=4, churn=CHURN, guidance=scale) for scale in (2.0, 3.5)]
Found = Iterator[tuple[str, bool, str]]


def drawn(net: Callable[..., Tensor], batch: int, device: torch.device, **options: Any) -> Tensor:
    """Samples with a bfloat16 network that takes a label."""
    label = torch.linspace(0.5, 1.5, batch, device=device) * options.pop("factor", 1.0)
    options = {"plan": PLANS[0], "seeds": 0, "cuda_graph": True} | options
    given = {"cond": {"label": label}, "uncond": {"label": -label}, "network_dtype": torch.bfloat16}
    return fastdiff.sample(net, shape=(batch, 4, 16, 16), device=device, **given, **options).cpu()


def replays(device: torch.device) -> Found:
    """New seeds, coefficients and conditioning, against the loop."""

    def net(z: Tensor, c_noise: Tensor, label: Tensor) -> Tensor:
        return torch.tanh(z * 0.75 + (c_noise * 0.01 + label).view(-1, 1, 1, 1).to(z.dtype))

    for seeds, plan, factor in ((11, 0, 1.0), (12, 0, 1.0), (12, 1, 1.0), (12, 1, 0.5)):
        numbers = {"seeds": seeds, "plan": PLANS[plan], "factor": factor}
        replay, loop = (drawn(net, 3, device, cuda_graph=on, **numbers) for on in (True, False))
        same = same_bits(replay, loop) and bool(replay.isfinite().all())
        text = "replay equals the loop" if same else "replay and loop DIFFER"
        yield "graph", same, f"seed {seeds}, plan {plan}, label x{factor}: {text}"


def recordings(device: torch.device) -> Found:
    """More recordings than are kept, of a network whose matrix products take workspaces; on two streams at last."""
    weight = torch.linspace(-1, 1, 2**16, device=device).view(256, 256).to(torch.bfloat16) / 16

    def net(z: Tensor, c_noise: Tensor, label: Tensor) -> Tensor:
        return torch.tanh(z.flatten(2) @ weight + label.view(-1, 1, 1).to(z.dtype)).view(z.shape)

    batches = range(1, 7)
    first = [drawn(net, batch, device) for batch in batches]
    torch.cuda.empty_cache()
    again = [drawn(net, batch, device) for batch in batches]
    same = all(map(same_bits, first, again))
    yield (
        "recordings",
        same,
        f"{len(first)} recordings, four kept: {'the same again' if same else 'they DISTURB each other'}",
    )
    streams = [torch.cuda.Stream() for _ in "ab"]
    last = []
    for stream, batch in zip(streams * 8, (5, 6) * 8, strict=True):
        with torch.cuda.stream(stream):
            last.append(same_bits(drawn(net, batch, device), first[batch - 1]))
    yield "two streams", all(last), "the same again" if all(last) else "they DISTURB each other"


def refusals(device: torch.device) -> Found:
    """A network that cannot be recorded, and what is left behind."""

    def waits(z: Tensor, c_noise: Tensor, label: Tensor) -> Tensor:
        return z * float(c_noise[0].item() > 0)

    before = torch.cuda.current_stream()
    try:
        drawn(waits, 1, device)
    except NetworkError as error:
        left = drawn(waits, 1, device, cuda_graph=False).isfinite().all() and torch.randn(1, device=device).isfinite()
        sound = bool(left) and torch.cuda.current_stream() == before
        after = "goes on working" if sound else "is BROKEN"
        yield "refusal", sound, f"{str(error).partition('. It must')[0]}; the process {after}"
    else:
        yield "refusal", False, "a network that waits for the device was recorded"


def halved(z: Tensor, c_noise: Tensor) -> Tensor:
    """A network of one operation."""
    return z * 0.5


def copy_seconds(gpu: Gpu, bytes_: int) -> float:
    """Time in which the device copies half so many bytes, reading one half and writing the other."""
    source = torch.zeros(bytes_ // 2, dtype=torch.uint8, device=gpu.device)
    target = torch.empty_like(source)
    gpu.seconds(lambda: target.copy_(source))
    return gpu.seconds(lambda: target.copy_(source))


def row_seconds(gpu: Gpu, row: Row, backend: str, quads: int) -> float:
    """Time of one row on one sample with a bfloat16 network."""

    def tensor(network: bool, copies: int = 1) -> Tensor:
        return torch.zeros(copies, 4 * quads, dtype=torch.bfloat16 if network else torch.float32, device=gpu.device)

    columns = {name: tensor(name.startswith(NETWORK_PREFIX)) for name in row.columns}
    stores = [None if o.store is None else columns.get(o.store, tensor(False)) for o in row.outputs]
    words = [[[d.purpose, d.tensor, d.draw, d.sub_draw] for _, d in row.draws]]
    tables = {}
    if row.draws:
        tables["seeds"] = torch.tensor([7], device=gpu.device)
        tables["draws"] = torch.tensor(words, device=gpu.device)
    coef, z = torch.tensor([row.coefficients], device=gpu.device), tensor(True, row.copies)

    def work() -> None:
        ops.stage(list(columns.values()), coef, row.program, stores=stores, z=z, **tables)

    with fastdiff.use_backend(backend):
        # Replayed, so that the host's time is left out.
        replay = gpu.capture(work) if backend != "reference" else work
        gpu.seconds(replay)
        return gpu.seconds(replay)


def loop_times(gpu: Gpu) -> Lines:
    """A whole sampling of 18 steps with a network of one operation: what the host adds, and that a replay does not."""
    plan, shape = fastdiff.plan(churn=CHURN, guidance=2.0), (1, 4, 32, 32)
    for name in usable(gpu):
        with fastdiff.use_backend(name):
            for replayed in (False, True):

                def work(replayed: bool = replayed) -> None:
                    options = {"device": gpu.device, "network_dtype": torch.bfloat16, "cuda_graph": replayed}
                    fastdiff.sample(halved, plan, shape, 0, **options)

                work()
                taken = gpu.seconds(work) / plan.evaluations
                yield f"sampling, {name}", OK, f"{'replay' if replayed else 'loop'}: {taken * 1e6:.1f} us an evaluation"
    clear_graphs()


SECTIONS = (machine, bits, noise, graphs, sanitizer, times)


def examine(gpu: Gpu) -> list[Line]:
    """Run all sections; one that breaks is a failed line, and the next goes on."""
    found, begun = [], time.monotonic()
    for section in SECTIONS:
        start = time.monotonic()
        try:
            found += [Line(section.__name__, *line) for line in section(gpu)]
        except Exception as error:  # whatever it is, the page must be written
            found.append(Line(section.__name__, "broke off", FAILED, f"{type(error).__name__}: {error}"))
        print(f"{section.__name__}: {time.monotonic() - start:.0f} s", file=sys.stderr)
    found.append(Line("end", "time", OK, f"{time.monotonic() - begun:.0f} s in all"))
    return found


def page(gpu: Gpu, lines: list[Line]) -> str:
    """The report in Markdown."""
    failed = [line for line in lines if line.status == FAILED]
    verdict = f"{len(failed)} of {len(lines)} lines FAILED" if failed else "nothing failed"
    rows = [f"| {line.section} | {line.name} | {line.status} | {line.text} |" for line in lines]
    head = ["# fastdiff on this GPU", "", f"{gpu.describe()}. {verdict}.", "", "| section | what | status | found |"]
    return "\n".join([*head, "|---|---|---|---|", *rows, ""])


def run_rows(gpu: Gpu, count: int) -> int:
    """A few rows, as many grams, and nothing else: what the sanitizers look at. Returns how many backends are wrong."""
    wrong = 0
    for name in usable(gpu):
        right = not any(some(gpu.device, name, seed) for some in (some_row, some_gram) for seed in range(count))
        print(f"{name}: {count} rows and grams, {'right' if right else 'WRONG'}")
        wrong += not right
    return wrong


def main() -> int:
    """Examine, write the page, and return 1 if something failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pretend", action="store_true", help="on the CPU, with the emulated CUDA backend")
    parser.add_argument("--out", type=Path, default=ROOT / "out" / "gpu_day_one.md", help="where the page is written")
    parser.add_argument("--rows", type=int, help="run so many random rows and grams, and nothing else")
    options = parser.parse_args()
    if not options.pretend and not torch.cuda.is_available():
        build = (
            f"torch {torch.__version__} was built for CUDA {torch.version.cuda}"
            if torch.version.cuda
            else (f"torch {torch.__version__} was built without CUDA: install another build of it in .venv")
        )
        print(f"torch finds no GPU here ({build}); --pretend runs the same script on the CPU", file=sys.stderr)
        return 2
    gpu = PretendGpu() if options.pretend else Gpu()
    with ExitStack() as stack:
        if options.pretend:
            sys.path.insert(0, str(ROOT / "tests" / "gpu"))
            from emulated import EmulatedCuda
            from pretend_graph import recorded

            stack.enter_context(recorded(EmulatedCuda()))
        if options.rows is not None:
            return min(run_rows(gpu, options.rows), 1)
        lines = examine(gpu)
    text = page(gpu, lines)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(text)
    print(text)
    print(f"written to {os.path.relpath(options.out)}", file=sys.stderr)
    return int(any(line.status == FAILED for line in lines))


if __name__ == "__main__":
    sys.exit(main())

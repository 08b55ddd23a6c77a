"""Faults in the Python loop: the run's launches, recordings of whole samplings, and the tables that both read."""

from __future__ import annotations

from mutant import Mutant

NUMBERS = "tests/gpu/test_graph.py::test_new_numbers_need_no_new_recording"
BAKED = "tests/gpu/test_graph.py::test_what_is_baked_in_makes_another_recording"
MOVED = "tests/gpu/test_graph.py::test_moved_parameters_and_other_modes_are_noticed"
LIVES = "tests/gpu/test_graph.py::test_recordings_live_as_long_as_their_network"
INFERENCE = "tests/gpu/test_graph.py::test_inside_inference_mode_and_after_it"
SHARED = "tests/gpu/test_graph.py::test_threads_share_a_recording"
CALLERS = "tests/gpu/test_graph.py::test_a_callers_noise_is_replayed"
ORDER = "tests/gpu/test_graph.py::test_a_recording_warms_up_on_a_stream_of_its_own_and_takes_turns"
BROKEN = "tests/gpu/test_graph.py::test_a_turn_ends_in_order_when_something_breaks_off"
PARTLY = "tests/gpu/test_graph.py::test_a_plan_that_was_loaded_in_part_is_loaded_again"
KEPT = "tests/gpu/test_graph.py::test_memory_is_kept_from_others_while_another_stream_uses_it"
GREEDY = "tests/gpu/test_graph.py::test_running_out_of_memory_is_not_the_networks_fault"
PLACED = "tests/gpu/test_graph.py::test_conditioning_must_be_where_the_graph_reads_it"
SHAPED = "tests/gpu/test_graph.py::test_parameters_of_another_shape_type_or_kind_are_noticed"
WAITS = "tests/gpu/test_graph.py::test_a_network_that_waits_is_refused_and_nothing_is_kept"
HOSTED = "tests/gpu/test_graph.py::test_what_needs_the_host_is_refused"
AUDIT = "tests/gpu/test_audit.py::test_a_loop_on_a_gpu_launches_once_for_each_evaluation_and_nothing_else"
BARE = "tests/gpu/test_audit.py::test_launches_without_checks_do_nothing_else_either"
COPIED = "tests/gpu/test_audit.py::test_a_replay_copies_seeds_and_conditioning_and_what_changed"
PREPARED = "tests/test_sampler.py::test_what_a_launch_is_not_prepared_for_is_checked_and_has_the_same_bits"
OWN = "tests/test_sampler.py::test_a_network_may_return_its_input"
RESTART = "tests/test_sampler.py::test_restart_gives_the_same_bits_in_the_same_buffers"

RUN = (
    Mutant(
        "a replay keeps the old seeds",
        "fastdiff/runs/graph.py",
        "run.memory.seeds.copy_(keys, non_blocking=True)",
        "pass",
        NUMBERS,
    ),
    Mutant("a replay keeps the old plan", "fastdiff/runs/graph.py", "run.memory.tables.load(plan)", "pass", NUMBERS),
    Mutant(
        "a plan is loaded for every replay", "fastdiff/runs/graph.py", "if plan is not self._plan:", "if True:", COPIED
    ),
    Mutant(
        "a replay keeps the old conditioning",
        "fastdiff/runs/graph.py",
        "self._conditioning.load(conditioning)",
        "pass",
        NUMBERS,
    ),
    Mutant(
        "a replay keeps the old noise",
        "fastdiff/runs/graph.py",
        "own.copy_(noise[at], non_blocking=True)",
        "pass",
        CALLERS,
    ),
    Mutant(
        "a replay gives its buffer away", "fastdiff/runs/graph.py", "run.finish(copy=True)", "run.finish()", NUMBERS
    ),
    Mutant(
        "modes of inner modules are not looked at",
        "fastdiff/runs/graph.py",
        "tuple(m.training for m in modules)",
        "()",
        SHAPED,
    ),
    Mutant("parameters are not looked at", "fastdiff/runs/graph.py", "tuple(map(_place, held))", "()", MOVED),
    Mutant(
        "shapes of parameters are not looked at",
        "fastdiff/runs/graph.py",
        ", tensor.shape, tensor.stride()\n",
        "\n",
        SHAPED,
    ),
    Mutant("all recordings are kept", "fastdiff/runs/graph.py", "recordings.popitem(last=False)", "break", LIVES),
    Mutant(
        "conditioning may lie anywhere",
        "fastdiff/runs/graph.py",
        "if tensor.device != settings.device:",
        "if False:",
        PLACED,
    ),
    Mutant(
        "half a plan counts as loaded", "fastdiff/runs/graph.py", "self._plan = None  # until", "pass  # until", PARTLY
    ),
    Mutant(
        "a bound method is its own owner",
        "fastdiff/runs/graph.py",
        "net.__self__ if isinstance(net, MethodType) else net",
        "net",
        LIVES,
    ),
    Mutant(
        "inference mode goes on",
        "fastdiff/runs/graph.py",
        "with torch.inference_mode(False), torch.no_grad():",
        "with torch.no_grad():",
        INFERENCE,
    ),
    Mutant(
        "threads do not take turns",
        "fastdiff/runs/graph.py",
        "with self._lock, self._recording.turn(self._held):",
        "with self._recording.turn(self._held):",
        SHARED,
    ),
    Mutant(
        "there is no warm-up",
        "fastdiff/runs/recording.py",
        "stream(side):\n                    work()",
        "stream(side):\n                    pass",
        ORDER,
    ),
    Mutant("a turn does not wait", "fastdiff/runs/recording.py", "self._used.wait()", "pass", ORDER),
    Mutant(
        "a turn that breaks off is not recorded",
        "fastdiff/runs/recording.py",
        "            try:\n                yield\n            finally:\n                self._used.record()",
        "            yield\n            self._used.record()",
        BROKEN,
    ),
    Mutant("torch chooses the stream", "fastdiff/runs/recording.py", "stream=stream, ", "", ORDER),
    Mutant(
        "a failed recording leaves its stream",
        "fastdiff/runs/recording.py",
        "torch.cuda.set_stream(self._home)",
        "pass",
        WAITS,
    ),
    Mutant(
        "memory is not kept for other streams",
        "fastdiff/runs/recording.py",
        "tensor.record_stream(torch.cuda.current_stream())",
        "pass",
        KEPT,
    ),
    Mutant(
        "running out of memory is the network's fault",
        "fastdiff/runs/recording.py",
        "FastdiffError | torch.OutOfMemoryError",
        "FastdiffError",
        GREEDY,
    ),
    Mutant("the last error counts", "fastdiff/runs/recording.py", "cause = first or error", "cause = error", WAITS),
    Mutant("callbacks are taken", "fastdiff/runs/sample.py", ', "callback": callback is not None', "", HOSTED),
    Mutant(
        "strides of conditioning are not looked at",
        "fastdiff/runs/conditioning.py",
        "value.dtype, value.shape, value.stride(), value.device",
        "value.dtype, value.device",
        BAKED,
    ),
    Mutant(
        "a step waits for the device",
        "fastdiff/runs/launcher.py",
        "            launch, chosen = self._launches[self.row]\n",
        "            launch, chosen = self._launches[self.row]\n            self._memory.z.sum().item()\n",
        BARE,
    ),
    Mutant(
        "a checked step allocates",
        "fastdiff/runs/launcher.py",
        "named = self._memory.held |",
        "named = {name: held.clone() for name, held in self._memory.held.items()} |",
        AUDIT,
    ),
    Mutant(
        "another dtype passes for the expected one",
        "fastdiff/runs/launcher.py",
        "if output.dtype is not like.dtype:",
        "if False:",
        PREPARED,
    ),
    Mutant(
        "gaps pass for contiguous memory",
        "fastdiff/runs/launcher.py",
        "if not output.is_contiguous(memory_format=memory.format):",
        "if False:",
        PREPARED,
    ),
    Mutant(
        "a run's own memory passes for the network's",
        "fastdiff/runs/launcher.py",
        "start < other_end and other_start < end",
        "False",
        OWN,
    ),
    Mutant(
        "a restart draws no noise",
        "fastdiff/runs/run.py",
        "        self._advance((), checked=True)\n",
        "        self.launcher.row = 1\n",
        RESTART,
    ),
    Mutant(
        "branches change places",
        "fastdiff/runs/launcher.py",
        "launch([split[branch] for branch in chosen])",
        "launch([split[-1 - branch] for branch in chosen])",
        PREPARED,
    ),
    Mutant(
        "tables are loaded in the wrong order",
        "fastdiff/runs/tables.py",
        "for flat, values, dtype in zip(self.tensors, _values(plan), self._types",
        "for flat, values, dtype in zip(self.tensors, _values(plan)[::-1], self._types",
        NUMBERS,
    ),
)

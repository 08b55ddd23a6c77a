"""Faults in the Python code: host mathematics, compiler, seeds, layouts, dispatch, loop, gradients, specification."""

from __future__ import annotations

from mutant import Mutant

TEXTBOOK = "tests/test_solvers.py::test_every_combination_of_the_ablation_is_the_textbook_one"
CHURN = "tests/test_solvers.py::test_churn_is_the_textbook_one"
GUIDED = "tests/test_solvers.py::test_guidance_and_clipping_are_the_textbook_ones"
PATHS = "tests/test_schedule.py::test_paths_agree_with_the_table_of_the_paper"
DERIVATIVES = "tests/test_schedule.py::test_derivatives_are_those_of_a_central_difference"
LEVELS = "tests/test_schedule.py::test_levels_agree_with_the_table_of_the_paper"
PREDICTS = "tests/test_prediction.py::test_the_preconditioning_recovers_x0"
KNOWS = "tests/test_prediction.py::test_iddpm_knows_its_levels_and_no_others"
ORDER = "tests/test_order.py::test_the_order_of_a_solver_is_the_one_it_states"
TIES = "tests/test_schedule.py::test_ties_and_near_ties_are_rounded_to_even"
BYTES = "tests/test_compiler.py::test_heun_needs_one_buffer_one_launch_and_12_bytes"
BASE = "tests/test_compiler.py::test_a_state_is_the_base_of_an_output_where_its_coefficient_exceeds_one_half"
ALIVE = "tests/test_compiler.py::test_every_buffer_is_written_before_it_is_read_and_every_output_is_used"
INTERVAL = "tests/test_solvers.py::test_the_ends_of_intervals_are_included"
DIGEST = "tests/test_plan.py::test_the_digest_tells_any_two_settings_apart"
BOUND = "tests/test_plan.py::test_the_bound_of_a_product_is_attained"
TRAFFIC = "tests/test_plan.py::test_traffic_counts_state_and_network_bytes"
SEEDS = "tests/test_ops.py::test_seeds"
OVERLAP = "tests/test_ops.py::test_overlap_is_exact"
LAYOUT = "tests/test_ops.py::test_layout"
GRADIENTS = "tests/test_ops.py::test_gradients"
CLAMP = "tests/test_ops.py::test_the_clamp_passes_gradients_at_nan_and_stops_them_outside"
REFUSES = "tests/test_ops.py::test_stage_refuses"
THREADS = "tests/test_ops.py::test_use_backend_is_per_thread_and_nests"
ROWS = "tests/test_reference.py::test_rows_by_name"
ABSENT = "tests/test_reference.py::test_absent_terms_are_skipped_not_multiplied"
ANSWERS = "tests/test_noise.py::test_normals_known_answers"
PHILOX = "tests/test_noise.py::test_philox_known_answers"
PACKING = "tests/test_noise.py::test_packing_has_an_inverse"
FMA = "tests/test_noise.py::test_fma_is_exact"
POSITION = "tests/test_invariance.py::test_batch_size_and_position"
BOTH_LOOPS = "tests/test_sampler.py::test_the_loop_in_cpp_and_the_op_give_the_same_bits"
COPIES = "tests/test_sampler.py::test_guidance_interval_switches_the_number_of_copies"
KILLED = "tests/test_io.py::test_a_failed_write_leaves_the_old_file_and_nothing_else"


HOST = (
    # Schedules and predictions.
    Mutant("a path's slope is half", "fastdiff/maths/schedule.py", "/ (2 * sigma(t))", "/ (4 * sigma(t))", DERIVATIVES),
    Mutant(
        "the scale's slope has the wrong sign",
        "fastdiff/maths/schedule.py",
        "return -self.sigma(t) * self.sigma_deriv(t) * s(t) ** 3",
        "return self.sigma(t) * self.sigma_deriv(t) * s(t) ** 3",
        DERIVATIVES,
    ),
    Mutant(
        "the wrong path of VE",
        "fastdiff/maths/schedule.py",
        "sigma_inv=lambda sigma: sigma * sigma)",
        "sigma_inv=lambda sigma: sigma)",
        "tests/test_schedule.py::test_sigma_inv_undoes_sigma",
    ),
    Mutant("one level too many", "fastdiff/maths/schedule.py", "mp.mpf(i) / (n - 1) if", "mp.mpf(i) / n if", LEVELS),
    Mutant(
        "c_out without its sign",
        "fastdiff/maths/prediction.py",
        "Scalars(1 / root**2, -sigma",
        "Scalars(1 / root**2, sigma",
        PREDICTS,
    ),
    Mutant(
        "the nearest level is the one below",
        "fastdiff/maths/prediction.py",
        "k = below if sigma - rising[below] <= rising[above] - sigma else above",
        "k = below",
        KNOWS,
    ),
    # Solvers and guidance.
    Mutant(
        "the corrector has weight one", "fastdiff/solvers/solver.py", "d_prime * (h / (2 * a))", "d_prime * h", TEXTBOOK
    ),
    Mutant(
        "the slope before churn is used",
        "fastdiff/solvers/solver.py",
        "            x, t = ode.churn(x, t)\n            h = t_next - t\n",
        "            h = t_next - t\n            x, t = ode.churn(x, t)\n",
        CHURN,
    ),
    Mutant(
        "Heun without its second slope",
        "fastdiff/solvers/solver.py",
        "x = x + d * (h * (1 - 1 / (2 * a))) + d_prime * (h / (2 * a))",
        "x = x + d * h + (d_prime - d_prime)",
        ORDER,
    ),
    Mutant(
        "noise of churn is not lifted from where it is",
        "fastdiff/solvers/trace.py",
        "mp.sqrt(sigma_hat**2 - sigma**2)",
        "(sigma_hat - sigma)",
        CHURN,
    ),
    Mutant(
        "the scale does not move with churn",
        "fastdiff/solvers/trace.py",
        "return x * (s_hat / s) +",
        "return x +",
        CHURN,
    ),
    Mutant(
        "the drift of the scale is left out",
        "fastdiff/solvers/trace.py",
        "Combination.of(seen, rate + s_deriv / s)",
        "Combination.of(seen, rate)",
        TEXTBOOK,
    ),
    Mutant(
        "guidance in the other convention",
        "fastdiff/maths/guidance.py",
        "weights = {COND: gamma, UNCOND: 1 - gamma}",
        "weights = {COND: 1 + gamma, UNCOND: -gamma}",
        GUIDED,
    ),
    Mutant(
        "the ends of an interval are left out",
        "fastdiff/maths/guidance.py",
        "self.interval[0] <= float(sigma) <= self.interval[1]",
        "self.interval[0] < float(sigma) < self.interval[1]",
        INTERVAL,
    ),
    # The compiler.
    Mutant(
        "histories are carried one by one",
        "fastdiff/plans/compiler.py",
        "if not self._partial_sums or self._cost(partial, passing, k) >= self._cost(natural, passing, k):",
        "if True:",
        BYTES,
    ),
    Mutant(
        "every state is a base",
        "fastdiff/plans/emit.py",
        "recipe.terms[largest] > 0.5",
        "recipe.terms[largest] > 0",
        BASE,
    ),
    Mutant(
        "the base is counted twice",
        "fastdiff/plans/emit.py",
        "recipe = recipe + Combination.of(base, -mp.one)",
        "recipe = recipe + Combination()",
        TEXTBOOK,
    ),
    Mutant(
        "a buffer is given away while it is read later",
        "fastdiff/plans/emit.py",
        "for symbol, name in before.items() if symbol not in carried)",
        "for symbol, name in before.items())",
        ALIVE,
    ),
    Mutant(
        "coefficients are cut off",
        "fastdiff/maths/real.py",
        "return number + (1 << places - 1) - 1 + odd >> places",
        "return number >> places",
        TIES,
    ),
    Mutant(
        "the digest forgets the state type",
        "fastdiff/plans/plan.py",
        'fields = {"dtype": self.dtype, "description"',
        'fields = {"dtype": "float32", "description"',
        "tests/test_plan.py::test_the_digest_tells_state_types_of_the_same_numbers_apart",
    ),
    Mutant(
        "stores are not counted",
        "fastdiff/plans/plan.py",
        "writes = state * sum(o.store is not None for o in row.outputs)",
        "writes = 0",
        TRAFFIC,
    ),
    # What an op is given.
    Mutant(
        "all samples have the first one's seed",
        "fastdiff/rows/seeds.py",
        "values = range(first, first + batch)",
        "values = [first] * batch",
        SEEDS,
    ),
    Mutant(
        "negative seeds are taken",
        "fastdiff/rows/seeds.py",
        "if not 0 <= value <= MAX_SEED",
        "if value > MAX_SEED",
        "tests/test_ops.py::test_seeds_refused",
    ),
    Mutant(
        "neighbours in memory overlap",
        "fastdiff/rows/layout.py",
        "if left[i] + a_size <= right[j]:",
        "if left[i] + a_size < right[j]:",
        OVERLAP,
    ),
    Mutant(
        "channels last is row-major",
        "fastdiff/rows/layout.py",
        "return ROW_MAJOR if row_major else CHANNELS_LAST if channels_last else None",
        "return ROW_MAJOR if row_major or channels_last else None",
        LAYOUT,
    ),
    Mutant(
        "an expanded batch is taken",
        "fastdiff/rows/layout.py",
        "return tensor.numel() > 0 and tensor.shape[0] > 1 and tensor.stride(0) <",
        "return tensor.numel() < 0 and tensor.shape[0] > 1 and tensor.stride(0) <",
        REFUSES,
    ),
    Mutant(
        "a forced backend is every thread's",
        "fastdiff/backends/registry.py",
        "        _forced.reset(token)\n",
        "        pass\n",
        THREADS,
    ),
    # The specification itself: known answers and mathematics hold it, not another implementation.
    Mutant(
        "the sub-draw is forgotten",
        "fastdiff/backends/reference.py",
        "draw, sub_draw | NOISE_FORMAT << 24",
        "draw, sub_draw * 0 | NOISE_FORMAT << 24",
        PACKING,
    ),
    Mutant(
        "fma rounds twice",
        "fastdiff/backends/reference.py",
        "return torch.where(to_odd, bits + away, bits).view(torch.float64).float()",
        "return bits.view(torch.float64).float()",
        FMA,
    ),
    Mutant(
        "cosine and sine change places",
        "fastdiff/backends/reference.py",
        "return torch.stack((r * cosine, r * sine), -1)",
        "return torch.stack((r * sine, r * cosine), -1)",
        ANSWERS,
    ),
    Mutant(
        "an absent term is multiplied by zero",
        "fastdiff/backends/reference.py",
        "return value if on is True else torch.where(torch.as_tensor(on), value, otherwise)",
        "return value if on is True else torch.as_tensor(on).to(value.dtype) * value "
        "+ (~torch.as_tensor(on)).to(value.dtype) * otherwise",
        ABSENT,
    ),
    Mutant(
        "the clamp scales first",
        "fastdiff/backends/reference.py",
        "derived = _select(switch(k), clamped, derived)",
        "derived = _select(switch(k), derived, clamped)",
        ROWS,
    ),
    # Gradients.
    Mutant(
        "clamped elements pass gradients",
        "fastdiff/ops/gradient.py",
        "return torch.where(cut, 0.0, gradient)",
        "return gradient",
        CLAMP,
    ),
    Mutant(
        "the scale of the derived column has no gradient",
        "fastdiff/ops/gradient.py",
        "scale=scale is not None,",
        "scale=False,",
        GRADIENTS,
    ),
    # The loop.
    Mutant(
        "branches change places",
        "fastdiff/runs/loop.py",
        "branches.index(name.removeprefix(NETWORK_PREFIX))",
        "len(branches) - 1 - branches.index(name.removeprefix(NETWORK_PREFIX))",
        BOTH_LOOPS,
    ),
    Mutant(
        "the loop is told of channels that are not last",
        "fastdiff/runs/loop.py",
        "channels = shape[0] if layout(z) == CHANNELS_LAST else 1",
        "channels = 1",
        "tests/test_invariance.py::test_layouts",
    ),
    Mutant(
        "a step makes its launch twice",
        "fastdiff/runs/run.py",
        "        launch([outputs[branch] for branch in branches])\n",
        "        launch([outputs[branch] for branch in branches])\n" * 2,
        "tests/gpu/test_audit.py::test_launches_without_checks_do_nothing_else_either",
    ),
)

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
PAPER = "tests/test_eager.py::test_a_solver_says_what_its_paper_says"
SAYS = "tests/test_eager.py::test_a_plan_computes_what_its_solver_says"
SCALARS = "tests/test_eager.py::test_scalars_calls_given_tensors_and_dicts_are_what_the_text_says"
LEVEL = "tests/test_identities.py::test_the_noise_that_is_kept_and_the_noise_that_is_added_make_the_next_level"
COST = "tests/test_traffic.py::test_a_step_costs_the_same_however_many_there_are_and_however_it_is_written"
BROWNIAN = "tests/test_traffic.py::test_a_brownian_path_has_the_covariance_of_brownian_motion"
PATH = "tests/test_traffic.py::test_a_brownian_path_is_drawn_once_a_step"
FOREIGN = "tests/test_refusals.py::test_a_vector_of_another_trace_is_refused"
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
        "fastdiff/maths/point.py",
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
        "the corrector has weight one",
        "fastdiff/solvers/runge_kutta.py",
        "d_middle * (h / (2 * a))",
        "d_middle * h",
        TEXTBOOK,
    ),
    Mutant(
        "the slope before churn is used",
        "fastdiff/solvers/runge_kutta.py",
        "    x, now = trace.churn(x, now)\n    a, h, d = _alpha(alpha), then.t - now.t, trace.slope(x, now)\n",
        "    a, h, d = _alpha(alpha), then.t - now.t, trace.slope(x, now)\n    x, now = trace.churn(x, now)\n",
        CHURN,
    ),
    Mutant(
        "Heun without its second slope",
        "fastdiff/solvers/runge_kutta.py",
        "return x + d * (h * (1 - 1 / (2 * a))) + d_middle * (h / (2 * a))",
        "return x + d * h + (d_middle - d_middle)",
        ORDER,
    ),
    Mutant(
        "noise of churn is not lifted from where it is",
        "fastdiff/solvers/trace.py",
        "mp.sqrt(sigma_hat**2 - at.sigma**2)",
        "(sigma_hat - at.sigma)",
        CHURN,
    ),
    Mutant(
        "the scale does not move with churn",
        "fastdiff/solvers/trace.py",
        "return x * (hat.s / at.s) +",
        "return x +",
        CHURN,
    ),
    Mutant(
        "the drift of the scale is left out",
        "fastdiff/solvers/trace.py",
        "return x * (rate + at.s_deriv / at.s) -",
        "return x * rate -",
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
        "fixed[largest] > 0.5",
        "fixed[largest] > 0",
        BASE,
    ),
    Mutant(
        "the base is counted twice",
        "fastdiff/plans/emit.py",
        "rest = recipe if base is None else recipe + Combination.of(base, -mp.one)",
        "rest = recipe",
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
        "fastdiff/plans/file.py",
        'fields = {"dtype": plan.dtype, "description"',
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
    # Texts of solvers, and what a trace offers them: both interpreters run it, so the papers must notice.
    Mutant(
        "the deviations of an ancestral step are added",
        "fastdiff/solvers/ancestral.py",
        "down = mp.sqrt(then.sigma**2 - up**2)",
        "down = then.sigma - up",
        LEVEL,
    ),
    Mutant(
        "DDPM keeps too much of x",
        "fastdiff/solvers/ancestral.py",
        "keep = (then.sigma / now.sigma) ** 2",
        "keep = then.sigma / now.sigma",
        PAPER,
    ),
    Mutant(
        "DDIM's noise is that of a level above",
        "fastdiff/solvers/ancestral.py",
        "up = share * then.sigma *",
        "up = share * now.sigma *",
        PAPER,
    ),
    Mutant(
        "2M extrapolates twice as far",
        "fastdiff/solvers/multistep.py",
        "/ (2 * (now.lam - before.lam))",
        "/ (now.lam - before.lam)",
        PAPER,
    ),
    Mutant(
        "UniPC's weights change places",
        "fastdiff/solvers/multistep.py",
        "rho = [m_1 - last, last]",
        "rho = [last, m_1 - last]",
        PAPER,
    ),
    Mutant(
        "UniPC forgets what it corrected",
        "fastdiff/solvers/multistep.py",
        "        x, past = _unipc(x, before,",
        "        _, past = _unipc(x, before,",
        PAPER,
    ),
    Mutant(
        "LMS leaves nodes out",
        "fastdiff/solvers/multistep.py",
        "in nodes[:i] + nodes[i + 1 :]:",
        "in nodes[:i]:",
        PAPER,
    ),
    Mutant(
        "the reverse SDE has the drift of the ODE",
        "fastdiff/solvers/sde.py",
        "- trace.score(x, now) * now.g2)",
        "- trace.score(x, now) * (now.g2 / 2))",
        PAPER,
    ),
    Mutant(
        "a Langevin step is half as long",
        "fastdiff/solvers/sde.py",
        '(2 * positive(snr, "snr") ** 2)',
        '(positive(snr, "snr") ** 2)',
        PAPER,
    ),
    Mutant(
        "g squared is halved",
        "fastdiff/maths/point.py",
        "return 2 * self.s**2 * self.sigma",
        "return self.s**2 * self.sigma",
        PAPER,
    ),
    Mutant(
        "all noise of a step is the same",
        "fastdiff/solvers/trace.py",
        "Draw(STEP, self.step, self._drawn - 1)",
        "Draw(STEP, self.step, 0)",
        PAPER,
    ),
    Mutant(
        "the rescale ignores the mean",
        "fastdiff/maths/guidance.py",
        "(x.dot(x) - x.total() * x.total() / x.size())",
        "x.dot(x)",
        "tests/test_eager.py::test_rescaled_guidance_says_what_its_paper_says",
    ),
    Mutant(
        "the rescale keeps what it should replace",
        "fastdiff/maths/guidance.py",
        'ratio * real(self.phi, "phi") + (1 -',
        'ratio * (1 - real(self.phi, "phi")) + (1 - 1 +',
        "tests/test_eager.py::test_rescaled_guidance_says_what_its_paper_says",
    ),
    Mutant(
        "D is of the scaled state",
        "fastdiff/solvers/trace.py",
        "d = seen * (scalars.c_skip / at.s) +",
        "d = seen * scalars.c_skip +",
        SAYS,
    ),
    # The Brownian path.
    Mutant("a draw is drawn anew", "fastdiff/solvers/trace.py", "if draw not in self._known:", "if True:", BROWNIAN),
    Mutant(
        "bridges have one slope",
        "fastdiff/maths/brownian.py",
        "height = min(place, 1 - place)",
        "height = place",
        BROWNIAN,
    ),
    Mutant("places are cut off", "fastdiff/maths/brownian.py", "mp.mpf(int(mp.nint(", "mp.mpf(int(mp.floor(", BROWNIAN),
    Mutant(
        "a path is written out where it is used",
        "fastdiff/plans/compiler.py",
        'return known.combination if known.clip is None and symbol.kind != "W" else None',
        "return known.combination if known.clip is None else None",
        PATH,
    ),
    Mutant(
        "the same point is another path",
        "fastdiff/solvers/trace.py",
        "if v not in self._paths:",
        "if True:",
        "tests/test_traffic.py::test_a_brownian_path_that_is_asked_for_again_is_not_drawn_again",
    ),
    # Variables, and what is carried of them.
    Mutant(
        "what is remembered is there from the start",
        "fastdiff/plans/compiler.py",
        "max([known.after, *map(self._birth, made_of)])",
        "max([0, *map(self._birth, made_of)])",
        PATH,
    ),
    Mutant(
        "nobody counts the events before a variable",
        "fastdiff/solvers/trace.py",
        "self._named.append((symbol, x, clip, len(self.events)))",
        "self._named.append((symbol, x, clip, 0))",
        PATH,
    ),
    Mutant(
        "what is remembered is no variable",
        "fastdiff/solvers/trace.py",
        "            self.symbol_of(vector)\n",
        "            vector.parts\n",
        COST,
    ),
    Mutant(
        "variables are looked into",
        "fastdiff/maths/vector.py",
        "        if self.symbol is not None:\n            return Combination.of(self.symbol)\n",
        "        if not self.parts:\n            return Combination.of(self.symbol)\n",
        COST,
    ),
    Mutant(
        "vectors that are kept share a name",
        "fastdiff/plans/emit.py",
        'f"{self._prefix}{s.kind}{s.index}{s.label}"',
        'f"{self._prefix}{s.kind}{s.index % 4}{s.label}"',
        "tests/test_traffic.py::test_keeping_every_vector_costs_no_traffic",
    ),
    Mutant(
        "what is remembered takes the name of what was",
        "fastdiff/plans/compose.py",
        "number = 1 + max(",
        "number = 0 * max(",
        "tests/test_plan_step.py::test_whatever_a_step_remembers_is_handed_on",
    ),
    Mutant(
        "every step draws the noise of the first",
        "fastdiff/plans/compose.py",
        "trace.solver, trace.step = method.name, step",
        "trace.solver, trace.step = method.name, 0",
        "tests/test_plan_step.py::test_steps_chained_by_hand_are_the_sampler",
    ),
    Mutant(
        "sums that do not fit refuse the whole plan",
        "fastdiff/plans/compose.py",
        "        except PlanError:\n            # They",
        "        except ZeroDivisionError:\n            # They",
        "tests/test_refusals.py::test_more_history_than_a_row_holds_is_refused",
    ),
    Mutant(
        "a vector of another trace is taken",
        "fastdiff/solvers/trace.py",
        "if value.home is not self:",
        "if value.home is None:",
        FOREIGN,
    ),
    Mutant(
        "an inner product of another trace is taken",
        "fastdiff/plans/compiler.py",
        "if argument.home is not self._trace:",
        "if argument.home is None:",
        FOREIGN,
    ),
    Mutant(
        "a result that is there already is not stored by the last row",
        "fastdiff/plans/compiler.py",
        "if (before is None and carried[0] not in targets) or not targets:",
        "if before is None and carried[0] is None:",
        "tests/test_eager.py::test_unusual_texts_are_compiled_to_what_they_say",
    ),
    Mutant(
        "vectors are looked for in nothing",
        "fastdiff/solvers/memory.py",
        "if not isinstance(memory, Point | Scalar | Number | str | None):",
        "if memory is kind:",
        "tests/test_refusals.py::test_memory_in_which_vectors_are_not_found_is_refused",
    ),
    Mutant(
        "a row that reads nothing stores over what is carried",
        "fastdiff/plans/emit.py",
        "store=self._buffers.spare()",
        "store=FIRST_BUFFER",
        "tests/test_random_texts.py::test_a_row_that_reads_nothing_leaves_what_is_carried_alone",
    ),
    Mutant(
        "a variable does not wait for what scales it",
        "fastdiff/plans/compiler.py",
        "found, atoms = list(combination), combination.atoms",
        "found, atoms = list(combination), []",
        "tests/test_random_texts.py::test_texts_that_once_were_compiled_wrongly",
    ),
    Mutant(
        "a path that only an inner product needs is left out",
        "fastdiff/plans/compiler.py",
        "if s.kind not in FRESH and not self._is_past(s, k)]",
        "if s in stage.inner]",
        "tests/test_random_texts.py::test_texts_that_once_were_compiled_wrongly",
    ),
    # Scalars.
    Mutant(
        "a difference is taken to be positive",
        "fastdiff/maths/scalar.py",
        "if self.constant < 0 or any(c < 0 or atom.sign",
        "if any(atom.sign",
        "tests/test_refusals.py::test_a_root_of_what_can_be_negative_is_refused",
    ),
    Mutant(
        "a floor of zero is above zero",
        "fastdiff/maths/scalar.py",
        "Sign.POSITIVE if number > 0 else",
        "Sign.POSITIVE if number >= 0 else",
        "tests/test_refusals.py::test_a_divisor_that_can_be_zero_is_refused",
    ),
    Mutant(
        "a scalar loses its constant",
        "fastdiff/plans/scalars.py",
        "if total is None or scalar.constant:",
        "if total is None:",
        SCALARS,
    ),
    Mutant(
        "a coefficient loses its constant",
        "fastdiff/plans/scalars.py",
        'return Affine(round_to(value.constant, "float64"), terms)',
        "return Affine(0.0, terms)",
        SCALARS,
    ),
    Mutant(
        "factors of a scalar are left out",
        "fastdiff/plans/scalars.py",
        "            if c != 1:\n",
        "            if c == 0:\n",
        SCALARS,
    ),
    # Files.
    Mutant(
        "the network input of a row of format 1 stays where it was",
        "fastdiff/plans/file.py",
        'None if row["network"] is None else row["network"] + 1',
        'row["network"]',
        "tests/test_golden.py::test_a_plan_of_the_first_format_is_still_what_is_compiled",
    ),
    Mutant(
        "a field of another type is taken",
        "fastdiff/plans/file.py",
        "if _written(row) != written:",
        "if row is None:",
        "tests/test_plan_file.py::test_junk_anywhere_is_refused_or_makes_another_plan",
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
        "a present clamp does nothing, an absent one clamps",
        "fastdiff/backends/reference.py",
        "total = _select(is_on(k), clamped, total)",
        "total = _select(is_on(k), total, clamped)",
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
        "the scale of a summed gradient is left out",
        "fastdiff/ops/gradient.py",
        "scale=node.scale is not None)",
        "scale=False)",
        GRADIENTS,
    ),
    # The loop.
    Mutant(
        "branches change places",
        "fastdiff/runs/loop.py",
        "else fresh.index(name) for",
        "else len(fresh) - 1 - fresh.index(name) for",
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
        "fastdiff/runs/launcher.py",
        "            launch([split[branch] for branch in chosen])\n",
        "            launch([split[branch] for branch in chosen])\n" * 2,
        "tests/gpu/test_audit.py::test_launches_without_checks_do_nothing_else_either",
    ),
)

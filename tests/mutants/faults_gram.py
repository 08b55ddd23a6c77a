"""Faults in the gram for the CPU, in its definition, and in what is asked of its arguments."""

from __future__ import annotations

from mutant import Mutant

FILE = "tests/test_gram.py"
BITS = f"{FILE}::test_random_grams_have_the_bits_of_the_reference"
ORDER = f"{FILE}::test_the_order_is_the_one_written_down"
BOUND = f"{FILE}::test_sums_are_within_the_bound_of_their_tree"
ROUNDED = f"{FILE}::test_steps_and_coefficients_are_rounded_once_each"
NAN = f"{FILE}::test_a_nan_in_any_vector_of_a_weighted_sum_is_kept"
REFUSED = f"{FILE}::test_a_gram_that_cannot_be_is_refused"
CPU, REFERENCE = "csrc/cpu_gram.cpp", "fastdiff/backends/reference.py"

GRAM = (
    # The kernel for the CPU.
    Mutant(
        "quads change places",
        CPU,
        "FD_PICK(ab, cd, 0, 1, 4, 5) + FD_PICK(ab, cd, 2, 3, 6, 7)",
        "FD_PICK(ab, cd, 1, 0, 4, 5) + FD_PICK(ab, cd, 3, 2, 6, 7)",
        BITS,
    ),
    Mutant(
        "what lies behind the last quad is added",
        CPU,
        "i < n && i < 4 * q + 4; ++i",
        "i < 4 * q + 4; ++i",
        BITS,
    ),
    Mutant(
        "neighbours are folded",
        CPU,
        "lane[l] = add(lane[l], lane[l + half]);",
        "lane[l] = add(lane[2 * l], lane[2 * l + 1]);",
        BITS,
    ),
    Mutant("lanes are not emptied", CPU, "memset(s.lane, 0, p.sums * sizeof(s.lane[0]));", "", BITS),
    Mutant("a larger NaN is lost", CPU, "return a > b || a != a ? a : b;", "return a > b ? a : b;", NAN),
    Mutant("signs weigh", CPU, "larger(std::fabs(v[i]), std::fabs(w[i]))", "larger(v[i], w[i])", BITS),
    Mutant("tolerances of the first sum serve all", CPU, "        tolerance += 2;\n", "", BITS),
    Mutant(
        "a partial sum of terms is dropped",
        CPU,
        "    held = 1;\n",
        "    held = 0;\n",
        f"{FILE}::test_as_many_of_everything_as_there_may_be",
    ),
    Mutant(
        "every draw is the first", CPU, "a.draws + b * a.draws_stride + 4 * d", "a.draws + b * a.draws_stride", BITS
    ),
    Mutant(
        "later turns have the noise of the first",
        CPU,
        "linear_normals(key, draw, first >> 2, n, s.normal);",
        "linear_normals(key, draw, 0, n, s.normal);",
        BITS,
    ),
    Mutant(
        "all samples take the first one's numbers",
        CPU,
        "  const double* numbers = a.numbers + b * a.numbers_stride;\n  memset",
        "  const double* numbers = a.numbers;\n  memset",
        BITS,
    ),
    Mutant("channels are walked in the order of memory", CPU, "pixel * a.channels + channel", "first + i", BITS),
    Mutant("a vector with one term is taken as it is", CPU, "terms == 1 && c[0] == 1", "terms == 1", BITS),
    Mutant("a difference the other way round", CPU, "return a - b;", "return b - a;", BITS),
    Mutant("the coefficients of all samples are the first one's", CPU, "b * a.coef_stride + k", "k", BITS),
    # The definition.
    Mutant(
        "a quad is summed from left to right",
        REFERENCE,
        "(quads[..., 0] + quads[..., 1]) + (quads[..., 2] + quads[..., 3])",
        "quads[..., 0] + quads[..., 1] + quads[..., 2] + quads[..., 3]",
        ORDER,
    ),
    Mutant(
        "neighbours are folded",
        REFERENCE,
        "lanes[..., :half] + lanes[..., half:]",
        "lanes[..., ::2] + lanes[..., 1::2]",
        ORDER,
    ),
    Mutant(
        "sums are of float32",
        REFERENCE,
        "scalars.append(tree_sum(vectors[a] * vectors[b]))",
        "scalars.append(tree_sum((vectors[a] * vectors[b]).float()).double())",
        BOUND,
    ),
    Mutant(
        "the root is torch's",
        REFERENCE,
        "made = square_root(scalars[left])",
        "made = scalars[left].float().sqrt().double()",
        ROUNDED,
    ),
    Mutant("tolerances change places", REFERENCE, "larger(atol, rtol * larger(", "larger(rtol, atol * larger(", BOUND),
    Mutant("a NaN is lost", REFERENCE, "torch.where((a > b) | a.isnan(), a, b)", "torch.where(a > b, a, b)", NAN),
    Mutant(
        "a coefficient is not rounded to the state",
        REFERENCE,
        "torch.stack(coefficients, 1).to(call.coef.dtype)",
        "torch.stack(coefficients, 1).bfloat16()",
        ROUNDED,
    ),
    # What is refused.
    Mutant(
        "nothing may be summed",
        "fastdiff/rows/gram.py",
        '("sums", len(program.sums), 1, MAX_SUMS)',
        '("sums", len(program.sums), 0, MAX_SUMS)',
        f"{FILE}::test_refusals",
    ),
    Mutant(
        "numbers need not be finite",
        "fastdiff/rows/gram.py",
        "if not all(map(math.isfinite, numbers)):",
        "if False:",
        REFUSED,
    ),
)

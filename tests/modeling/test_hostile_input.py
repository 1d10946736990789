"""Input that a model cannot take is an error that names it; the edges of what it can take give what they should."""

import pytest
import torch
import transformers
from variants import random_ids, randomize, tiny_config, tiny_sinkhorn_config

import synkhorn
from synkhorn.configuration.configuration_backbone import AUTO_CLASSES

CONFIGS = {
    "Synthesizer": tiny_config(["random", "dot_product"], type_vocab_size=2),
    "Sinkhorn": tiny_sinkhorn_config(type_vocab_size=2),
}
every_family = pytest.mark.parametrize("family", CONFIGS)
IDS = random_ids(2, 7)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"input_ids": IDS[0]}, r"input_ids has shape \(7,\), but must be \(batch, length\)"),
        ({"input_ids": IDS[None]}, r"input_ids has shape \(1, 2, 7\)"),
        ({"input_ids": IDS + 50}, r"input_ids holds \d\d, but vocab_size=40: ids lie in 0 to 39"),
        ({"input_ids": IDS - 50}, r"input_ids holds -\d\d, but vocab_size=40"),
        ({"input_ids": IDS[:, :0]}, "the input has 0 tokens, but this model takes 1 to max_position_embeddings=13"),
        ({"input_ids": random_ids(2, 14)}, "the input has 14 tokens"),
        ({"inputs_embeds": torch.randn(7, 18)}, r"inputs_embeds has shape \(7, 18\).*hidden_size=18\)"),
        ({"inputs_embeds": torch.randn(2, 7, 5)}, r"inputs_embeds has shape \(2, 7, 5\).*hidden_size=18\)"),
        ({"input_ids": IDS, "token_type_ids": 2 + 0 * IDS}, "token_type_ids holds 2, but type_vocab_size=2"),
        (
            {"input_ids": IDS, "token_type_ids": IDS[:, :3] * 0},
            r"token_type_ids has shape \(2, 3\), but must be \(2, 7",
        ),
        ({"input_ids": IDS, "position_ids": 0 * IDS - 1}, "position_ids holds -1, but max_position_embeddings=13"),
        ({"input_ids": IDS, "position_ids": 0 * IDS + 13}, "position_ids holds 13, but max_position_embeddings=13"),
        ({"input_ids": IDS, "attention_mask": torch.ones(7)}, r"attention_mask has shape \(7,\)"),
        ({"input_ids": IDS, "attention_mask": torch.ones(2, 8)}, r"attention_mask has shape \(2, 8\)"),
        ({"input_ids": IDS, "attention_mask": torch.zeros(2, 7) - 1e4}, "attention_mask holds negative numbers"),
    ],
)
@every_family
def test_what_a_model_cannot_take_is_named(family, arguments, message):
    model = getattr(synkhorn, f"{family}Model")(CONFIGS[family])
    with pytest.raises(ValueError, match=message):
        model(**arguments)


@every_family
def test_masks_and_ids_of_any_integer_type(family):
    model = randomize(getattr(synkhorn, f"{family}Model")(CONFIGS[family])).eval()
    mask = torch.ones(2, 7, dtype=torch.long)
    mask[1, :2] = 0
    expected = model(IDS, attention_mask=mask).last_hidden_state
    for dtype in (torch.bool, torch.int32, torch.uint8, torch.float32, torch.bfloat16):
        assert torch.equal(model(IDS.int(), attention_mask=mask.to(dtype)).last_hidden_state, expected)


@pytest.mark.parametrize("auto", AUTO_CLASSES)
@every_family
def test_an_empty_batch_gives_empty_outputs(family, auto):
    model = getattr(transformers, auto).from_config(CONFIGS[family])
    shape = (0, 3, 7) if auto == "AutoModelForMultipleChoice" else (0, 7)
    ids = torch.zeros(shape, dtype=torch.long)
    for is_training in (False, True):
        for mask in (None, torch.ones_like(ids)):
            outputs = model.train(is_training)(ids, attention_mask=mask)[0]
            assert outputs.shape[0] == 0
            outputs.sum().backward()


@pytest.mark.parametrize("auto", sorted(set(AUTO_CLASSES) - {"AutoModel", "AutoModelForQuestionAnswering"}))
@every_family
def test_labels_out_of_range_are_named(family, auto):
    model = getattr(transformers, auto).from_config(CONFIGS[family])
    ids = IDS[:, None] if auto == "AutoModelForMultipleChoice" else IDS
    shape = (2,) if auto in ("AutoModelForSequenceClassification", "AutoModelForMultipleChoice") else (2, 7)
    for label in (99, -3):
        with pytest.raises(IndexError, match=f"Target {label} is out of bounds"):
            model(ids, labels=torch.full(shape, label))

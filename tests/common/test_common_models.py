"""
Transformers' own tests of models, configurations and pipelines, for every head of both families, and of an encoder of
one family with a decoder of the other.
"""

import copy
import tempfile
import unittest
from contextlib import nullcontext
from pathlib import Path
from unittest import mock

import torch
from library import (
    ConfigTester,
    GenerationTesterMixin,
    ModelTesterMixin,
    PipelineTesterMixin,
    TrainingTesterMixin,
    known_by_name,
    test_pipeline_mixin,
)
from transformers.models.auto import modeling_auto

import synkhorn
from synkhorn import byte_tokenizer, token_fields

SIZES = {
    "vocab_size": 99,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 37,
    "max_position_embeddings": 64,
    "type_vocab_size": 2,
}
TASKS = {
    "feature-extraction": "Model",
    "fill-mask": "ForMaskedLM",
    "text-classification": "ForSequenceClassification",
    "token-classification": "ForTokenClassification",
    "zero-shot": "ForSequenceClassification",
    "text-generation": "ForCausalLM",
}
HEADS = ("ForSequenceClassification", "ForTokenClassification", "ForQuestionAnswering", "ForMultipleChoice")


class TinyModel:
    """A tiny configuration and a batch for it, as Transformers' tests ask for them."""

    batch_size, seq_length, num_choices, is_training = 5, 23, 4, True

    def __init__(self, config):
        self.config = config
        for field, value in SIZES.items():
            setattr(self, field, value)

    def get_config(self):
        return copy.deepcopy(self.config)

    def prepare_config_and_inputs_for_common(self):
        ids = torch.randint(1, self.vocab_size, (self.batch_size, self.seq_length))
        mask = torch.ones_like(ids)
        mask[1:, -1] = 0
        types = torch.randint(self.type_vocab_size, ids.shape)
        return self.get_config(), {"input_ids": ids, "attention_mask": mask, "token_type_ids": types}


class TinyPair(TinyModel):
    """The same of an encoder and a decoder."""

    def prepare_config_and_inputs_for_common(self):
        _, inputs = super().prepare_config_and_inputs_for_common()
        return self.get_config(), {
            "input_ids": inputs["input_ids"],
            "attention_mask": inputs["attention_mask"],
            "decoder_input_ids": inputs["input_ids"].flip(1),
        }


class EveryModelTests(ModelTesterMixin):
    def subTest(self, *arguments, **parameters):
        # Transformers makes one of every tensor, and pytest would report each
        return nullcontext()


class CommonTests(EveryModelTests, PipelineTesterMixin):
    """A subclass names its `family` and the fields of its configuration."""

    family: str
    fields: dict
    test_resize_position_embeddings = True
    test_can_init_all_missing_weights_before_2023 = True

    def __init_subclass__(cls, **kwargs):
        language_model = "ForCausalLM" if cls.fields.get("is_causal") else "ForMaskedLM"
        heads = ("Model", language_model, *HEADS)
        cls.all_model_classes = tuple(getattr(synkhorn, cls.family + head) for head in heads)
        cls.pipeline_model_mapping = {
            task: getattr(synkhorn, cls.family + head) for task, head in TASKS.items() if head in heads
        }
        super().__init_subclass__(**kwargs)

    def config(self, **fields):
        return getattr(synkhorn, f"{self.family}Config")(**SIZES | self.fields | fields)

    def setUp(self):
        torch.manual_seed(0)
        for patch in known_by_name(self.family):
            patch.start()
            self.addCleanup(patch.stop)
        self.model_tester = TinyModel(self.config())
        self.model_tester.causal_lm_class = getattr(synkhorn, f"{self.family}ForCausalLM")

    def test_init_weights_can_init_buffers(self):
        if "synthesizers" in self.fields:
            # what is drawn anew is not what was drawn before
            self.model_tester.config.synthesizers = ["random", "dot_product"]
        super().test_init_weights_can_init_buffers()

    def test_config(self):
        ConfigTester(self, config_class=type(self.config()), **SIZES | self.fields).run_common_tests()

    def run_pipeline_test(self, task, repo_name, model_architecture, **kwargs):
        with (
            tempfile.TemporaryDirectory() as folder,
            mock.patch.object(test_pipeline_mixin, "TRANSFORMERS_TINY_MODEL_PATH", folder),
        ):
            checkpoint = Path(folder, self.family.lower(), repo_name)
            tokenizer = byte_tokenizer(model_max_length=64, is_causal=task == "text-generation")
            labels = ["contradiction", "neutral", "entailment"]
            fields = token_fields(tokenizer) | {
                "id2label": dict(enumerate(labels)),
                "label2id": {label: index for index, label in enumerate(labels)},
                "initializer_range": 0.2,
            }
            model_architecture(self.config(**fields)).save_pretrained(checkpoint)
            tokenizer.save_pretrained(checkpoint)
            super().run_pipeline_test(task, repo_name, model_architecture, **kwargs)


SYNTHESIZERS = ["dot_product", "dense", "random", "fixed_random", "factorized_random", "factorized_dense"]
CAUSAL = {"is_causal": True, "position_embedding_type": "rope"}


class SynthesizerEncoderTest(CommonTests, unittest.TestCase):
    family, fields = "Synthesizer", {"synthesizers": SYNTHESIZERS}


class SynthesizerDecoderTest(CommonTests, GenerationTesterMixin, TrainingTesterMixin, unittest.TestCase):
    family, fields = "Synthesizer", {"synthesizers": SYNTHESIZERS} | CAUSAL
    model_tester = None
    test_resize_position_embeddings = False


class SinkhornEncoderTest(CommonTests, unittest.TestCase):
    family, fields = "Sinkhorn", {"block_size": 8, "sort_net": "mlp", "mix_dot_product": True}


class SinkhornDecoderTest(CommonTests, GenerationTesterMixin, TrainingTesterMixin, unittest.TestCase):
    family, fields = "Sinkhorn", {"block_size": 8, "sort_net": "bilinear"} | CAUSAL
    model_tester = None
    test_resize_position_embeddings = False


class Seq2SeqTest(EveryModelTests, GenerationTesterMixin, unittest.TestCase):
    all_model_classes = (synkhorn.SynkhornEncoderDecoderModel,)
    is_encoder_decoder = _is_composite = True

    def setUp(self):
        torch.manual_seed(0)
        encoder = synkhorn.SinkhornConfig(**SIZES, block_size=8)
        decoder = synkhorn.SynthesizerConfig(**SIZES, is_causal=True, add_cross_attention=True)
        config = synkhorn.SynkhornEncoderDecoderConfig.from_encoder_decoder_configs(encoder, decoder)
        config.decoder_start_token_id, config.pad_token_id = 1, 0
        self.model_tester = TinyPair(config)
        known = mock.patch.dict(
            modeling_auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES, {"ours": self.all_model_classes[0].__name__}
        )
        known.start()
        self.addCleanup(known.stop)

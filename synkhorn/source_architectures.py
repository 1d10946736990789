"""
The architectures of Transformers whose weights fit the backbone, as data: what their configurations and modules are
called, and what ours are.

In names of modules `{}` stands for the number of a layer; names are without the prefix of the base model. A tuple names
the modules that share one of theirs, in the order of its outputs.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class SourceHead:
    """
    A head of an architecture.

    Attributes:
        suffix: the end of our class's name, after the family's.
        modules: their modules -> our modules.
        fields: fields of our configuration, and their values.
    """

    suffix: str
    modules: Mapping[str, str] = field(default_factory=dict)
    fields: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class SourceArchitecture:
    """
    An architecture whose checkpoints are taken.

    Attributes:
        prefix: the beginning of its classes' names.
        fields: fields of our configuration, and theirs that give the value.
        built_in: fields of our configuration that the architecture has no field for.
        required: fields of their configuration, and the only value that fits; `None` for any.
        modules: modules of their base model -> our modules.
        heads: end of a class's name, after the prefix -> the head.
    """

    prefix: str
    fields: Mapping[str, str]
    built_in: Mapping[str, Any]
    required: Mapping[str, Any]
    modules: Mapping[str, str | tuple[str, ...]]
    heads: Mapping[str, SourceHead]


# of every configuration of Transformers
COMMON_FIELDS = (
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "initializer_range",
    "tie_word_embeddings",
    "pad_token_id",
    "bos_token_id",
    "eos_token_id",
    "id2label",
    "label2id",
    "problem_type",
)
FIRST_TOKEN = {"classifier_pooling": "cls"}

BERT_MODULES = {
    "embeddings.word_embeddings": "embeddings.word_embeddings",
    "embeddings.position_embeddings": "embeddings.position_embeddings",
    "embeddings.token_type_embeddings": "embeddings.token_type_embeddings",
    "embeddings.LayerNorm": "embeddings.norm",
    "encoder.layer.{}.attention.self.query": "layers.{}.attention.query",
    "encoder.layer.{}.attention.self.key": "layers.{}.attention.key",
    "encoder.layer.{}.attention.self.value": "layers.{}.attention.value",
    "encoder.layer.{}.attention.output.dense": "layers.{}.attention.output",
    "encoder.layer.{}.attention.output.LayerNorm": "layers.{}.attention_norm",
    "encoder.layer.{}.intermediate.dense": "layers.{}.feed_forward.input",
    "encoder.layer.{}.output.dense": "layers.{}.feed_forward.output",
    "encoder.layer.{}.output.LayerNorm": "layers.{}.feed_forward_norm",
}
BERT_FIELDS = {
    "intermediate_size": "intermediate_size",
    "hidden_act": "hidden_act",
    "type_vocab_size": "type_vocab_size",
    "hidden_dropout": "hidden_dropout_prob",
    "classifier_dropout": "classifier_dropout",
    "layer_norm_eps": "layer_norm_eps",
}
BERT_MASKED_LM = SourceHead(
    "ForMaskedLM",
    {
        "cls.predictions.transform.dense": "mlm_head.dense",
        "cls.predictions.transform.LayerNorm": "mlm_head.norm",
        "cls.predictions": "mlm_decoder",
        "cls.predictions.decoder": "mlm_decoder",
    },
)
TOKEN_CLASSIFICATION = SourceHead("ForTokenClassification", {"classifier": "classifier"})
QUESTION_ANSWERING = SourceHead("ForQuestionAnswering", {"qa_outputs": "qa_outputs"})
POOLED_CHOICE = SourceHead(
    "ForMultipleChoice",
    {"pooler.dense": "choice_classifier.dense", "classifier": "choice_classifier.out_proj"},
    FIRST_TOKEN,
)

BERT = SourceArchitecture(
    prefix="Bert",
    fields=BERT_FIELDS,
    built_in={"norm_first": False, "embedding_norm": True},
    # relative positions, of older versions of Transformers
    required={"is_decoder": False, "position_embedding_type": "absolute"},
    modules=BERT_MODULES,
    heads={
        "Model": SourceHead("Model"),
        "ForMaskedLM": BERT_MASKED_LM,
        "ForPreTraining": BERT_MASKED_LM,
        "ForSequenceClassification": SourceHead(
            "ForSequenceClassification",
            {"pooler.dense": "classifier.dense", "classifier": "classifier.out_proj"},
            FIRST_TOKEN,
        ),
        "ForTokenClassification": TOKEN_CLASSIFICATION,
        "ForQuestionAnswering": QUESTION_ANSWERING,
        "ForMultipleChoice": POOLED_CHOICE,
    },
)

ROBERTA = SourceArchitecture(
    prefix="Roberta",
    fields=BERT_FIELDS,
    built_in=BERT.built_in,
    # its masked-LM head has no other activation
    required=BERT.required | {"hidden_act": "gelu"},
    modules=BERT_MODULES,
    heads={
        "Model": SourceHead("Model"),
        "ForMaskedLM": SourceHead(
            "ForMaskedLM",
            {
                "lm_head.dense": "mlm_head.dense",
                "lm_head.layer_norm": "mlm_head.norm",
                "lm_head": "mlm_decoder",
                "lm_head.decoder": "mlm_decoder",
            },
        ),
        "ForSequenceClassification": SourceHead(
            "ForSequenceClassification",
            {"classifier.dense": "classifier.dense", "classifier.out_proj": "classifier.out_proj"},
            FIRST_TOKEN,
        ),
        "ForTokenClassification": TOKEN_CLASSIFICATION,
        "ForQuestionAnswering": QUESTION_ANSWERING,
        "ForMultipleChoice": POOLED_CHOICE,
    },
)

DISTILBERT = SourceArchitecture(
    prefix="DistilBert",
    fields={
        "intermediate_size": "hidden_dim",
        "hidden_act": "activation",
        "hidden_dropout": "dropout",
        "classifier_dropout": "seq_classif_dropout",
    },
    built_in={"norm_first": False, "embedding_norm": True, "type_vocab_size": 0, "layer_norm_eps": 1e-12},
    required={},
    modules={
        "embeddings.word_embeddings": "embeddings.word_embeddings",
        "embeddings.position_embeddings": "embeddings.position_embeddings",
        "embeddings.LayerNorm": "embeddings.norm",
        "transformer.layer.{}.attention.q_lin": "layers.{}.attention.query",
        "transformer.layer.{}.attention.k_lin": "layers.{}.attention.key",
        "transformer.layer.{}.attention.v_lin": "layers.{}.attention.value",
        "transformer.layer.{}.attention.out_lin": "layers.{}.attention.output",
        "transformer.layer.{}.sa_layer_norm": "layers.{}.attention_norm",
        "transformer.layer.{}.ffn.lin1": "layers.{}.feed_forward.input",
        "transformer.layer.{}.ffn.lin2": "layers.{}.feed_forward.output",
        "transformer.layer.{}.output_layer_norm": "layers.{}.feed_forward_norm",
    },
    heads={
        "Model": SourceHead("Model"),
        "ForMaskedLM": SourceHead(
            "ForMaskedLM",
            {
                "vocab_transform": "mlm_head.dense",
                "vocab_layer_norm": "mlm_head.norm",
                "vocab_projector": "mlm_decoder",
            },
        ),
        "ForSequenceClassification": SourceHead(
            "ForSequenceClassification",
            {"pre_classifier": "classifier.dense", "classifier": "classifier.out_proj"},
            FIRST_TOKEN | {"classifier_act": "relu"},
        ),
        "ForTokenClassification": TOKEN_CLASSIFICATION,
        "ForQuestionAnswering": QUESTION_ANSWERING,
        "ForMultipleChoice": SourceHead(
            "ForMultipleChoice",
            {"pre_classifier": "choice_classifier.dense", "classifier": "choice_classifier.out_proj"},
            FIRST_TOKEN | {"classifier_act": "relu"},
        ),
    },
)

GPT2 = SourceArchitecture(
    prefix="GPT2",
    fields={
        "intermediate_size": "n_inner",
        "hidden_act": "activation_function",
        "hidden_dropout": "resid_pdrop",
        "layer_norm_eps": "layer_norm_epsilon",
    },
    built_in={"norm_first": True, "embedding_norm": False, "type_vocab_size": 0, "is_causal": True},
    required={"scale_attn_weights": True, "scale_attn_by_inverse_layer_idx": False, "add_cross_attention": False},
    modules={
        "wte": "embeddings.word_embeddings",
        "wpe": "embeddings.position_embeddings",
        "h.{}.ln_1": "layers.{}.attention_norm",
        "h.{}.attn.c_attn": ("layers.{}.attention.query", "layers.{}.attention.key", "layers.{}.attention.value"),
        "h.{}.attn.c_proj": "layers.{}.attention.output",
        "h.{}.ln_2": "layers.{}.feed_forward_norm",
        "h.{}.mlp.c_fc": "layers.{}.feed_forward.input",
        "h.{}.mlp.c_proj": "layers.{}.feed_forward.output",
        "ln_f": "norm",
    },
    heads={
        "Model": SourceHead("Model"),
        "LMHeadModel": SourceHead("ForCausalLM", {"lm_head": "lm_head"}),
        # one linear layer: the dense layer before it is the identity
        "ForSequenceClassification": SourceHead(
            "ForSequenceClassification",
            {"score": "classifier.out_proj"},
            {"classifier_pooling": "last", "classifier_act": "linear"},
        ),
        "ForTokenClassification": TOKEN_CLASSIFICATION,
        "ForQuestionAnswering": QUESTION_ANSWERING,
    },
)

# by the `model_type` of their configurations
SOURCES = {"bert": BERT, "roberta": ROBERTA, "distilbert": DISTILBERT, "gpt2": GPT2}

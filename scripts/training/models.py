"""The model and the tokenizer that a training script's arguments ask for, from scratch or from a checkpoint."""

from collections.abc import Iterable, Sized
from dataclasses import dataclass, field, fields
from typing import Any

from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from tqdm import tqdm
from transformers import (
    CONFIG_MAPPING,
    AutoConfig,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

import synkhorn
from synkhorn import FAMILIES
from synkhorn_console.parser import meant

from ..common.arguments import read_fields
from ..common.checkpoints import reading
from ..common.precision import device_type, weights_dtype
from ..tasks.seq2seq import Seq2SeqArguments

BYTES, TRAIN = "bytes", "train"
# a model from scratch, of a size that learns on a CPU in minutes, where `model_config` does not say otherwise
SMALL = {"hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 256}


@dataclass
class ModelArguments:
    """Which model: a checkpoint, or a family from scratch."""

    _argument_group_name = "model"

    model_name_or_path: str | None = field(
        default=None,
        metadata={
            "help": "Checkpoint to start from: a folder, such as one that `synkhorn convert` made, or a name on the "
            "Hub. A new model, trained from scratch, if not given."
        },
    )
    family: str = field(default="sinkhorn", metadata={"help": "Family of a new model.", "choices": FAMILIES})
    model_config: str | None = field(
        default=None,
        metadata={
            "help": "Fields of the configuration: a JSON object such as '{\"hidden_size\": 256}', or a JSON or YAML "
            "file of one. They override those of a checkpoint, or of the small new model."
        },
    )
    tokenizer_name: str | None = field(
        default=None,
        metadata={
            "help": "`bytes`; `train`: byte-pair encoding trained on the training texts; or a folder or name on the "
            "Hub. The checkpoint's own, or `train`, if not given."
        },
    )
    vocab_size: int = field(default=8192, metadata={"help": "Tokens of a tokenizer that is trained."})
    attn_implementation: str = field(
        default="sdpa", metadata={"help": "`sdpa`, the fast form, or `eager`, which follows the formulas step by step."}
    )
    revision: str = field(default="main", metadata={"help": "Branch, tag or commit of a checkpoint on the Hub."})
    trust_remote_code: bool = field(
        default=False, metadata={"help": "Run the code in the checkpoint, if you trust its author."}
    )


def load_tokenizer(
    arguments: ModelArguments,
    texts: Iterable[str],
    max_length: int,
    is_causal: bool = False,
    checkpoint: str | None = None,
) -> PreTrainedTokenizerBase:
    """
    The tokenizer that the arguments name: `bytes`, `train` (on `texts`), or that of a checkpoint.

    Args:
        arguments: the model's.
        texts: training data of a new tokenizer, read by the main process alone.
        max_length: tokens at which `truncation=True` cuts.
        is_causal: whether one of bytes, or one that is trained, is for a causal model.
        checkpoint: that of a resumed run, whose tokenizer is not trained twice.
    """
    name = checkpoint or arguments.tokenizer_name or arguments.model_name_or_path or TRAIN
    if name == BYTES:
        return synkhorn.byte_tokenizer(max_length, is_causal)
    if name == TRAIN:
        trained = None
        if PartialState().is_main_process:
            number = f"{len(texts):,}" if isinstance(texts, Sized) else "the first"
            print(
                f"Training a tokenizer of at most {arguments.vocab_size:,} tokens on {number} texts (--vocab_size)",
                flush=True,
            )
            bar = tqdm(texts, desc="Reading texts, then counting pairs", unit=" texts", leave=False)
            trained = synkhorn.train_tokenizer(bar, arguments.vocab_size, max_length, is_causal, show_progress=False)
        return broadcast_object_list([trained])[0]
    tokenizer = AutoTokenizer.from_pretrained(
        name,
        model_max_length=max_length,
        revision=arguments.revision if name == arguments.model_name_or_path else "main",
        trust_remote_code=arguments.trust_remote_code,
    )
    if tokenizer.pad_token is None:
        # GPT-2's has none
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def own_fields(given: str | None, config_class: type[PreTrainedConfig], option: str = "model_config") -> dict[str, Any]:
    """
    The fields that `option` sets.

    Raises:
        ValueError: if the configuration has no such field.
    """
    own = {} if given is None else read_fields(option, given)
    known = {entry.name for entry in fields(config_class)}  # type: ignore[arg-type]
    unknown = sorted(set(own) - known)
    if unknown:
        raise ValueError(
            f"--{option} has {', '.join(unknown)}: not fields of {config_class.__name__}, which has "
            f"{', '.join(sorted(known))}{meant(unknown[0], known)}"
        )
    return own


def load_model(
    auto_class: Any, arguments: ModelArguments, tokenizer: PreTrainedTokenizerBase, max_length: int, **task_fields: Any
) -> PreTrainedModel:
    """
    A model from scratch, or a checkpoint's, whose head is new where the checkpoint has another. The tokenizer's
    `model_max_length` becomes the model's limit.

    Args:
        auto_class: an Auto class, such as `AutoModelForMaskedLM`.
        arguments: the model's.
        tokenizer: its vocabulary and special tokens are those of a model from scratch.
        max_length: the longest sequence that the model is to take, and the limit of a model from scratch.
        task_fields: further fields of the configuration, such as `id2label`; `model_config` overrides them.

    Raises:
        ValueError: if the model's limit is below `max_length`, or its vocabulary smaller than the tokenizer's.
    """
    hub: dict[str, Any] = {"revision": arguments.revision, "trust_remote_code": arguments.trust_remote_code}
    attention = {"attn_implementation": arguments.attn_implementation}
    if arguments.model_name_or_path is None:
        own = own_fields(arguments.model_config, CONFIG_MAPPING[arguments.family])
        defaults = SMALL | {"max_position_embeddings": max_length} | synkhorn.token_fields(tokenizer)
        config = AutoConfig.for_model(arguments.family, **defaults | task_fields | own)
        model = auto_class.from_config(config, **attention)
    else:
        config = AutoConfig.from_pretrained(arguments.model_name_or_path, **hub)
        if config.model_type == synkhorn.SynkhornEncoderDecoderConfig.model_type:
            # Transformers' own classes would be saved without our code
            config = synkhorn.SynkhornEncoderDecoderConfig.from_dict(config.to_dict() | {"auto_map": None})
            auto_class = synkhorn.SynkhornEncoderDecoderModel
        own = own_fields(arguments.model_config, type(config))
        limit = reading(config).max_position_embeddings
        length = own.pop("max_position_embeddings", limit)
        for name, value in {**task_fields, **own}.items():
            setattr(config, name, value)
        model, report = auto_class.from_pretrained(
            arguments.model_name_or_path,
            config=config,
            dtype=weights_dtype(None, config, device_type(), remedy=""),
            # a head for other classes is new
            ignore_mismatched_sizes=True,
            output_loading_info=True,
            **hub,
            **attention,
        )
        clashes = sorted(name for name, *_ in report["mismatched_keys"] if name.startswith(model.base_model_prefix))
        if clashes:
            raise ValueError(
                f"--model_config {arguments.model_config} does not fit the checkpoint "
                f"{arguments.model_name_or_path!r}, whose {', '.join(clashes)} have other shapes: leave fields out"
            )
        if length != limit:
            model.resize_max_position_embeddings(length)
    check_fit(reading(model.config), tokenizer, max_length)
    # a pipeline cuts there
    tokenizer.model_max_length = reading(model.config).max_position_embeddings
    return model


def new_encoder_decoder(
    arguments: ModelArguments, decoder: Seq2SeqArguments, tokenizer: PreTrainedTokenizerBase, max_length: int
) -> PreTrainedModel:
    """An encoder and a decoder from scratch; see `load_model`."""
    defaults = SMALL | {"max_position_embeddings": max_length} | synkhorn.token_fields(tokenizer)
    family = decoder.decoder_family or arguments.family
    of_encoder = own_fields(arguments.model_config, CONFIG_MAPPING[arguments.family])
    of_decoder = own_fields(decoder.decoder_config, CONFIG_MAPPING[family], "decoder_config")
    if family == arguments.family:
        of_decoder = of_encoder | of_decoder
    configs = (
        AutoConfig.for_model(arguments.family, **defaults | of_encoder),
        AutoConfig.for_model(family, **defaults | of_decoder | {"is_causal": True}),
    )
    check_fit(configs[0], tokenizer, max_length)
    return encoder_decoder(*configs, decoder.max_target_length, attn_implementation=arguments.attn_implementation)


def encoder_decoder(
    encoder: PreTrainedConfig, decoder: PreTrainedConfig, max_target_length: int, **options: Any
) -> PreTrainedModel:
    """
    A new model of two configurations of ours.

    Args:
        encoder: whose special tokens are those of the decoder too.
        decoder: a causal one.
        max_target_length: the longest text that it writes, in tokens.
        options: of `_from_config`.
    """
    # with the token that starts a text
    longest = max_target_length + 1
    decoder.max_position_embeddings, decoder.cross_attention_hidden_size = longest, encoder.hidden_size
    tokens = {"decoder_start_token_id": encoder.cls_token_id, "pad_token_id": encoder.pad_token_id}
    config = synkhorn.SynkhornEncoderDecoderConfig.from_encoder_decoder_configs(encoder, decoder, **tokens)
    model = synkhorn.SynkhornEncoderDecoderModel._from_config(config, **options)
    model.generation_config = GenerationConfig(**tokens, eos_token_id=encoder.sep_token_id, max_length=longest)
    return model


def check_fit(config: PreTrainedConfig, tokenizer: PreTrainedTokenizerBase, max_length: int) -> None:
    """Raise a `ValueError` if the model cannot take `max_length` tokens of the tokenizer."""
    if max_length > config.max_position_embeddings:
        raise ValueError(
            f"max_length={max_length} is more than the model's max_position_embeddings="
            f"{config.max_position_embeddings}: lower it, or make the model longer by --model_config "
            f"'{{\"max_position_embeddings\": {max_length}}}'"
        )
    if len(tokenizer) > config.vocab_size:
        raise ValueError(
            f"the tokenizer has {len(tokenizer)} tokens, more than the model's vocab_size={config.vocab_size}: leave "
            "out tokenizer_name, so that the checkpoint's own is taken"
        )

"""
A checkpoint of every head, with a recorded output beside it, which any other version of Transformers is to repeat.

    python checkpoints.py write|check FOLDER
"""

import sys
from pathlib import Path

import torch
import transformers
from safetensors.torch import load_file, save_file
from variants import TINY, config_of, model_of, padding, random_ids, tiny_config, tiny_sinkhorn_config

import synkhorn
from synkhorn.configuration.configuration_backbone import AUTO_CLASSES


def family_config(family: str, **fields):
    """A configuration that has as many kinds of weights as it can."""
    if family == "sinkhorn":
        return tiny_sinkhorn_config(sort_net="mlp", causal_balancing="sinkhorn", mix_dot_product=True, **fields)
    if family == "synthesizer":
        return tiny_config(["dot_product", "factorized_random", "fixed_random"], **fields)
    return transformers.AutoConfig.for_model(family, **TINY | fields)


def write_checkpoints(folder: Path, family: str) -> None:
    """Checkpoints of a family, each named for its Auto class."""
    folder.mkdir(parents=True)
    tokenizer = synkhorn.byte_tokenizer(model_max_length=13)
    fields = {
        "position_embedding_type": "rope",
        "classifier_pooling": "last",
        "num_labels": 3,
    } | synkhorn.token_fields(tokenizer)
    for auto in AUTO_CLASSES:
        config = family_config(family, is_causal=auto == "AutoModelForTokenClassification", **fields)
        torch.manual_seed(0)
        model = getattr(transformers, auto).from_config(config).eval()
        model.save_pretrained(folder / auto)
        tokenizer.save_pretrained(folder / auto)
        ids, mask = random_ids(3, 11), padding(3, 11, "left")
        if auto == "AutoModelForMultipleChoice":
            ids, mask = ids[:, None].repeat(1, 2, 1), mask[:, None].repeat(1, 2, 1)
        output = model(input_ids=ids, attention_mask=mask)[0].detach().contiguous()
        save_file({"input_ids": ids, "attention_mask": mask, "output": output}, folder / f"{auto}.safetensors")


def write_causal(folder: Path, family: str = "sinkhorn", **fields) -> Path:
    """A causal language model of bytes that takes 32 tokens, with its tokenizer."""
    tokenizer = synkhorn.byte_tokenizer(model_max_length=32, is_causal=True)
    fields = synkhorn.token_fields(tokenizer) | {"max_position_embeddings": 32} | fields
    model_of(config_of({} if family == "sinkhorn" else ["dense"], **fields), "ForCausalLM").save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def check_checkpoints(folder: Path, family: str) -> None:
    """Load what `write_checkpoints` wrote, as the installed package's classes, and compare the outputs."""
    for auto in AUTO_CLASSES:
        model, loading = getattr(transformers, auto).from_pretrained(folder / auto, output_loading_info=True)
        assert type(model).__module__ == f"synkhorn.modeling.modeling_{family}"
        assert not any(loading.values()), loading
        recorded = load_file(folder / f"{auto}.safetensors")
        expected = recorded.pop("output")
        torch.testing.assert_close(model.eval()(**recorded)[0], expected, atol=1e-6, rtol=1e-6)
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder / auto, trust_remote_code=False)
        assert tokenizer("né").input_ids == synkhorn.byte_tokenizer()("né").input_ids


if __name__ == "__main__":
    act = {"write": write_checkpoints, "check": check_checkpoints}[sys.argv[1]]
    for family in synkhorn.FAMILIES:
        act(Path(sys.argv[2]) / family, family)
    print(f"transformers {transformers.__version__}: {sys.argv[1]} {sys.argv[2]}")

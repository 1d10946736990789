"""Which of Transformers' tests do not run here, and why. Patterns are of `Class.test`, matched to the end."""

import re
from importlib.metadata import version

OTHER_PIPELINES = (
    "any_to_any|audio_classification|automatic_speech_recognition|depth_estimation|document_question_answering|"
    "image_\\w+?|mask_generation|object_detection|table_question_answering|text_to_audio|video_classification|"
    "zero_shot_(audio|image|object)_\\w+?"
)
GPU_TESTS = (
    "disk_offload.*|cpu_offload|model_parallelism|.*flash_attn.*|can_load_with_(device_context|global_device).*|"
    "kernels_can_load.*|sdpa_can_dispatch_on_flash|sdpa_can_compile_dynamic|torch_compile_for_training|"
    "flex_attention_with_grads|resize_\\w+_with_deepspeed.*"
)
COMPOSITE_TESTS = (
    "(attn_implementation|sdpa_can_dispatch|can_set_attention_dynamically)_composite_models?|"
    "internal_model_config_and_subconfig_are_same"
)

# skipped by the tests themselves
SKIPPED = {
    f"test_({GPU_TESTS})": "needs an accelerator",
    f"test_pipeline_({OTHER_PIPELINES})(_fp16)?": "is for images, sound or tables",
    "test_vision_axial_rope": "is for images, sound or tables",
    f"\\w*coderTest.test_({COMPOSITE_TESTS})": "is for models made of several",
    "\\w*coderTest.test_encoder_decoder_loss_no_double_shift": "is for encoder-decoders",
    "Seq2SeqTest.test_sdpa_can_dispatch_composite_models": "is for images, sound or tables",
    "Seq2SeqTest.test_sdpa_can_dispatch_non_composite_models": "is for models made of one part",
    "Seq2SeqTest.test_(can_capture_specific_layers_hidden_states|can_init_all_missing_weights|torch_save_load)": (
        "is for a base model with a head"
    ),
    "Seq2SeqTest.test_(causal_lm_loss_.*|model_rope_scaling_frequencies)": "is for causal models",
    "test_(moe_models|output_router_logits|eager_matches_batched_and_grouped)_.*": "is for mixtures of experts",
    "test_sliding_window_mask": "is for sliding windows",
    "test_(tp_plan_matches_params|tied_head_has_a_tp_plan_entry)": "is for plans of tensor parallelism",
    "test_(reverse_loading_mapping|can_load_from_already_mapped_keys)": "is for weights renamed when they load",
    "test_keep_in_fp32_modules(_exist)?": "is for models with modules that stay in float32: ours compute in it instead",
    "test_eager_matches_sdpa_inference_24_fp32_pad_left_output_attentions": "is for fast forms that return attentions",
    "\\w*EncoderTest.test_(pipeline_text_generation(_fp16)?|causal_lm_loss_.*)": "is for causal models",
    "\\w*EncoderTest.test_model_rope_scaling_frequencies": "is for rotary positions, which the decoders have",
    "\\w*DecoderTest.test_pipeline_fill_mask(_fp16)?": "is for bidirectional models",
    "(\\w*Decoder|Seq2Seq)Test.test_resize_position_vector_embeddings": "is for learned positions of one encoder",
    "\\w*DecoderTest.test_model_rope_with_partial_rotation": "is for rotations of a part of a head",
    "test_chat_template_save_loading": "is for tokenizers whose class lists `chat_template` among its arguments",
    "test_integration_from_extractor": "is for classes made from a vocabulary and merges",
    "(CausalByte|Trained)TokenizerTest.test_integration": "is for ids known beforehand, as the byte tokenizer's are",
}
if version("transformers") == "5.17.0":
    SKIPPED["test_can_init_all_missing_weights"] = "is for sources with a year of 2023 or later, in this version"
# not started
LEFT_OUT = {
    "test_get_(text|image|audio|video)_features_.*": "is for images, sound or tables",
    "test_retain_grad_hidden_states_attentions": (
        "pads its input, where hidden states are put into the places of the tokens; test_heads.py asks for gradients "
        "without padding"
    ),
    "(\\w*Encoder|Seq2Seq)Test.test_model_rope_(scaling_from_config_.*|with_partial_rotation)": (
        "is for rotary positions, which the decoders have"
    ),
    "Seq2SeqTest.test_model_base_model_prefix": "is for a base model with a head",
    "Seq2SeqTest.test_(model_get_set_embeddings|resize_(embeddings_untied|tokens_embeddings))": (
        "is for one vocabulary: `EncoderDecoderModel` has two, and refuses to resize them together"
    ),
    "\\w*DecoderTest.test_model_rope_scaling_from_config_.*": (
        "gives more than max_position_embeddings tokens, an error here; test_configuration.py scales rotations"
    ),
}


def reason_of(name: str, table: dict[str, str] | None = None) -> str | None:
    """Why a test does not run, or `None` where it does."""
    table = SKIPPED | LEFT_OUT if table is None else table
    return next((reason for pattern, reason in table.items() if re.fullmatch(f"(\\w+\\.)?({pattern})", name)), None)

"""What `PipelineTesterMixin` runs for each task: Transformers' own checks are not in its source distribution."""

from abc import ABC, abstractmethod

import torch
from transformers import pipeline


class PipelineChecks(ABC):
    """Calls a pipeline with texts one by one and in a batch, and compares each result with the model's own outputs."""

    task: str
    options: dict = {}
    texts = ["A fine film, if long.", "No."]

    def get_test_pipeline(self, model, tokenizer, dtype="float32", **processors):
        assert not any(processors.values())
        return pipeline(self.task, model=model, tokenizer=tokenizer, dtype=dtype, **self.options), self.texts

    def run_pipeline_test(self, pipe, texts):
        for text in texts:
            alone, _ = pipe([text, text])
            self.check(pipe, text, alone)
        for text, result in zip(texts, pipe(texts, batch_size=len(texts)), strict=True):
            self.check(pipe, text, result)

    @abstractmethod
    def check(self, pipe, text: str, result):
        """Compare what the pipeline says of a text with what its model does."""


@torch.no_grad()
def outputs(pipe, *texts):
    """What the model says of one text or pair of texts."""
    return pipe.model(**pipe.tokenizer(*texts, return_tensors="pt").to(pipe.device))


def assert_same(actual: list, expected: torch.Tensor) -> None:
    """Numbers are those of a tensor, as nearly as its precision allows in a batch that is padded."""
    tolerance = 1e-5 if expected.dtype == torch.float32 else 1e-2
    torch.testing.assert_close(torch.tensor(actual), expected.float(), atol=tolerance, rtol=tolerance)


class FeatureExtractionPipelineTests(PipelineChecks):
    task = "feature-extraction"

    def check(self, pipe, text, result):
        states = outputs(pipe, text).last_hidden_state[0]
        assert_same(result[0][: len(states)], states)


class FillMaskPipelineTests(PipelineChecks):
    task = "fill-mask"
    options = {"top_k": 3}
    texts = ["A <mask> film, if long.", "No<mask>"]

    def check(self, pipe, text, result):
        ids = pipe.tokenizer(text).input_ids
        scores = outputs(pipe, text).logits[0, ids.index(pipe.tokenizer.mask_token_id)].softmax(-1)
        assert_same([row["score"] for row in result], scores.topk(3).values)
        assert_same([row["score"] for row in result], scores[[row["token"] for row in result]])


class TextClassificationPipelineTests(PipelineChecks):
    task = "text-classification"
    options = {"top_k": None}

    def check(self, pipe, text, result):
        scores = {row["label"]: row["score"] for row in result}
        assert list(scores.values()) == sorted(scores.values(), reverse=True)
        expected = outputs(pipe, text).logits[0].softmax(-1)
        assert_same([scores[label] for label in pipe.model.config.id2label.values()], expected)


class ZeroShotClassificationPipelineTests(PipelineChecks):
    task = "zero-shot-classification"
    labels = ["good", "bad", "long"]
    options = {"candidate_labels": labels}

    def check(self, pipe, text, result):
        scores = dict(zip(result["labels"], result["scores"], strict=True))
        entailment = [outputs(pipe, text, f"This example is {label}.").logits[0, -1] for label in self.labels]
        assert_same([scores[label] for label in self.labels], torch.stack(entailment).softmax(0))


class TokenClassificationPipelineTests(PipelineChecks):
    task = "token-classification"
    options = {"ignore_labels": []}

    def check(self, pipe, text, result):
        scores = outputs(pipe, text).logits[0].softmax(-1)
        labels = [pipe.model.config.label2id[token["entity"]] for token in result]
        # every byte of the text, which the special tokens surround
        assert [token["start"] for token in result] == list(range(len(text)))
        assert_same([token["score"] for token in result], scores[[token["index"] for token in result]].amax(-1))
        assert_same([token["score"] for token in result], scores[[token["index"] for token in result], labels])


class TextGenerationPipelineTests(PipelineChecks):
    task = "text-generation"
    options = {"max_new_tokens": 6, "do_sample": False}

    def check(self, pipe, text, result):
        (row,) = result
        assert row["generated_text"].startswith(text)
        # in half precision a padded batch may choose another of two equal tokens
        if pipe.model.dtype == torch.float32:
            ids = pipe.model.generate(**pipe.tokenizer(text, return_tensors="pt"), **self.options)
            assert row["generated_text"] == pipe.tokenizer.decode(ids[0], skip_special_tokens=True)

"""The pictures of a checkpoint: every family, with the words of the text, in a PNG and in one self-contained page."""

import base64
import io
import re

import pytest
import torch
from PIL import Image
from transformers import BertConfig, BertModel

from synkhorn import (
    SinkhornConfig,
    SinkhornForCausalLM,
    SynthesizerConfig,
    SynthesizerForCausalLM,
    SynthesizerForMaskedLM,
    byte_tokenizer,
    token_fields,
)
from synkhorn.scripts import visualize
from synkhorn.scripts.measuring import pictures

TEXT = "$10 or <so>"
SIZES = {
    "hidden_size": 8,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 8,
    "max_position_embeddings": 24,
    "initializer_range": 0.5,
}


@pytest.fixture
def save(tmp_path):
    def save(model_class, config_class, with_tokenizer=True, **fields):
        tokenizer = byte_tokenizer(is_causal=model_class in (SinkhornForCausalLM, SynthesizerForCausalLM))
        model = model_class(config_class(**SIZES | fields, **token_fields(tokenizer)))
        folder = tmp_path / "checkpoint"
        model.save_pretrained(folder)
        if with_tokenizer:
            tokenizer.save_pretrained(folder)
        return str(folder)

    return save


def draw(folder, tmp_path, *arguments):
    """The size of the PNG, and the page, that the script writes."""
    output, page = tmp_path / "out" / "picture.png", tmp_path / "out" / "page.html"
    visualize.main([folder, *arguments, "--output", str(output), "--html", str(page)])
    with Image.open(output) as picture:
        return picture.size, page.read_text(encoding="utf-8")


def check_page(page: str, layers: int) -> None:
    """It is whole, refers to nothing outside, and holds one real picture a layer."""
    assert page.startswith("<!DOCTYPE html>") and page.rstrip().endswith("</html>")
    assert not re.search(r"https?://|<script|<link|@import", page)
    sources = re.findall(r'src="([^"]*)"', page)
    assert len(sources) == layers
    for source in sources:
        kind, encoded = source.split(",")
        assert kind == "data:image/png;base64"
        assert Image.open(io.BytesIO(base64.b64decode(encoded))).size[0] > 400


@pytest.mark.parametrize(
    ("synthesizers", "caption"),
    [
        (["random", "dot_product"], "Each member below it stands alone"),
        (["dense"], "The model has no dot-product member. For comparison only"),
        (["dot_product"], "so that small weights differ.</p>"),
    ],
)
def test_a_synthesizer_is_drawn_beside_dot_product_attention(synthesizers, caption, save, tmp_path):
    folder = save(SynthesizerForMaskedLM, SynthesizerConfig, synthesizers=synthesizers)
    (width, height), page = draw(folder, tmp_path, "--text", TEXT)
    assert 500 < width < 4000 and 500 < height < 6000
    check_page(page, layers=2)
    assert caption in page
    assert "<blockquote>$10 or &lt;so&gt;</blockquote>" in page


def test_a_sinkhorn_model_is_drawn_with_its_blocks(save, tmp_path):
    folder = save(SinkhornForCausalLM, SinkhornConfig, block_size=5)
    (tmp_path / "text.txt").write_text(3 * TEXT, encoding="utf-8")
    (width, height), page = draw(folder, tmp_path, "--file", str(tmp_path / "text.txt"), "--layers", "1")
    assert 500 < width < 4000 and 300 < height < 4000
    check_page(page, layers=1)
    assert "block 0 has none" in page
    assert "cut to the first 24: the longest that the model takes" in page


def test_members_of_a_mixture_make_up_its_weights(save):
    folder = save(SynthesizerForMaskedLM, SynthesizerConfig, synthesizers=["dense", "dot_product"])
    arguments = visualize.parser().parse_args([folder, "--text", TEXT, "--max_tokens", "9"])
    model, tokenizer = visualize.load(arguments)
    with torch.no_grad():
        for layer in model.layers:
            layer.attention.mixture.copy_(torch.tensor([[0.0, 60.0], [60.0, 0.0]]))
    ids, note = visualize.encode(TEXT, model, tokenizer, arguments.max_tokens)
    assert ids.shape == (1, 9) and note.endswith("first 9: --max_tokens.")
    picture = pictures.attention_picture(model, ids, tokenizer)
    names = [(row.layer, row.name) for row in picture.rows]
    assert names == [(layer, name) for layer in (0, 1) for name in ("mixture", "dot_product", "dense")]
    mixture, dot_product, dense = (row.matrices for row in picture.rows[:3])
    # head 0 is all dot product, head 1 all dense
    torch.testing.assert_close(mixture[0], dot_product[0])
    torch.testing.assert_close(mixture[1], dense[1])
    assert picture.rows[1].titles == ["head 0 (1.00)", "head 1 (0.00)"]


def test_a_causal_model_attends_to_the_past_alone_and_a_plain_sum_has_no_shares(save):
    fields = {"synthesizers": ["random", "dot_product"], "mixture_weighting": "sum"}
    folder = save(SynthesizerForCausalLM, SynthesizerConfig, **fields)
    model, tokenizer = visualize.load(visualize.parser().parse_args([folder, "--text", TEXT]))
    picture = pictures.attention_picture(model, visualize.encode(TEXT, model, tokenizer, 24)[0], tokenizer)
    assert len(picture.rows) == 6
    for row in picture.rows:
        assert not row.matrices.triu(1).any() and row.titles == ["head 0", "head 1"]
        torch.testing.assert_close(row.matrices.sum(-1), torch.ones(row.matrices.shape[:-1]))


def test_a_long_text_is_drawn_without_its_words(save, tmp_path):
    folder = save(SynthesizerForMaskedLM, SynthesizerConfig, max_position_embeddings=80)
    (width, height), page = draw(folder, tmp_path, "--text", 20 * "film ", "--layers", "0")
    assert 500 < width < 4000 and 300 < height < 4000
    check_page(page, layers=1)


def test_sort_matrices_have_the_text_of_their_blocks(save):
    folder = save(SinkhornForCausalLM, SinkhornConfig, block_size=5)
    model, tokenizer = visualize.load(visualize.parser().parse_args([folder, "--text", TEXT]))
    ids, _ = visualize.encode("A dull film", model, tokenizer, 24)
    picture = pictures.sort_picture(model, ids, tokenizer)
    assert picture.labels == ["0: <s>A du", "1: ll fi", "2: lm"]
    assert all(row.matrices.shape == (2, 3, 3) for row in picture.rows)


def test_what_a_block_fetches_is_told_in_words(save, tmp_path, capsys):
    folder = save(SinkhornForCausalLM, SinkhornConfig, block_size=5, sort_top_k=1, sorted_blocks=2)
    _, page = draw(folder, tmp_path, "--text", "A dull film", "--layers", "1")
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "layer 1, head 0, sorted block 0" and lines[4] == "layer 1, head 0, sorted block 1"
    assert lines[1:3] == ["  0 '<s>A du' <- nothing", "  1 'll fi' <- 0 '<s>A du' (1.00)"]
    assert re.fullmatch(r"  2 'lm' <- (0 '<s>A du'|1 'll fi') \(1\.00\)", lines[3])
    assert "1 &#x27;ll fi&#x27; &lt;- 0 &#x27;&lt;s&gt;A du&#x27; (1.00)" in page


def test_long_labels_keep_both_ends_and_start_no_formula():
    assert pictures.shortened("one\n two") == "one two"
    assert pictures.shortened("a sentence of several words") == "a sente…l words"
    assert pictures.shortened("$5 or $6") == r"\$5 or \$6"


def test_wrong_arguments_are_named(save, tmp_path):
    folder = save(SynthesizerForMaskedLM, SynthesizerConfig, with_tokenizer=False)
    with pytest.raises(ValueError, match="--text is empty"):
        visualize.main([folder, "--text", "  "])
    with pytest.raises(ValueError, match="missing.txt does not exist"):
        visualize.main([folder, "--file", str(tmp_path / "missing.txt")])
    with pytest.raises(ValueError, match="checkpoint '.*nowhere' is neither a folder"):
        visualize.main([str(tmp_path / "nowhere"), "--text", TEXT])
    BertModel(BertConfig(**SIZES, vocab_size=300)).save_pretrained(tmp_path / "bert")
    with pytest.raises(ValueError, match="bert' is a bert model: choose one of the families sinkhorn, synthesizer"):
        visualize.main([str(tmp_path / "bert"), "--text", TEXT])
    with pytest.raises(ValueError, match="has no tokenizer: .*--tokenizer"):
        visualize.main([folder, "--text", TEXT])
    byte_tokenizer().save_pretrained(tmp_path / "tokenizer")
    with pytest.raises(ValueError, match="--max_tokens 0 must be at least 1"):
        visualize.main([folder, "--tokenizer", str(tmp_path / "tokenizer"), "--text", TEXT, "--max_tokens", "0"])


def test_a_model_that_sorts_nothing_cannot_be_drawn(save, tmp_path):
    folder = save(SinkhornForCausalLM, SinkhornConfig, block_size=5, sort_net="none")
    with pytest.raises(ValueError, match="sort_net='none'"):
        draw(folder, tmp_path, "--text", TEXT)
    with pytest.raises(ValueError, match=r"--layers \[2\] must lie in 0 to 1"):
        draw(save(SinkhornForCausalLM, SinkhornConfig, block_size=5), tmp_path, "--text", TEXT, "--layers", "2")

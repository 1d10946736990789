"""
Draw what a checkpoint attends to in a text, by layer and head. A Sinkhorn model: its sort matrices, and the words of
the blocks that each block fetches. A Synthesizer: its attention beside dot-product attention.

    python -m synkhorn.scripts.visualize runs/quickstart-synthesizer --text "A dull film, and far too long."
    python -m synkhorn.scripts.visualize my-sinkhorn-model --file review.txt --output sort.png --html sort.html
"""

from argparse import ArgumentDefaultsHelpFormatter, ArgumentParser, Namespace
from pathlib import Path

import torch
from transformers import AutoModel, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase, logging

from synkhorn import FAMILIES
from synkhorn.hub_export import write_whole

from .common.checkpoints import load_whole
from .measuring import pictures
from .measuring.pictures import chosen_layers, draw, in_words, page, png


def parser() -> ArgumentParser:
    parser = ArgumentParser(description=__doc__, formatter_class=ArgumentDefaultsHelpFormatter)
    parser.add_argument("checkpoint", help="folder, or name on the Hub, of a model of one of the families")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--text", help="what the model reads")
    source.add_argument("--file", type=Path, help="a file of it, in UTF-8")
    parser.add_argument("--tokenizer", help="folder or name of a tokenizer, where the checkpoint has none of its own")
    parser.add_argument("--layers", nargs="+", type=int, metavar="LAYER", help="draw these only, from 0 on")
    parser.add_argument("--max_tokens", type=int, default=512, help="a longer text is cut, as the model's limit does")
    parser.add_argument("--output", type=Path, default=Path("attention.png"), help="the picture, all layers in one")
    parser.add_argument("--html", type=Path, help="also one self-contained page, a picture a layer")
    return parser


def read_text(arguments: Namespace) -> str:
    """The text of `--text` or `--file`."""
    if arguments.file is not None and not arguments.file.is_file():
        raise ValueError(f"--file {arguments.file} does not exist")
    text = arguments.text if arguments.file is None else arguments.file.read_text(encoding="utf-8")
    if not text.strip():
        raise ValueError("--text is empty" if arguments.file is None else f"--file {arguments.file} is empty")
    return text.strip()


def load(arguments: Namespace) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The base model of the checkpoint, which returns its weights, and its tokenizer."""
    # the head of a checkpoint is left out knowingly, which needs no report
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        model = load_whole(AutoModel, arguments.checkpoint, trust_remote_code=True, attn_implementation="eager")
    except OSError as error:
        raise ValueError(
            f"checkpoint {arguments.checkpoint!r} is neither a folder with a model nor on the Hub"
        ) from error
    finally:
        logging.set_verbosity(verbosity)
    drawn = [name for name, family in FAMILIES.items() if family.picture is not None]
    if model.config.model_type not in drawn:
        raise ValueError(
            f"checkpoint {arguments.checkpoint!r} is a {model.config.model_type} model: choose one of the families "
            f"{', '.join(drawn)}"
        )
    name = arguments.tokenizer or arguments.checkpoint
    try:
        tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=True)
    except (OSError, ValueError) as error:
        raise ValueError(f"{name!r} has no tokenizer: name the folder of one with --tokenizer") from error
    return model.eval(), tokenizer


def encode(
    text: str, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, max_tokens: int
) -> tuple[torch.Tensor, str]:
    """Ids (1, L) of as much of the text as the model takes, and a note of what was cut, or an empty one."""
    if max_tokens < 1:
        raise ValueError(f"--max_tokens {max_tokens} must be at least 1")
    limit = min(max_tokens, model.config.max_position_embeddings)
    whole = len(tokenizer(text, verbose=False).input_ids)
    ids = tokenizer(text, truncation=True, max_length=limit, return_tensors="pt").input_ids
    if whole <= limit:
        return ids, ""
    reason = "--max_tokens" if limit == max_tokens else "the longest that the model takes"
    return ids, f"The text has {whole} tokens, and is cut to the first {limit}: {reason}."


def main(args: list[str] | None = None) -> None:
    """Draw the picture, and the page, that the command line asks for."""
    arguments = parser().parse_args(args)
    text = read_text(arguments)
    model, tokenizer = load(arguments)
    ids, note = encode(text, model, tokenizer, arguments.max_tokens)
    picture_of = getattr(pictures, FAMILIES[model.config.model_type].picture)
    picture = chosen_layers(picture_of(model, ids, tokenizer), arguments.layers)
    for path in filter(None, (arguments.output, arguments.html)):
        path.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_bytes(png(draw(picture.rows, picture, picture.title)))
    if arguments.html is not None:
        write_whole(arguments.html, page(picture, text, note))
    for line in filter(
        None, (*in_words(picture), note, picture.caption, *map(str, filter(None, (arguments.output, arguments.html))))
    ):
        print(line)


if __name__ == "__main__":
    main()

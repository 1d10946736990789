"""
Serve causal language models over HTTP by Transformers' own server, which by itself only knows the models that come with
it.

    pip install 'transformers[serving]'
    synkhorn serve my-model --port 8000
    transformers chat my-model http://localhost:8000

Every argument is one of `transformers serve`. Chat needs a chat template: set `tokenizer.chat_template` before saving.
Completions (`/v1/completions`) need none.
"""

import sys

import synkhorn

CLASSES = (synkhorn.SinkhornForCausalLM, synkhorn.SynthesizerForCausalLM)


def main(arguments: list[str] | None = None) -> None:
    # the server looks there for the class that a checkpoint names
    for model_class in CLASSES:
        setattr(sys.modules["transformers"], model_class.__name__, model_class)
    # Transformers' command line is an import that needs the serving packages
    from transformers.cli.transformers import main as transformers_main

    sys.argv = ["transformers", "serve", *(sys.argv[1:] if arguments is None else arguments)]
    transformers_main()


if __name__ == "__main__":
    main()

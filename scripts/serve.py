"""
Serve causal language models over HTTP, by Transformers' own server.

    pip install 'transformers[serving]'
    synkhorn serve my-model --port 8000
    transformers chat my-model http://localhost:8000

Every argument is one of `transformers serve`. Chat needs a chat template: set `tokenizer.chat_template` before saving.
Completions (`/v1/completions`) need none.
"""

import sys

from transformers.utils.import_utils import is_serve_available

import synkhorn


def main(arguments: list[str] | None = None) -> None:
    arguments = sys.argv[1:] if arguments is None else arguments
    if not is_serve_available() and not {"-h", "--help"} & set(arguments):
        raise ModuleNotFoundError(
            "synkhorn serve runs Transformers' server, some of whose packages (fastapi, openai, pydantic, uvicorn) are "
            "not installed: pip install 'transformers[serving]'"
        )
    # the server looks there for the class that a checkpoint names
    for family in synkhorn.FAMILIES.values():
        model_class = family.model_class("ForCausalLM")
        setattr(sys.modules["transformers"], model_class.__name__, model_class)
    # slow to import
    from transformers.cli.transformers import main as transformers_main

    sys.argv = ["transformers", "serve", *arguments]
    transformers_main()


if __name__ == "__main__":
    main()

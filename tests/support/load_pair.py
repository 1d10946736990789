"""
Run in a process of its own, which cannot import `synkhorn`: loads an encoder and a decoder from one folder, prints what
they write after the tokens 2, 3, ..., 19, and saves them again elsewhere.

    python load_pair.py FROM TO
"""

import sys

sys.modules["synkhorn"] = None  # an import of it raises ImportError

import torch  # noqa: E402
from transformers import AutoModelForSeq2SeqLM  # noqa: E402

source, target = sys.argv[1:]
model = AutoModelForSeq2SeqLM.from_pretrained(source, trust_remote_code=True)
print(model.generate(torch.arange(2, 20)[None], max_new_tokens=8).tolist())
model.save_pretrained(target)

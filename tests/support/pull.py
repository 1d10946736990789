"""
Run in a process of its own, which cannot import `synkhorn`, with `HF_ENDPOINT` at the loopback Hub: loads what
`push.py` pushed by name, and saves it so that it no longer needs that name.

    python pull.py FOLDER
"""

import sys

sys.modules["synkhorn"] = None  # an import of it raises ImportError

import transformers  # noqa: E402
from interrupted import interrupted_training  # noqa: E402

folder = sys.argv[1]
assert transformers.AutoConfig.from_pretrained("user/configured", trust_remote_code=True).model_type == "synthesizer"
for name in ("pushed", "saved", "trained", "every_save", "checkpoint"):
    model = transformers.AutoModelForSequenceClassification.from_pretrained(f"user/{name}", trust_remote_code=True)
    transformers.AutoModelForMaskedLM.from_pretrained(f"user/{name}", trust_remote_code=True)
    model.save_pretrained(f"{folder}/{name}")
classify = transformers.pipeline("text-classification", "user/pushed", trust_remote_code=True)
assert classify("fine")[0]["label"] in ("LABEL_0", "LABEL_1")
transformers.AutoModelForSequenceClassification.from_pretrained(
    "user/checkpoint", subfolder="last-checkpoint", trust_remote_code=True
)
tokenizer = transformers.AutoTokenizer.from_pretrained("user/pushed", trust_remote_code=True)
interrupted_training(model, tokenizer, f"{folder}/again", "every_save")
again = transformers.AutoModelForSequenceClassification.from_pretrained("user/again", trust_remote_code=True)
assert type(again).__module__ != type(model).__module__
print("pulled")

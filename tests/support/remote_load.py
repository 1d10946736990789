"""
Run in a process of its own, which cannot import `synkhorn`: loads every checkpoint below a folder with
`trust_remote_code=True`, compares it with what the saving process recorded, and saves it again elsewhere.

    python remote_load.py FROM TO
"""

import sys
from pathlib import Path

sys.modules["synkhorn"] = None  # an import of it raises ImportError

import torch  # noqa: E402
import transformers  # noqa: E402
from safetensors.torch import load_file  # noqa: E402

source, target = map(Path, sys.argv[1:])
for folder in sorted(path.parent for path in source.rglob("config.json")):
    auto, place = folder.name, folder.relative_to(source)
    config = transformers.AutoConfig.from_pretrained(folder, trust_remote_code=True)
    model = getattr(transformers, auto).from_pretrained(folder, trust_remote_code=True).eval()
    assert type(model).__module__.startswith("transformers_modules."), type(model)
    assert type(config).__name__ == type(model.config).__name__
    weights = load_file(folder / "model.safetensors")
    state = model.state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in weights.items())
    recorded = load_file(f"{folder}.safetensors")
    ids, mask = recorded["input_ids"], recorded["attention_mask"]
    outputs = model(input_ids=ids, attention_mask=mask)
    torch.testing.assert_close(outputs[0], recorded["output"], atol=1e-6, rtol=1e-6)
    # any head's checkpoint loads into the base model and into another head
    base = transformers.AutoModel.from_pretrained(folder, trust_remote_code=True)
    assert type(base).__name__ == type(config).__name__.removesuffix("Config") + "Model"
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    assert tokenizer.decode(tokenizer("Grüße, 世界").input_ids, skip_special_tokens=True) == "Grüße, 世界"
    model.save_pretrained(target / place)
    tokenizer.save_pretrained(target / place)
print("loaded", len(list(target.rglob("config.json"))))

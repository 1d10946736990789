"""
Run in a process of its own, which cannot import `synkhorn`: loads `a/model` and `b/model` of each family, checkpoints
with code of different releases, and generates with each by turns; each must use its own code, and save it again.

    python two_releases.py FOLDER
"""

import sys
from pathlib import Path

sys.modules["synkhorn"] = None  # an import of it raises ImportError

import torch  # noqa: E402
from safetensors.torch import load_file  # noqa: E402
from transformers import AutoModelForCausalLM, DynamicCache, StaticCache  # noqa: E402


def load(folder: Path) -> torch.nn.Module:
    return AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True).eval()


def check(model: torch.nn.Module, recorded: dict[str, torch.Tensor]) -> None:
    ids, code = recorded["input_ids"], type(model).__module__.rpartition(".")[0]
    # those that offload need an accelerator
    for kind in (None, "dynamic", "static"):
        generated = model.generate(ids, max_new_tokens=6, do_sample=False, pad_token_id=0, cache_implementation=kind)
        assert torch.equal(generated, recorded["generated"]), kind
    for cache in (
        None,
        DynamicCache(),
        DynamicCache(config=model.config),
        StaticCache(config=model.config, max_cache_len=13),
    ):
        cache = model(ids, past_key_values=cache, use_cache=True).past_key_values
        assert {type(layer).__module__.rpartition(".")[0] for layer in cache.layers} == {code}
        outputs = model(recorded["generated"][:, ids.shape[1] :], past_key_values=cache)
        torch.testing.assert_close(outputs.logits[:, -1], recorded["logits"], atol=1e-5, rtol=1e-5)


for root in Path(sys.argv[1]).iterdir():
    recorded = load_file(root / "recorded.safetensors")
    models = {name: load(root / name / "model") for name in "ab"}
    for name in ("a", "b", "a"):
        check(models[name], recorded)
        models[name].save_pretrained(root / f"again-{name}" / "model")
        saved = {path.name: path.read_text() for path in (root / f"again-{name}" / "model").glob("*.py")}
        assert saved == {path.name: path.read_text() for path in (root / name / "model").glob("*.py")}
        check(load(root / f"again-{name}" / "model"), recorded)
print("checked")

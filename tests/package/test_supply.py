"""What a checkpoint brings with it and what is loaded: no network, no processes, no pickles, nothing from outside."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from checkpoints import family_config
from processes import SUPPORT
from shipped_code import CODE, every_family
from tiny_runs import pretraining, write_texts
from transformers import AutoModelForMaskedLM
from variants import randomize

import synkhorn
from synkhorn.hub_export import export_code, own_imports, source_path
from synkhorn.scripts import pretrain

# what exported code may import, beside the files of its own folder
MODULES = {
    "abc",
    "bisect",
    "collections",
    "copy",
    "dataclasses",
    "difflib",
    "functools",
    "huggingface_hub.dataclasses",
    "itertools",
    "math",
    "torch",
    "transformers",
    "typing",
}
# parts of these that reach the network, processes or files
REACHING = ("hub", "utils.hub", "distributed", "multiprocessing", "cpp_extension", "dynamic_module_utils", "file_utils")
# copies the source files of a model to a folder, as `save_pretrained` of Transformers does by it
ALLOWED = {"transformers.dynamic_module_utils.custom_object_save"}
BUILTINS = {"__import__", "breakpoint", "compile", "eval", "exec", "globals", "input", "open", "vars"}
INSIDES = {"__bases__", "__builtins__", "__code__", "__globals__", "__loader__", "__mro__", "__subclasses__"}
CALLS = {"torch.load", "torch.save", "torch.hub.load", "torch.ops.load_library", "torch.classes.load_library"}
PICKLES = {".bin", ".ckpt", ".joblib", ".npy", ".npz", ".pickle", ".pkl", ".pt", ".pth"}
PICKLERS = {"cloudpickle", "dill", "joblib", "marshal", "pickle", "shelve"}


def imports(tree: ast.AST):
    """Every module, or name of a module, that code imports from elsewhere than its folder."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def calls(tree: ast.AST):
    """What code calls, as it is written there."""
    return (ast.unparse(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call))


def reached(source: str) -> list[str]:
    """What of a module's source could reach the network, a process, a file or another module's insides."""
    tree = ast.parse(source)
    found = []
    for name in imports(tree):
        if name in ALLOWED:
            continue
        package, _, rest = name.partition(".")
        is_known = package in MODULES or any(name.startswith(f"{module}.") for module in MODULES)
        if not is_known or any(part in f".{rest}." for part in (f".{reaching}." for reaching in REACHING)):
            found.append(name)
    found += [call for call in calls(tree) if call in BUILTINS | CALLS]
    return found + [node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute) and node.attr in INSIDES]


@every_family
def test_exported_code_reaches_nothing(family, tmp_path):
    for path in export_code(family, tmp_path):
        assert reached(path.read_text(encoding="utf-8")) == [], path.name


@pytest.mark.parametrize(
    "source",
    [
        "import socket",
        "import os",
        "from os import system",
        "def f():\n    import urllib.request",
        "from huggingface_hub import hf_hub_download",
        "from transformers.utils.hub import cached_file",
        "from torch.utils.cpp_extension import load_inline",
        "import torch.distributed.rpc",
        "exec('import os')",
        "x = torch.load('weights')",
        "().__class__.__subclasses__()",
    ],
)
def test_what_reaches_further_is_found(source):
    assert reached(source)


def test_no_module_of_the_package_reads_or_writes_pickles():
    sources = [*source_path("synkhorn").parent.glob("*.py")]
    for part in ("configuration", "modeling", "scripts", "tokenization"):
        sources += source_path(f"synkhorn.{part}").parent.rglob("*.py")
    assert len(sources) > 50
    for path in sources:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        assert not PICKLERS & {name.split(".")[0] for name in imports(tree)}, path
        assert not {"torch.load", "torch.save", "np.load", "np.save"} & set(calls(tree)), path


def audited(*arguments, **environment) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, str(SUPPORT / "audited.py"), *map(str, arguments)],
        env=os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"} | environment,
        cwd=SUPPORT,
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_checkpoints_load_run_and_save_under_audit(tmp_path):
    for family in synkhorn.FAMILIES:
        config = family_config(family, **synkhorn.token_fields(synkhorn.byte_tokenizer()))
        randomize(getattr(synkhorn, f"{family.title()}ForCausalLM")(config)).save_pretrained(tmp_path / family)
    script = tmp_path / "use.py"
    script.write_text(USE)
    folders = [tmp_path / family for family in synkhorn.FAMILIES]
    process = audited(script, *folders, HF_HOME=str(tmp_path / "home"))
    assert process.stdout == "used\n" * len(folders), process.stderr


def test_the_audit_refuses_what_it_is_to_refuse(tmp_path):
    script = tmp_path / "attack.py"
    script.write_text(ATTACKS)
    process = audited(script)
    assert process.returncode == 0, process.stderr
    refused = [line.split(" ")[1] for line in process.stdout.splitlines()]
    assert refused == ["subprocess.Popen", "os.system", "socket.getaddrinfo", "pickle.find_class"]


# run without the package
USE = """
import sys
sys.modules["synkhorn"] = None
import torch
from transformers import AutoModelForCausalLM
for folder in sys.argv[1:]:
    model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
    ids = torch.arange(5, 10)[None]
    model(ids, labels=ids).loss.backward()
    model.generate(ids, max_new_tokens=4)
    model.save_pretrained(f"{folder}-again")
    print("used")
"""
ATTACKS = """
import os, pickle, socket, subprocess
for attack in (
    lambda: subprocess.run(["true"]),
    lambda: os.system("true"),
    lambda: socket.create_connection(("localhost", 9)),
    lambda: pickle.loads(pickle.dumps(print)),
):
    try:
        attack()
    except PermissionError as error:
        print(error)
"""


# what a Trainer needs to go on, and reads with `weights_only`; nobody but the run that wrote them loads them
STATE = {"optimizer.pt", "rng_state.pth", "scheduler.pt", "training_args.bin"}


def test_a_training_goes_on_and_unpickles_nothing(tmp_path):
    folder = tmp_path / "run"
    arguments = pretraining(write_texts(tmp_path / "texts.txt"), folder, max_steps=4, save_steps=2)
    pretrain.main(arguments)
    process = audited("synkhorn.scripts.pretrain", *arguments, "--resume_from_checkpoint", folder / "checkpoint-2")
    assert process.returncode == 0, process.stderr
    for written, state in ((folder, set()), (folder / "checkpoint-4", STATE)):
        files = {path.name for path in written.iterdir() if path.is_file()}
        assert {name for name in files if Path(name).suffix in PICKLES} == state
        assert {name for name in files if "model" in name and name.endswith(".safetensors")} == {"model.safetensors"}


class Malicious:
    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@every_family
def test_weights_that_are_a_pickle_run_no_code(family, tmp_path):
    model = getattr(synkhorn, f"{family.title()}ForMaskedLM")(family_config(family))
    model.save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    torch.save({"weights": Malicious(tmp_path / "touched")}, tmp_path / "pytorch_model.bin")
    with pytest.raises(Exception, match="weights_only|Weights only"):
        AutoModelForMaskedLM.from_pretrained(tmp_path)
    assert not (tmp_path / "touched").exists()


@every_family
def test_the_exporter_follows_no_link_out_of_the_folder_that_it_writes_to(family, tmp_path):
    outside, folder = tmp_path / "outside.py", tmp_path / "checkpoint"
    outside.write_text("mine")
    folder.mkdir()
    for name in (f"modeling_{family}.py", f".modeling_{family}.py.{os.getpid()}"):
        (folder / name).symlink_to(outside)
    written = export_code(family, folder)
    assert outside.read_text() == "mine"
    assert {path.name for path in folder.iterdir()} == {path.name for path in written} == CODE[family]
    assert not any(path.is_symlink() for path in written)


def test_the_exporter_reads_modules_of_the_package_only(tmp_path, monkeypatch):
    package = tmp_path / "outer" / "inner"
    package.mkdir(parents=True)
    (tmp_path / "secret.py").write_text("key = 1")
    (package / "inside.py").write_text("import secret\nfrom .other import x\nfrom ..upper import y\n")
    (package / "outside.py").write_text("from ...secret import key\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert own_imports("outer.inner.inside") == {"outer.inner.other", "outer.upper"}
    with pytest.raises(ImportError, match="beyond top-level package"):
        own_imports("outer.inner.outside")

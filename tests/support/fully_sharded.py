"""
Run under torchrun on gloo: shards a tiny causal model of each family by FSDP2 as accelerate does, in the units that
`_no_split_modules` names, trains it, and prints how far its losses are from those of the same model left whole.
"""

import copy
from types import SimpleNamespace

import torch
import torch.distributed as dist
from accelerate.utils import FullyShardedDataParallelPlugin
from accelerate.utils.fsdp_utils import fsdp2_prepare_model
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule
from variants import random_ids, tiny_config, tiny_sinkhorn_config

import synkhorn

MODELS = (
    lambda: synkhorn.SynthesizerForCausalLM(tiny_config(["dense", "random", "dot_product"])),
    lambda: synkhorn.SinkhornForCausalLM(tiny_sinkhorn_config(gumbel_noise=False)),
)
dist.init_process_group("gloo")
# what the function reads of an Accelerator, which makes no plugin without an accelerator
accelerator = SimpleNamespace(
    state=SimpleNamespace(
        fsdp_plugin=FullyShardedDataParallelPlugin(fsdp_version=2, auto_wrap_policy="transformer_based_wrap")
    ),
    mixed_precision="no",
    torch_device_mesh=init_device_mesh("cpu", (dist.get_world_size(),), mesh_dim_names=("dp_shard",)),
    parallelism_config=SimpleNamespace(fsdp_dim_names=["dp_shard"]),
)
ids = random_ids(4, 13)
for make in MODELS:
    torch.manual_seed(0)
    whole = make()
    sharded = fsdp2_prepare_model(accelerator, copy.deepcopy(whole))
    units = sum(isinstance(module, FSDPModule) for module in sharded.modules())
    optimizers = [torch.optim.AdamW(model.parameters(), lr=0.01) for model in (whole, sharded)]
    farthest = 0.0
    for _ in range(4):
        losses = []
        for model, optimizer in zip((whole, sharded), optimizers, strict=True):
            # the same rows in each process: the mean over processes is that of one
            loss = model(input_ids=ids, labels=ids).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.item())
        farthest = max(farthest, abs(losses[0] - losses[1]))
    if dist.get_rank() == 0:
        print(f"units {units} farthest {farthest:.2e}")
dist.destroy_process_group()

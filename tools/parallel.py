"""Several processes: a copy of the model in each (DDP), or one model in pieces (FSDP2).

Both are PyTorch's own. Started by ``torchrun``, of one host or many; a copy each is the faster way
while everything fits, pieces are for teachers of 7B and more.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import bf16_compress_hook
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_state_dict,
    set_state_dict,
)
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from edgedb.model.families import program_of

if TYPE_CHECKING:
    from edgedb.model.config import ModelConfig


Model = TypeVar("Model", bound=nn.Module)

CHOICES = ("auto", "ddp", "fsdp")

# Float32 copies while training: teacher; student's weights, gradients and two averages.
_COPIES = 5
_ROOM = 0.5  # of a GPU's memory; activations and logits need the rest


def start(device: torch.device) -> torch.device:
    """Join the processes that torchrun started; returns this one's device."""
    if "WORLD_SIZE" not in os.environ:
        return device
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    torch.distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")
    return device


def rank_and_world() -> tuple[int, int]:
    """This process's number and how many there are; ``0, 1`` without torchrun."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return 0, 1
    return torch.distributed.get_rank(), torch.distributed.get_world_size()


def is_sharded(choice: str, config: ModelConfig, device: torch.device) -> bool:
    """Whether the models are to be cut into pieces."""
    if rank_and_world()[1] == 1 or choice == "ddp":
        return False
    if choice == "fsdp" or device.type != "cuda":
        return choice == "fsdp"
    weights = sum(rows * cols for rows, cols in program_of(config).matrices().values())
    total: int = torch.cuda.get_device_properties(device).total_memory
    return 4 * _COPIES * weights > _ROOM * total


def build(make: Callable[[], Model], device: torch.device | str, *, sharded: bool) -> Model:
    """A model on ``device``; where sharded, its ``layers`` one by one, its weights are undefined
    and never there in full.

    No mixed-precision policy: latents in bfloat16 would choose other planes than the export does.
    """
    if not sharded:
        return make().to(device)
    with torch.device("meta"):
        model = make()
    layers = model.layers
    assert isinstance(layers, nn.ModuleList)
    for layer in layers:
        fully_shard(layer)
    fully_shard(model)
    return model.to_empty(device=device)


def wrap(student: nn.Module, *, bfloat16_gradients: bool = False) -> nn.Module:
    """The module to call in training, so that gradients are averaged over the processes.

    bfloat16_gradients: what copies of a model send each other is rounded, which halves the bytes.
    """
    if rank_and_world()[1] == 1 or isinstance(next(student.parameters()), DTensor):
        return student
    # DAD's weight has mean 1 within each process; everything else is as with one.
    copies = nn.parallel.DistributedDataParallel(student, gradient_as_bucket_view=True)
    if bfloat16_gradients:
        # Under its own name DDP accepts the hook with NCCL alone; gloo sums bfloat16 just as well.
        copies.register_comm_hook(None, lambda group, bucket: bf16_compress_hook(group, bucket))
    return copies


def set_gradient_sync(model: nn.Module, on: bool) -> None:
    """Whether the next backward averages gradients: only the last of a step has to."""
    if isinstance(model, nn.parallel.DistributedDataParallel):
        model.require_backward_grad_sync = on
    elif isinstance(model, FSDPModule):
        model.set_requires_gradient_sync(on)


def reshard(model: nn.Module) -> None:
    """Give up the whole weights that a forward without backward leaves in the outermost module."""
    if isinstance(model, FSDPModule):
        model.reshard()


def local(parameter: Tensor) -> Tensor:
    """The parameter's data, or this process's rows of it where it is sharded."""
    data = parameter.detach()
    return data.to_local() if isinstance(data, DTensor) else data


@torch.no_grad()
def assign(parameter: Tensor, value: Tensor) -> None:
    """Copy a whole tensor, the same in every process, into a parameter that may be sharded."""
    if isinstance(parameter, DTensor):
        value = value.to(parameter.device, parameter.dtype)
        value = distribute_tensor(value, parameter.device_mesh, parameter.placements)
    parameter.copy_(value)


def whole(value: Tensor) -> Tensor:
    """The full tensor of a sharded one."""
    return value.full_tensor() if isinstance(value, DTensor) else value


def mean(values: Tensor) -> Tensor:
    """Average over the processes."""
    _, world = rank_and_world()
    if world > 1:
        torch.distributed.all_reduce(values)
    return values / world


def training_state(student: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Everything an exact resume needs, in full on process 0's CPU. All processes must call it."""
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    model, averages = get_state_dict(student, optimizer, options=options)
    return {"student": model, "optimizer": averages}


def restore(student: nn.Module, optimizer: torch.optim.Optimizer, state: Mapping[str, Any]) -> None:
    """The inverse of ``training_state``, with the same state in every process."""
    set_state_dict(
        student,
        optimizer,
        model_state_dict=state["student"],
        optim_state_dict=state["optimizer"],
        options=StateDictOptions(full_state_dict=True),
    )

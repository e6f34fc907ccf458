"""Where training starts: the untrained student of each start, the one of a ``.dbb``, and a student
that moves to another plan.

``python -m tools.starts TEACHER OUT.safetensors --start weighted --text FILE`` writes one of a
teacher, whose embedding, head, norms and biases it has.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from edgedb.convert.plan import Plan, read_plan
from edgedb.convert.sources import open_source
from edgedb.errors import EdgeDBError
from edgedb.format.packing import dequantize
from edgedb.format.tensors import PairTensor
from edgedb.model.dbb import read_dbb

from .checkpoint import save_student
from .command import Arguments, one_line_errors
from .decoder import Decoder, load_teacher, mean_square_inputs
from .parallel import assign, local, reshard, whole
from .stacks import MAX_PLANES, Stack, latents_within
from .student import STARTS, FDBLinear, empty_student, fit_matrix, make_student, plan_of
from .tables import head_hessians


@torch.no_grad()
def student_of_model(path: Path, teacher: Decoder, *, sharded: bool = False) -> Decoder:
    """A student of the planes, scales, norms and biases that ``path``, a ``.dbb``, has.

    Its latents are the teacher's weights, as far as the planes allow; tables that are not of planes
    become plain ones. Raises ``EdgeDBError`` for another model than the teacher, or for a matrix of
    the layers that is not of planes.
    """
    file = read_dbb(path)
    if file.config != teacher.config:
        raise EdgeDBError(f"{path}: is another model than the teacher")
    plan = {name: t.planes for name, t in file.linears.items() if isinstance(t, PairTensor)}
    student = empty_student(file.config, teacher.device, plan, sharded=sharded)
    for name, vector in student.vectors():
        assign(vector, torch.from_numpy(file.vectors[name].copy()))
    weights = dict(teacher.matrices()) | teacher.tables()
    for name, module in (*student.tables().items(), *student.matrices()):
        stored, theirs = file.linears[name], weights[name]
        if isinstance(module, torch.Tensor):
            assign(module, torch.from_numpy(dequantize(stored)))
            continue
        if not isinstance(stored, PairTensor):
            raise EdgeDBError(f"{path}: {name} is not of planes: no student starts from it")
        plain = theirs if isinstance(theirs, torch.Tensor) else theirs.weight
        latent, scales = latents_within(whole(plain.detach()), stored)
        if isinstance(module, Stack):
            module.fill(latent, scales)
        else:
            assert isinstance(module, FDBLinear)
            module.fill(latent, scales[..., :1], scales[..., 1:])
    return student


@torch.no_grad()
def moved(student: Decoder, plan: Plan, ids: Tensor, *, sharded: bool = False) -> Decoder:
    """A student equal to ``student`` but for matrices that ``plan`` gives another number of planes.

    These keep their latents, to which the planes are fitted for the inputs that the student has on
    ``ids [windows, tokens]``. ``sharded``: as the student is.
    """
    stored = plan_of(student)
    changed = {name for name, planes in plan.items() if stored.get(name) != planes}
    if not changed:
        return student
    from edgedb.convert.fdb import fit  # numba, which is not everywhere where students train

    tables = changed & student.tables().keys()
    hessians = head_hessians(student, ids) if tables else None
    importance = mean_square_inputs(student, ids) if changed - tables else {}
    reshard(student)
    out = empty_student(student.config, student.device, stored | plan, sharded=sharded)
    for (_, mine), (_, theirs) in zip(out.vectors(), student.vectors(), strict=True):
        local(mine).copy_(local(theirs))
    old = dict(student.matrices()) | student.tables()
    for name, module in (dict(out.matrices()) | out.tables()).items():
        if name not in changed:
            for mine, theirs in zip(_parameters(module), _parameters(old[name]), strict=True):
                local(mine).copy_(local(theirs))
            continue
        goal = _latents(old[name])
        if name in tables:
            assert isinstance(module, Stack)
            goal = whole(goal).float()
            module.load(goal, fit(goal.cpu().numpy(), module.planes, hessians=hessians).tensor)
        else:
            fit_matrix(module, goal, importance[name])
    return out


def _parameters(module: nn.Module | nn.Parameter) -> list[nn.Parameter]:
    return [module] if isinstance(module, nn.Parameter) else list(module.parameters())


def _latents(module: nn.Module | nn.Parameter) -> Tensor:
    """The latent matrix ``[rows, cols]``, or the plain one, sharded where the module is."""
    if isinstance(module, nn.Parameter):
        return module.detach()
    assert isinstance(module, FDBLinear | Stack)
    return module.latent.detach().flatten(1)[:, : module.cols]


@one_line_errors
def main() -> None:
    """``python -m tools.starts TEACHER OUT``."""
    parser = Arguments(prog="python -m tools.starts", description="Write an untrained student.")
    parser.add_argument("teacher", help="Hugging Face directory or GGUF file")
    parser.add_argument("out", type=Path)
    parser.add_argument("--start", choices=STARTS, default="weighted")
    parser.add_argument("--pairs", default="", metavar="PLAN", help="as in tools.distill")
    parser.add_argument("--text", type=Path, help="UTF-8 text, for the activations' energy")
    parser.add_argument("--sequences", type=int, default=32)
    parser.add_argument("--length", type=int, default=256, help="tokens of a sequence")
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    from edgedb.convert.calibrate import from_text

    source = open_source(args.teacher)
    teacher = load_teacher(source, args.device)
    plan = read_plan(args.pairs, source.config, MAX_PLANES)
    importance = ids = record = None
    if args.start == "weighted" or plan.keys() & teacher.tables().keys():
        if args.text is None:
            raise EdgeDBError("the weighted start, and tables of planes, need --text FILE")
        found = from_text(args.text, source.tokenizer_spec, args.sequences, args.length)
        ids = torch.from_numpy(found.ids.astype("int64")).to(args.device)
        importance, record = mean_square_inputs(teacher, ids), found.record
    student = make_student(teacher, args.start, importance, plan)
    if ids is not None:
        student = moved(student, plan, ids)
    save_student(
        args.out,
        student,
        step=0,
        provenance={"teacher": source.fingerprint(), "start": args.start, "text": record},
        tokenizer=source.tokenizer_spec,
    )


if __name__ == "__main__":
    main()

"""Where training starts: the untrained student of each start as a file, and that of a ``.dbb``.

``python -m tools.starts TEACHER OUT.safetensors --start weighted --text FILE``. The embedding, the
head, the norms and the biases are the teacher's.
"""

from __future__ import annotations

from pathlib import Path

import torch

from edgedb.convert.plan import read_plan
from edgedb.convert.sources import open_source
from edgedb.errors import EdgeDBError
from edgedb.format.packing import dequantize
from edgedb.format.tensors import PairTensor
from edgedb.model.dbb import read_dbb

from .checkpoint import save_student
from .command import Arguments, one_line_errors
from .decoder import Decoder, load_teacher, mean_square_inputs
from .parallel import assign, whole
from .stacks import MAX_PAIRS, Stack, latents_within
from .student import STARTS, FDBLinear, empty_student, make_student


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
    plan = {name: t.pairs for name, t in file.linears.items() if isinstance(t, PairTensor)}
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
    importance = record = None
    if args.start == "weighted":
        if args.text is None:
            raise EdgeDBError("the weighted start needs --text FILE to see activations of")
        found = from_text(args.text, source.tokenizer_spec, args.sequences, args.length)
        ids = torch.from_numpy(found.ids.astype("int64")).to(args.device)
        importance, record = mean_square_inputs(teacher, ids), found.record
    plan = read_plan(args.pairs, source.config, MAX_PAIRS)
    student = make_student(teacher, args.start, importance, plan)
    save_student(
        args.out,
        student,
        step=0,
        provenance={"teacher": source.fingerprint(), "start": args.start, "text": record},
        tokenizer=source.tokenizer_spec,
    )


if __name__ == "__main__":
    main()

"""The untrained student of each start, as a file: the baselines that training improves on.

``python -m tools.starts TEACHER OUT.safetensors --start weighted --text FILE``. The embedding, the
head and the norms are the teacher's.
"""

from __future__ import annotations

from pathlib import Path

import torch

from edgedb.errors import EdgeDBError

from .calibrate import from_text
from .checkpoint import save_student
from .command import Arguments, one_line_errors
from .decoder import load_teacher, mean_square_inputs
from .sources import open_source
from .student import STARTS, make_student


@one_line_errors
def main() -> None:
    """``python -m tools.starts TEACHER OUT``."""
    parser = Arguments(prog="python -m tools.starts", description="Write an untrained student.")
    parser.add_argument("teacher", help="Hugging Face directory or GGUF file")
    parser.add_argument("out", type=Path)
    parser.add_argument("--start", choices=STARTS, default="weighted")
    parser.add_argument("--text", type=Path, help="UTF-8 text, for the activations' energy")
    parser.add_argument("--sequences", type=int, default=32)
    parser.add_argument("--length", type=int, default=256, help="tokens of a sequence")
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    source = open_source(args.teacher)
    teacher = load_teacher(source, args.device)
    importance = record = None
    if args.start == "weighted":
        if args.text is None:
            raise EdgeDBError("the weighted start needs --text FILE to see activations of")
        found = from_text(args.text, source.tokenizer_spec, args.sequences, args.length)
        ids = torch.from_numpy(found.ids.astype("int64")).to(args.device)
        importance, record = mean_square_inputs(teacher, ids), found.record
    student = make_student(teacher, args.start, importance)
    save_student(
        args.out,
        student,
        step=0,
        provenance={"teacher": source.fingerprint(), "start": args.start, "text": record},
        tokenizer=source.tokenizer_spec,
    )


if __name__ == "__main__":
    main()

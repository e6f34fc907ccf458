"""What Hugging Face transformers makes of chat templates: the oracle of ``test_template.py``.

By hand, where transformers is installed, which no test requires:

    python tests/template_oracle.py            # writes tests/golden/templates.json anew
    python tests/template_oracle.py FOLDER...  # compares real templates, which are not ours to copy

A folder may hold ``.jinja`` files and ``tokenizer_config.json``, at any depth; the templates of the
models in this source tree are compared too.
"""

from __future__ import annotations

import json
import re
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from template_cases import CASES, SPECIAL_TOKENS, Case, conversations

from edgedb import TemplateError
from edgedb.model.dbb import read_dbb
from edgedb.text.spec import TokenizerSpec
from edgedb.text.template import render

HERE = Path(__file__).resolve().parent
GOLDEN = HERE / "golden" / "templates.json"
MODELS = HERE.parent / "models"


def by_transformers(case: Case) -> str | None:
    """The text of a case, None if transformers raises an error."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE()), **SPECIAL_TOKENS)
    tokenizer.chat_template = case.template
    options = {
        "add_generation_prompt": not case.options.get("continue_final_message"),
        **case.options,
    }
    variables = options.pop("chat_template_kwargs", {})
    try:
        return str(
            tokenizer.apply_chat_template(case.messages, tokenize=False, **options, **variables)
        )
    except Exception:
        return None


def by_edgedb(case: Case) -> str | None:
    """The same here."""
    spec = TokenizerSpec(
        "tokenizers", b"", chat_template=case.template, special_tokens=SPECIAL_TOKENS
    )
    try:
        return str(render(spec, case.messages, **case.options))
    except TemplateError:
        return None


def real_templates(folders: list[Path]) -> Iterator[tuple[str, str]]:
    """Names and texts of the templates under ``folders`` and of the models at hand."""
    for path in sorted(MODELS.glob("*.dbb")):
        yield path.name, str(read_dbb(path).tokenizer.chat_template)
    for folder in folders:
        for path in sorted(folder.rglob("*.jinja")):
            yield path.name, path.read_text(encoding="utf-8")
        for path in sorted(folder.rglob("tokenizer_config.json")):
            found = json.loads(path.read_text(encoding="utf-8")).get("chat_template") or []
            if isinstance(found, str):
                found = [{"name": "default", "template": found}]
            for named in found:
                yield f"{path.parent.parent.name} {named['name']}", named["template"]


def _reads_parts(case: Case, text: str) -> bool:
    """Whether ``text`` has the parts of messages, and not as a list in Python's or JSON's form."""
    lists = [m["content"] for m in case.messages if isinstance(m.get("content"), list)]
    texts = [part["text"].strip() for parts in lists for part in parts]
    return not re.search(r"""['"]text['"]: ?['"]""", text) and all(t in text for t in texts)


def differences(folders: list[Path]) -> tuple[Counter[str], list[str]]:
    """Counts of what came out, and the cases that transformers renders in another way."""
    counts: Counter[str] = Counter()
    wrong: list[str] = []
    seen: set[str] = set()
    for name, template in real_templates(folders):
        if template in seen:
            continue
        seen.add(template)
        for case in conversations(template):
            expected, text = by_transformers(case), by_edgedb(case)
            if expected is None:
                counts["refused by both" if text is None else "rendered here only"] += 1
            elif text == expected:
                counts["equal"] += 1
            elif not _reads_parts(case, expected):
                counts["parts lost there, joined here"] += 1
            else:
                counts["different"] += 1
                wrong.append(f"{name}, {case.name}")
    counts["templates"] = len(seen)
    return counts, wrong


def main(arguments: list[str]) -> None:
    if arguments:
        counts, wrong = differences([Path(argument) for argument in arguments])
        print(*(f"{n:6,} {what}" for what, n in sorted(counts.items())), *wrong, sep="\n")
        return
    texts = {case.name: by_transformers(case) for case in CASES}
    GOLDEN.write_text(json.dumps(texts, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print(f"{len(texts)} cases, {sum(text is None for text in texts.values())} of them refused")


if __name__ == "__main__":
    main(sys.argv[1:])

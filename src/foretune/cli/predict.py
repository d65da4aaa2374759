"""``foretune predict``: answers of any adapter, run or model to the prompts of a file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from foretune.errors import UsageError


def predict(
    system: Annotated[str, typer.Argument(help="A run, adapter or model folder, a hub id or a model's name.")],
    file: Annotated[Path, typer.Argument(help="Prompts: JSONL, JSON, CSV, TSV or Parquet; .txt has one a line.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Where to write JSONL: prompt and answer.")],
    prompt_column: Annotated[str, typer.Option(help="The column that holds the prompt.")] = "prompt",
    base: Annotated[Path | None, typer.Option(help="The base model's folder, if not found.")] = None,
    untouched: Annotated[bool, typer.Option("--base-only", help="Switch the adapter off.")] = False,
    answer_tokens: Annotated[int, typer.Option(min=1, help="Longest generated answer.")] = 128,
    context: Annotated[int, typer.Option(min=2, help="Longest row in tokens.")] = 2048,
    plain: Annotated[bool, typer.Option("--plain", help="Without the chat template.")] = False,
) -> None:
    """Answer every prompt of a file with a trained system."""
    from foretune.data.columns import Columns
    from foretune.data.example import Example, Turn
    from foretune.data.read import read
    from foretune.files import canonical_json, write_text
    from foretune.fit.systems import Settings, predict_rows

    if output.resolve() == file.resolve():
        raise UsageError("the answers would replace the prompts.", remedy="Choose another --output.")
    text = file.suffix.lower() == ".txt"
    found = read(file, columns=Columns() if text else Columns(text=prompt_column))
    prompts = [row.turns[0].content for row in found.examples]
    asked = [
        Example((Turn("user", prompt), Turn("assistant", "")), targets=(1,), place=row.place)
        for prompt, row in zip(prompts, found.examples, strict=True)
    ]
    settings = Settings(max_answer_tokens=answer_tokens, context_tokens=context, plain_template=plain)
    answers = predict_rows(system, asked, base=base, untouched=untouched, settings=settings)
    pairs = zip(prompts, answers, strict=True)
    write_text(output, "".join(canonical_json({"prompt": prompt, "answer": text}) + "\n" for prompt, text in pairs))
    typer.echo(f"{len(answers)} answers in {output}")

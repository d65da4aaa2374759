"""The model card is valid for the hub, says the verdict, and cannot be broken by hostile text."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from huggingface_hub import ModelCard

from foretune import files
from foretune.report.card import render_card, write_card
from foretune.report.commands import usage_commands
from foretune.report.record import ExportInfo, RunRecord, Setting
from foretune.report.text import summary
from foretune.report.wording import verdict


def test_metadata_is_valid_and_complete(record: RunRecord) -> None:
    card = ModelCard(render_card(record))
    data = card.data
    assert data.base_model == "SmolLM2-135M-Instruct" and data.library_name == "peft" and data.license == "apache-2.0"
    assert data.pipeline_tag == "text-generation" and data.datasets == ["terms"] and data.language == ["en"]
    results = {(r.metric_type, r.metric_value, r.dataset_split) for r in data.eval_results or []}
    assert results == {("exact_match", 0.62, "test"), ("token_f1", 0.71, "test"), ("loss", 1.46, "test")}


def test_body_says_verdict_limits_and_commands(record: RunRecord) -> None:
    card = render_card(record)
    body = card.split("---", 2)[2]
    assert body.index("exact match 62 %") < body.index("## Comparison")
    assert "One seed, these rows only" in body
    assert "--enable-lora --lora-modules terms=adapter" in body and "AutoPeftModelForCausalLM" in body
    assert "--max-lora-rank 32" in body  # vLLM takes 16 at most unless told
    assert "foretune chat adapter" in body
    assert body.count("\n| `") == len(record.settings)
    assert "How rows were written in training:\n\n- the template writes the date" in body
    assert record.data.fingerprint in body and record.data.sha256 in body


def test_unknown_license_is_left_out_and_strange_ones_become_other(record: RunRecord) -> None:
    none = ModelCard(render_card(replace(record, model=replace(record.model, license=None)))).data
    assert none.license is None
    strange = ModelCard(render_card(replace(record, model=replace(record.model, license="Gemma Terms (v2)")))).data
    assert strange.license == "other" and strange.license_name == "gemma-terms-v2"


def test_hostile_text_breaks_neither_table_nor_metadata(record: RunRecord) -> None:
    evil = "a | b\n---\nlicense: mit `` <script>alert(1)</script> [x](http://y)"
    hostile = replace(
        record,
        data=replace(record.data, name=evil, split_report=(evil,), template=(evil,)),
        model=replace(record.model, source=evil),
        settings=(Setting(evil, evil, "user", evil),),
        warnings=(evil,),
    )
    text = render_card(hostile)
    card = ModelCard(text)
    assert card.data.license == "apache-2.0" and card.data.base_model == evil
    row = next(line for line in text.splitlines() if line.startswith("| ```a ¦ b"))
    assert row.replace("\\|", "").count("|") == 5
    outside_code = text.split("## Limitations")[1].split("##")[0]
    assert "<script>" not in outside_code and "[x](" not in outside_code


def test_merged_card_is_for_transformers(record: RunRecord) -> None:
    merged = replace(record, exports=(ExportInfo("merged", "my model", True),))
    card = render_card(merged, adapter=False)
    assert ModelCard(card).data.library_name == "transformers"
    assert "vllm serve 'my model'" in card and 'from_pretrained("my model")' in card and "peft" not in card


def test_what_servers_cannot_load_is_merged_first(record: RunRecord) -> None:
    trials = tuple(replace(trial, config={"method.name": "oft"}) for trial in record.trials)
    card = render_card(replace(record, trials=trials))
    assert "vllm" not in card and "foretune export . --merge" in card


def test_written_card(record: RunRecord, tmp_path: Path) -> None:
    assert write_card(tmp_path, record).read_text() == render_card(record)


def test_card_of_a_finished_folder_enters_its_manifest(record: RunRecord, tmp_path: Path) -> None:
    with files.atomic_folder(tmp_path / "adapter") as aside:
        (aside / "README.md").write_text("an older card")
        (aside / "weights").write_text("w")
    write_card(tmp_path / "adapter", record)
    assert files.folder_damage(tmp_path / "adapter") is None
    (tmp_path / "adapter" / "README.md").write_text("edited")
    assert files.folder_damage(tmp_path / "adapter") == "README.md is damaged"


def test_terminal_summary_is_aligned_and_safe(record: RunRecord) -> None:
    text = summary(replace(record, warnings=("\x1b[2J[bold]x[/bold]",)), Path("runs/terms"))
    assert text.startswith(verdict(record)) and "\x1b" not in text and "[bold]x[/bold]" in text
    lines = text.splitlines()
    rule = next(i for i, line in enumerate(lines) if line.startswith("──"))
    assert lines[rule + 4].startswith("fine-tuned            62 ± 4 %")
    assert "runs/terms/adapter (answers as evaluated)" in text


def test_python_loads_what_peft_does_not_know_and_heads_of_any_size(record: RunRecord) -> None:
    labels = replace(record.data, labels=("a", "b", "c"))
    ours = tuple(replace(trial, config={"method": "mora"}) for trial in record.trials)
    encoder = replace(record, model=replace(record.model, kind="encoder"), data=labels, trials=ours)
    code = dict(usage_commands(encoder))["Python, with peft"]
    assert code.startswith("import foretune  # tells peft of mora\nfrom peft import")
    assert 'AutoPeftModelForSequenceClassification.from_pretrained("adapter", num_labels=3)' in code
    number = replace(encoder, data=replace(labels, labels=(), task="regression"))
    assert "num_labels=1)" in dict(usage_commands(number))["Python, with peft"]
    plain = dict(usage_commands(record))["Python, with peft"]
    assert "import foretune" not in plain and "num_labels" not in plain

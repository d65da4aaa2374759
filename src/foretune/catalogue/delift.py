"""DELIFT's two selectors as declarations: settings, work and source; `foretune.selection.delift` has the code."""

from __future__ import annotations

from foretune.catalogue.selection import Pool, SelectorDeclaration, Work
from foretune.catalogue.selector_parts import MODEL_WORD, Fields, embedder, embeddings
from foretune.catalogue.space import Choice, Number, Space, Text


def _stage(name: str) -> tuple[Choice | Number, ...]:
    """The settings of facility location over what is known: a target, previous data."""
    objectives = ("auto", "fl", "flmi", "flcg", "fl1mi", "fl2mi", "flcmi")
    about = "What is maximised; auto follows from target and previous rows."
    return (
        Choice(f"{name}.objective", objectives, "auto", about=about),
        Number(f"{name}.eta", 0.0, 100.0, 1.0, about="How much the target counts (η)."),
        Number(f"{name}.nu", 0.0, 100.0, 1.0, about="How much previous rows count (ν)."),
    )


def _utilities(pool: Pool, fields: Fields) -> Work:
    """Rows asked × examples shown; the example itself goes through the model once."""
    asked = min(pool.rows, int(fields["rows"]) or pool.rows)
    shown = pool.rows + pool.previous_rows
    near = int(fields["neighbours"])
    pairs = asked * (min(near, shown) if near else shown) + pool.target_rows * pool.rows
    work = Work(
        scored_tokens=(pairs + shown + pool.rows) * pool.row_tokens,
        comparisons=4.0 * asked * pool.rows,
        memory_bytes=4.0 * asked * pool.rows,
        disk_bytes=33.0 * pairs,
    )
    return work + embeddings(pool, fields) if near else work


DELIFT = SelectorDeclaration(
    name="delift",
    about="Rows that, shown in the prompt, help the model most with all others, a target, or what earlier data lack.",
    family="pairwise",
    space=Space(
        (
            *_stage("delift"),
            Number("delift.rows", 0, 10_000_000, 64, whole=True, about="Rows asked behind every example; 0 for all."),
            Number("delift.neighbours", 0, 10_000_000, 0, whole=True, about="Examples asked for each row; 0 for all."),
            Text("delift.proxy", "self", MODEL_WORD, about="Model that measures: self, or a smaller one by name."),
            Choice("delift.kernel", ("euclid", "log", "exponential"), "euclid", about="What utility is the change of."),
            Choice("delift.shape", ("clipped", "minmax"), "clipped", about="Cut at 0, or scaled to 0 … 1."),
            Choice("delift.self_pairs", ("drop", "keep"), "drop", about="Whether a row may help itself."),
            Choice("delift.template", ("auto", "chat", "plain", "delift-ref"), "auto", about="How prompts look."),
        )
    ),
    work=_utilities,
    cost="m forward passes a row behind a shared example: O(m·n·L)",
    source="Agarwal et al. 2024, DELIFT (2411.04425)",
    uses_previous=True,
)
DELIFT_SE = SelectorDeclaration(
    name="delift-se",
    about="As delift, with the cosine of embeddings for how much one row helps another.",
    family="embedding",
    space=Space((*_stage("delift-se"), *embedder("delift-se").parameters)),
    work=lambda pool, fields: (
        embeddings(pool, fields)
        + Work(
            scored_tokens=(pool.target_rows + pool.previous_rows) * pool.row_tokens,
            comparisons=float(pool.rows) ** 2 * (pool.width + 4),
            memory_bytes=4.0 * float(min(pool.rows, 20_000)) ** 2,
        )
    ),
    cost="1 forward pass a row: O(n·L), and O(n²·d)",
    source="Agarwal et al. 2024, DELIFT (SE) (2411.04425)",
    uses_previous=True,
)

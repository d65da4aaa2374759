"""The literal registry of selectors: what each does, its settings, what it costs, where it comes from.

`foretune.selection` holds the code of each; `catalogue.selection` the language that names them. Costs count rows n,
kept rows k, target rows m, mean row length L and the model's width d.
"""

from __future__ import annotations

from foretune.catalogue.delift import DELIFT, DELIFT_SE
from foretune.catalogue.selection import Pool, SelectorDeclaration, Work
from foretune.catalogue.selector_parts import MODEL_WORD, Fields, embedder, embeddings
from foretune.catalogue.space import Choice, Number, Space, Text


def _nothing(pool: Pool, fields: Fields) -> Work:
    return Work()


def _losses_with_and_without(pool: Pool, fields: Fields) -> Work:
    return Work(scored_tokens=pool.rows * (pool.row_tokens + pool.answer_tokens + 1), disk_bytes=32 * pool.rows)


def _with_a_shot(pool: Pool, fields: Fields) -> Work:
    """The row alone, and the row behind another one."""
    return Work(scored_tokens=3 * pool.rows * pool.row_tokens, disk_bytes=100 * pool.rows)


def _all_pairs(pool: Pool) -> Work:
    return Work(comparisons=float(pool.rows) ** 2 * pool.width)


def _in_rounds(pool: Pool, fields: Fields) -> Work:
    """Round r trains on r / R of the wanted rows, then looks at all."""
    rounds = int(fields["rounds"])
    trained = float(fields["epochs"]) * pool.count * (rounds - 1) / 2
    return Work(
        scored_tokens=(rounds - 1) * pool.rows * pool.row_tokens,
        trained_tokens=trained * pool.row_tokens,
        memory_bytes=8.0 * max(pool.width, 512) * pool.rows,
    )


def _rounds(name: str) -> tuple[Number, ...]:
    return (
        Number(f"{name}.rounds", 2, 50, 4, whole=True, about="Rounds, the random first rows included."),
        Number(f"{name}.epochs", 0.1, 20, 1.0, log=True, about="Epochs of training before rows are added."),
        Number(f"{name}.learning_rate", 1e-6, 1e-1, 2e-4, log=True, about="Learning rate of that training."),
    )


RANDOM = SelectorDeclaration(
    name="random",
    draws=True,
    about="Rows drawn uniformly: what every selector has to beat.",
    family="baseline",
    space=Space(),
    work=_nothing,
    cost="nothing",
    source="the control of every study",
    needs_model=False,
)
LONGEST = SelectorDeclaration(
    name="longest",
    about="The rows with the longest answers.",
    family="baseline",
    space=Space((Choice("longest.unit", ("tokens", "characters"), "tokens", about="What length counts."),)),
    work=_nothing,
    cost="tokenising",
    source="Zhao et al. 2024, 'Long Is More for Alignment' (2402.04833)",
    needs_model=False,
)
IFD = SelectorDeclaration(
    name="ifd",
    about="Instruction-following difficulty: rows whose question helps least with the answer, but does help.",
    family="pointwise",
    space=Space(
        (
            Choice(
                "ifd.ratio", ("perplexity", "loss"), "perplexity", about="Ratio of perplexities, or of mean losses."
            ),
            Text("ifd.scorer", "self", MODEL_WORD, about="Model that scores: self, or a smaller one by name."),
        )
    ),
    work=_losses_with_and_without,
    cost="2 forward passes over every answer: O(n·L)",
    source="Li et al. 2023, 'From Quantity to Quality' (2308.12032); small scorers: Superfiltering (2402.00530)",
)

SELF_UTILITY = SelectorDeclaration(
    name="self-utility",
    about="Rows whose own answer, shown in the prompt, brings the model closest to it.",
    family="pointwise",
    space=Space(),
    work=_with_a_shot,
    cost="2 forward passes a row, one with an example: O(n·L)",
    source="Agarwal et al. 2024, DELIFT (2411.04425), i = j alone",
)
MIWV = SelectorDeclaration(
    name="miwv",
    about="Rows that the most similar row, shown in the prompt, helps least.",
    family="pointwise",
    space=embedder("miwv"),
    work=lambda pool, fields: embeddings(pool, fields) + _with_a_shot(pool, fields) + _all_pairs(pool),
    cost="3 forward passes a row: O(n·L), and O(n²·d) for neighbours",
    source="Model Instruction Weakness Value (2511.07074)",
)
SELECT_IT = SelectorDeclaration(
    name="select-it",
    about="The model rates each row from 1 to 5 under five prompts; certainty and agreement count.",
    family="pointwise",
    space=Space(
        (
            Number("select-it.alpha", 0.0, 10.0, 0.2, about="How much disagreement between prompts is discounted."),
            Text("select-it.second", "none", r"none|[A-Za-z0-9._/-]+", about="A second model that rates along."),
        )
    ),
    work=lambda pool, fields: Work(
        scored_tokens=5 * pool.rows * (pool.row_tokens + 60) * (2 if fields["second"] != "none" else 1),
        disk_bytes=200 * pool.rows,
    ),
    cost="5 forward passes a row: O(n·L)",
    source="Liu et al. 2024, SelectIT (2402.16705)",
)
RDS_PLUS = SelectorDeclaration(
    name="rds-plus",
    about="Rows most similar to the target rows, which take turns.",
    family="embedding",
    space=Space(
        (
            *embedder("rds-plus").parameters,
            Choice("rds-plus.pooling", ("weighted", "mean", "last"), "weighted", about="How tokens make one vector."),
        )
    ),
    work=lambda pool, fields: (
        embeddings(pool, fields)
        + Work(scored_tokens=pool.target_rows * pool.row_tokens, comparisons=pool.rows * pool.target_rows * pool.width)
    ),
    cost="1 forward pass a row: O(n·L), and O(n·m·d)",
    source="Ivison et al. 2025 (2503.01807)",
    needs_target=True,
)
K_CENTRE = SelectorDeclaration(
    name="k-centre",
    about="Every next row is the one farthest from all before: no region of the data is left out.",
    family="embedding",
    space=embedder("k-centre"),
    work=lambda pool, fields: embeddings(pool, fields) + Work(comparisons=pool.rows * pool.count * pool.width),
    cost="1 forward pass a row: O(n·L), and O(n·k·d)",
    source="Gonzalez 1985; Sener & Savarese 2018 (1708.00489)",
    uses_previous=True,
)
HERDING = SelectorDeclaration(
    name="herding",
    about="Rows whose mean embedding follows the mean of all.",
    family="embedding",
    space=embedder("herding"),
    work=lambda pool, fields: embeddings(pool, fields) + Work(comparisons=pool.rows * pool.count * pool.width),
    cost="1 forward pass a row: O(n·L), and O(n·k·d)",
    source="Welling 2009; as the core of IDM (2307.09742)",
)
DEFT_UCS = SelectorDeclaration(
    name="deft-ucs",
    draws=True,
    about="Of every cluster, rows nearest to and farthest from its centre.",
    family="embedding",
    space=Space(
        (
            *embedder("deft-ucs").parameters,
            Number("deft-ucs.clusters", 1, 1000, 7, log=True, whole=True, about="Clusters of k-means."),
            Number("deft-ucs.near_share", 0.0, 1.0, 0.5, about="Share of a cluster's rows taken near its centre."),
        )
    ),
    work=lambda pool, fields: (
        embeddings(pool, fields) + Work(comparisons=400.0 * pool.rows * float(fields["clusters"]) * pool.width)
    ),
    cost="1 forward pass a row: O(n·L), and k-means",
    source="Das & Khetan 2023, DEFT-UCS (2310.16776)",
    nested=False,
)
DEITA = SelectorDeclaration(
    name="deita",
    about="By score, passing over rows that are like one already chosen.",
    family="embedding",
    space=Space(
        (
            *embedder("deita").parameters,
            Choice("deita.score", ("ifd", "longest"), "ifd", about="What stands in for quality times complexity."),
            Number("deita.threshold", -1.0, 1.0, 0.9, about="Rows of a cosine below this are unlike."),
        )
    ),
    work=lambda pool, fields: (
        embeddings(pool, fields)
        + (_losses_with_and_without(pool, fields) if fields["score"] == "ifd" else Work())
        + Work(comparisons=pool.rows * pool.count * pool.width)
    ),
    cost="1 to 3 forward passes a row: O(n·L), and O(n·k·d)",
    source="Liu et al. 2023, the filter of DEITA (2312.15685)",
    nested=False,
)
LESS = SelectorDeclaration(
    name="less",
    about="Rows whose training step would most lower the loss on the target rows.",
    family="gradient",
    space=Space(
        (
            Number("less.warmup_share", 0.0, 1.0, 0.05, unit="share", about="Share of the rows for the warm-up."),
            Number("less.warmup_epochs", 1, 20, 4, whole=True, about="Epochs of the warm-up; a checkpoint after each."),
            Number("less.learning_rate", 1e-6, 1e-1, 2e-4, log=True, about="Peak learning rate of the warm-up."),
            Number("less.rank", 1, 256, 8, log=True, whole=True, about="Rank of the LoRA whose gradients count."),
            Choice("less.targets", ("all-linear", "attention", "mlp"), "attention", about="Layers that carry it."),
            Number("less.width", 16, 65536, 8192, log=True, whole=True, about="Numbers kept of a row's gradient."),
            Choice("less.projection", ("sparse", "dense"), "sparse", about="Random projection; dense is the paper's."),
        )
    ),
    work=lambda pool, fields: Work(
        trained_tokens=float(fields["warmup_epochs"])
        * (pool.rows * (1 + float(fields["warmup_share"])) + pool.target_rows)
        * pool.row_tokens,
        comparisons=float(fields["warmup_epochs"]) * pool.rows * pool.target_rows * float(fields["width"]),
        memory_bytes=8.0 * pool.rows * float(fields["width"]),
        disk_bytes=2.0 * float(fields["warmup_epochs"]) * pool.rows * float(fields["width"]),
    ),
    cost="a backward pass a row and checkpoint: O(N·n·L)",
    source="Xia et al. 2024, LESS (2402.04333)",
    needs_target=True,
    seeded=True,
)
DIVERSE_EVOL = SelectorDeclaration(
    name="diverse-evol",
    about="In rounds: rows farthest from those chosen, in the embeddings of the model trained on them.",
    family="iterative",
    space=Space(_rounds("diverse-evol")),
    work=_in_rounds,
    cost="a training on the rows so far and a pass over all, each round",
    source="Wu et al. 2023, DiverseEvol (2311.08182)",
    nested=False,
    moment="either",
    seeded=True,
)
ACTIVE_LEARNING = SelectorDeclaration(
    name="active-learning",
    about="In rounds: rows of which the model trained so far is least sure, or that are farthest from those chosen.",
    family="iterative",
    space=Space(
        (
            *_rounds("active-learning"),
            Choice("active-learning.score", ("entropy", "margin", "distance"), "entropy", about="What is asked for."),
        )
    ),
    work=_in_rounds,
    cost="a training on the rows so far and a pass over all, each round",
    source="active learning with adapters (2406.09296)",
    nested=False,
    moment="either",
    seeded=True,
)
RS2 = SelectorDeclaration(
    name="rs2",
    draws=True,
    about="A fresh random share of the rows every epoch.",
    family="stream",
    space=Space(),
    work=_nothing,
    cost="nothing",
    source="Okanovic et al. 2024, Repeated Random Sampling (2305.18424)",
    needs_model=False,
    moment="during",
)
IGF = SelectorDeclaration(
    name="igf",
    about="Skips rows, at first, whose training step is predicted not to help an objective set.",
    family="stream",
    space=Space(
        (
            Number("igf.probes", 2, 10_000, 64, log=True, whole=True, about="Rows whose step is measured."),
            Number("igf.objective", 1, 10_000, 32, log=True, whole=True, about="Rows it is measured on, of the pool."),
            Number("igf.learning_rate", 1e-6, 1.0, 1e-3, log=True, about="Size of the measured step."),
            Number("igf.filtered_share", 0.0, 1.0, 0.5, unit="share", about="Part of training that skips rows."),
        )
    ),
    work=lambda pool, fields: (
        embeddings(pool, fields)
        + Work(
            scored_tokens=(float(fields["probes"]) + 1)
            * (pool.target_rows or float(fields["objective"]))
            * pool.row_tokens,
            trained_tokens=float(fields["probes"]) * pool.row_tokens,
        )
    ),
    cost="a training step and a pass over the objective set for each probe, and a pass over all rows",
    source="Antonello et al. 2020, Information Gain Filtration (2005.00175)",
    moment="filter",
    seeded=True,
)


SELECTORS: dict[str, SelectorDeclaration] = {
    declared.name: declared
    for declared in (
        RANDOM,
        LONGEST,
        IFD,
        SELF_UTILITY,
        MIWV,
        SELECT_IT,
        DELIFT,
        DELIFT_SE,
        RDS_PLUS,
        K_CENTRE,
        HERDING,
        DEFT_UCS,
        DEITA,
        LESS,
        DIVERSE_EVOL,
        ACTIVE_LEARNING,
        RS2,
        IGF,
    )
}

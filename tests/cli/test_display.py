"""What a fit says while it runs: reasons cite rules by the numbers that the plan gave them."""

from __future__ import annotations

from foretune.cli.display import sentence
from foretune.cli.plan import by_number

RULES = ("LoRA on all linear layers (strong; A 2024; B 2025)", "few rows; be careful (weak; C 2022 (2205.1))")


def test_rules_are_cited_by_number() -> None:
    both = f"by 5 runs on 2 earlier tasks, and by the rule: {RULES[0]}; {RULES[1]}, odds of failure 12%"
    assert by_number(both, RULES) == "by 5 runs on 2 earlier tasks, and by rules 1, 2, odds of failure 12%"
    assert by_number(f"by the rule: {RULES[1]}", RULES) == "by rule 2"
    unknown = "by the rule: another one (weak; D 2021)"
    assert by_number(unknown, RULES) == unknown
    assert by_number("the rule's learning rate for width 576", RULES) == "the rule's learning rate for width 576"


def test_a_lease_says_its_reason_in_short() -> None:
    lease = {"run": "r002", "from_step": 0, "to_step": 5, "why": f"lora at 0.002 by the rule: {RULES[0]}"}
    assert sentence("lease", {"lease": lease}, RULES) == "r002: steps 0 to 5 — lora at 0.002 by rule 1"
